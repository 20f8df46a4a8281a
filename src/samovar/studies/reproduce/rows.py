"""A training of the paper at a scale: its recipe and the changes to it.

Nothing in this file needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from samovar import recipes
from samovar.config import Config
from samovar.recipes.regimes import FRACTIONS, adversarial, small_momentum, strong, subset
from samovar.studies.reproduce.scales import Scale

REGIMES: dict[str, Callable[[Config], Config]] = {
    "aug": strong,
    "adversarial": adversarial,
    "sgd": small_momentum,
    **{word: partial(subset, parts=parts) for word, parts in FRACTIONS.items()},
}
"""Changes of a recipe by the word that stands for them in a name."""

RHO_FACTORS: dict[str, Mapping[str, float]] = {
    "aug": {"vit": 1 / 4, "mixer": 1 / 3, "resnet": 1.0},
    "adversarial": {"vit": 1 / 2, "mixer": 5 / 12, "resnet": 1.0},
}
"""Factors of a scale's rho by regime and family, those of Table 9 for B/16.

A recipe of the row's name keeps its own rho."""


@dataclass(frozen=True)
class Row:
    """A training: a family, the changes to its recipe, with SAM or without."""

    family: str
    sam: bool = False
    words: tuple[str, ...] = ()
    """Names of `REGIMES`."""
    contrastive: bool = False
    rho_factor: float = 1.0
    """Multiple of the scale's rho, in the sweep."""
    model: str = ""
    """Another network of the family, in Table 2."""
    transfer: str = ""
    """Source that the last weights are fine-tuned on, in Table 6."""

    @property
    def key(self) -> str:
        """Name without scale and seed, such as `vit-half-aug-sam`."""
        return _joined("supcon" if self.contrastive else "", self.model or self.family, row=self)

    @property
    def origin(self) -> Row:
        """Row whose weights are fine-tuned."""
        return replace(self, transfer="")


def _joined(*start: str, row: Row) -> str:
    parts = [
        *start,
        *row.words,
        "sam" if row.sam else "",
        f"rho-x{row.rho_factor:g}" if row.rho_factor != 1 else "",
        f"to-{row.transfer}" if row.transfer else "",
    ]
    return "-".join(filter(None, parts))


def name_of(row: Row, scale: Scale) -> str:
    """Return the name of the row's runs: the name of its recipe, where there is one."""
    base = scale.base[row.family]
    if row.contrastive:
        base = scale.contrastive
    elif row.model:
        base = f"{row.model}-{base.rpartition('-')[2]}"
    return _joined(base, row=row)


def model_of(family: str, scale: Scale) -> str:
    """Return the network that stands for a family at a scale."""
    return recipes.get(scale.base[family]).config().model.name


def config_of(row: Row, scale: Scale) -> Config:
    """Return the settings of a row at a scale, without fine-tuning.

    A recipe of the row's name is taken as it is, so at the paper's scale these are the paper's."""
    name = name_of(replace(row, rho_factor=1.0, transfer=""), scale)
    config = recipes.get(name).config() if name in recipes.RECIPES else _changed(row, scale)
    # rounded, since products such as 3 x 0.1 would be long in flags and in the saved config
    return replace(config, sam=replace(config.sam, rho=round(config.sam.rho * row.rho_factor, 6)))


def _changed(row: Row, scale: Scale) -> Config:
    config = recipes.get(scale.base[row.family] + ("-sam" if row.sam else "")).config()
    if row.model:
        config = replace(config, model=replace(config.model, name=row.model))
    for word in row.words:
        rho = config.sam.rho * RHO_FACTORS.get(word, {}).get(row.family, 1.0)
        config = REGIMES[word](replace(config, sam=replace(config.sam, rho=rho)))
    return config
