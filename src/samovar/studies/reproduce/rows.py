"""A training of the paper at a scale: which recipe, changed how. Nothing in this file needs
torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from samovar import recipes
from samovar.config import Config
from samovar.recipes.regimes import FRACTIONS, adversarial, momentum, strong, subset
from samovar.studies.reproduce.scales import Scale

REGIMES: dict[str, Callable[[Config], Config]] = {
    "aug": strong,
    "adversarial": adversarial,
    "sgd": partial(momentum, lr=0.1, weight_decay=5e-4),
    **{word: partial(subset, parts=parts) for word, parts in FRACTIONS.items()},
}
"""Changes of a recipe by the word that stands for them in a name."""

RHO_FACTORS: dict[str, Mapping[str, float]] = {
    "aug": {"vit": 1 / 4, "mixer": 1 / 3, "resnet": 1.0},
    "adversarial": {"vit": 1 / 2, "mixer": 5 / 12, "resnet": 1.0},
}
"""Of a scale's own rho, as Table 9 has it for B/16; where a recipe of that name exists its own rho
holds."""


@dataclass(frozen=True)
class Row:
    """A training: a family, what is changed, with SAM or without."""

    family: str
    sam: bool = False
    words: tuple[str, ...] = ()
    """Of `REGIMES`."""
    contrastive: bool = False
    rho_factor: float = 1.0
    """Of the scale's rho, in the sweep."""
    model: str = ""
    """Another network of the family, in Table 2."""
    transfer: str = ""
    """The source that its last weights are fine-tuned on, in Table 6."""

    @property
    def key(self) -> str:
        """`vit-half-aug-sam`: the name of its run's folder, but for the scale and the seed."""
        parts = ["supcon" if self.contrastive else "", self.model or self.family, *self.words]
        parts += [
            "sam" if self.sam else "",
            f"rho-x{self.rho_factor:g}" if self.rho_factor != 1 else "",
        ]
        parts += [f"to-{self.transfer}" if self.transfer else ""]
        return "-".join(part for part in parts if part)

    @property
    def origin(self) -> Row:
        """The training whose weights are fine-tuned."""
        return replace(self, transfer="")


def name_of(row: Row, scale: Scale) -> str:
    """What its runs are called: the name of its recipe, where there is one."""
    start = scale.contrastive if row.contrastive else _base(row, scale)
    parts = [
        start,
        *row.words,
        "sam" if row.sam else "",
        f"rho-x{row.rho_factor:g}" if row.rho_factor != 1 else "",
    ]
    return "-".join(part for part in [*parts, f"to-{row.transfer}" if row.transfer else ""] if part)


def model_of(family: str, scale: Scale) -> str:
    """The network that stands for a family."""
    return recipes.get(scale.base[family]).config().model.name


def _base(row: Row, scale: Scale) -> str:
    base = scale.base[row.family]
    return f"{row.model}-{base.rpartition('-')[2]}" if row.model else base


def config_of(row: Row, scale: Scale) -> Config:
    """The settings of a row at a scale, fine-tuning left out.

    A recipe of the right name is taken as it is, so at the paper's scale these are the paper's."""
    name = name_of(replace(row, rho_factor=1.0, transfer=""), scale)
    config = recipes.get(name).config() if name in recipes.RECIPES else _changed(row, scale)
    return replace(config, sam=replace(config.sam, rho=round(config.sam.rho * row.rho_factor, 6)))


def _changed(row: Row, scale: Scale) -> Config:
    config = recipes.get(scale.base[row.family] + ("-sam" if row.sam else "")).config()
    if row.model:
        config = replace(config, model=replace(config.model, name=row.model))
    for word in row.words:
        factor = RHO_FACTORS.get(word, {}).get(row.family, 1.0)
        config = REGIMES[word](
            replace(config, sam=replace(config.sam, rho=config.sam.rho * factor))
        )
    return config
