"""Claims of the paper as contrasts of numbers, decided by a t-test over seeds. Nothing in this file
needs torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["held", "not held", "undecided", "not measured"]

Cell = tuple[str, str]
"""Key of a row, name of a column."""

LEVEL = 0.05
"""Of the one-sided test on either side."""

TEST = "one-sample t-test over seeds of the contrast, one-sided at 5 % on either side"


@dataclass(frozen=True)
class Claim:
    """That a contrast of numbers is above a threshold."""

    text: str
    terms: tuple[tuple[float, Cell], ...]
    """Weights of the numbers; of their logarithms where it is a ratio."""
    ratio: bool = False
    above: float = 0.0
    """Threshold of the contrast; of a ratio, of the ratio itself."""
    unit: str = ""
    ours: bool = False
    """The threshold is ours: the paper gives two numbers and no bound."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The numbers it is about."""
        return tuple(cell for _, cell in self.terms)

    def contrast(self, values: Mapping[Cell, float]) -> float:
        """The contrast of one seed, or of the paper; logarithms of ratios. NaN where a number
        lacks."""
        total = 0.0
        for weight, cell in self.terms:
            value = values.get(cell, math.nan)
            if self.ratio:
                value = math.log(value) if value > 0 else math.nan
            total += weight * value
        return total

    def shown(self, contrast: float) -> float:
        """A contrast as a reader takes it: a ratio, or a difference."""
        return math.exp(contrast) if self.ratio else contrast


@dataclass(frozen=True)
class Outcome:
    """What came of a claim."""

    claim: Claim
    verdict: Verdict
    value: float
    """Mean contrast over seeds, a ratio where the claim is of one; NaN where it was not
    measured."""
    low: float
    """Ends of the interval whose sides the test looks at; infinite of one seed."""
    high: float
    seeds: int
    paper: float
    """The same contrast of the paper's numbers; NaN where it has none."""
    unverified: bool = False
    """Whether one of those is only in later versions of the paper."""
    asked: int = 0
    """Seeds that were asked for; of fewer nothing is decided."""


def ratio(text: str, top: Cell, bottom: Cell, *, above: float = 1.0, ours: bool = False) -> Claim:
    """That one number is more than `above` times another."""
    return Claim(text, ((1.0, top), (-1.0, bottom)), ratio=True, above=above, unit="x", ours=ours)


def difference(text: str, more: Cell, less: Cell, *, unit: str = "points") -> Claim:
    """That one number is larger than another."""
    return Claim(text, ((1.0, more), (-1.0, less)), unit=unit)


def larger_gain(
    text: str, first: tuple[Cell, Cell], second: tuple[Cell, Cell], *, unit: str = "points"
) -> Claim:
    """That one number less another is more than a third less a fourth."""
    (a, b), (c, d) = first, second
    return Claim(text, ((1.0, a), (-1.0, b), (-1.0, c), (1.0, d)), unit=unit)


def decide(
    claim: Claim,
    seeds: Sequence[Mapping[Cell, float]],
    paper: Mapping[Cell, float],
    unverified: Collection[Cell] = (),
) -> Outcome:
    """Test a claim on the numbers of each seed.

    Undecided are a claim of one seed, one whose numbers some seed lacks (it diverged, did not
    converge, or a ratio would be of a negative number), for what remains is no fair choice, and one
    whose contrast is the same in all seeds, which says nothing of chance.

    Source: Student, Biometrika 6 (1908)."""
    found = [value for values in seeds if math.isfinite(value := claim.contrast(values))]
    published, later = (
        claim.shown(claim.contrast(paper)),
        any(cell in unverified for cell in claim.cells),
    )
    n = len(found)
    if not n:
        return Outcome(
            claim, "not measured", math.nan, math.nan, math.nan, 0, published, later, len(seeds)
        )
    mean = math.fsum(found) / n
    low, high = _interval(found, mean)
    threshold = math.log(claim.above) if claim.ratio else claim.above
    verdict: Verdict = (
        "held" if low > threshold else "not held" if high < threshold else "undecided"
    )
    if n < len(seeds) or high - low < 1e-9 * max(map(abs, found)):
        verdict = "undecided"
    shown = [claim.shown(value) if math.isfinite(value) else value for value in (mean, low, high)]
    return Outcome(claim, verdict, shown[0], shown[1], shown[2], n, published, later, len(seeds))


def _interval(found: Sequence[float], mean: float) -> tuple[float, float]:
    """The mean less and plus the t quantile of `LEVEL` times its standard error."""
    from scipy.stats import t

    n = len(found)
    if n < 2:
        return -math.inf, math.inf
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in found) / (n - 1) / n)
    reach = float(t.ppf(1 - LEVEL, n - 1)) * error
    return mean - reach, mean + reach
