"""Numbers of the paper for the cells of a study. Nothing in this file needs torch."""

from __future__ import annotations

import math

from samovar.recipes import paper_numbers
from samovar.studies.reproduce.rows import Row
from samovar.studies.reproduce.scales import Scale
from samovar.studies.reproduce.studies import STUDIES


def paper_number(name: str, row: Row, column: str, scale: Scale) -> float:
    """Return the paper's number in a cell of a study; NaN where it has none."""
    study, model = STUDIES[name], stands_for(row, scale)
    # numbers of the version that was checked take precedence
    numbers = {**study.later(row, model), **study.paper(row, model)}
    return float(numbers.get(column, math.nan))


def is_unverified(name: str, row: Row, column: str, scale: Scale) -> bool:
    """Return whether only later versions of the paper have the number in a cell."""
    study, model = STUDIES[name], stands_for(row, scale)
    return column in study.later(row, model) and column not in study.paper(row, model)


def stands_for(row: Row, scale: Scale) -> str:
    """Return the paper's network that a row is set beside; empty where it has none."""
    if row.model:
        return row.model if row.model in paper_numbers.TABLE_2 else ""
    return scale.stands_for[row.family]
