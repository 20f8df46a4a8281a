"""Tables and figures of arXiv:2106.01548, each a `Study`; without torch."""

from samovar.studies.reproduce.studies import accuracy, geometry, regimes
from samovar.studies.reproduce.study import Study

STUDIES: dict[str, Study] = {
    "table1": geometry.TABLE_1,
    "table2": accuracy.TABLE_2,
    "table3": geometry.TABLE_3,
    "table4": accuracy.TABLE_4,
    "table5": regimes.TABLE_5,
    "table6": accuracy.TABLE_6,
    "figure1": geometry.FIGURE_1,
    "figure2": geometry.FIGURE_2,
    "figure3": geometry.FIGURE_3,
    "rho": regimes.RHO,
    "contrastive": regimes.CONTRASTIVE,
    "sgd": regimes.SGD,
}
"""Studies by the word that `samovar reproduce` takes."""

__all__ = ["STUDIES", "Study"]
