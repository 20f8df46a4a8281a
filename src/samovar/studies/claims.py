"""Claims as contrasts of numbers, decided by a t-test over seeds; without torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from samovar.studies.intervals import (
    LEVEL,
    holm,
    mean_interval,
    p_above,
    seeds_needed,
    smallest_effect,
)

Verdict = Literal["held", "not held", "undecided", "not measured"]

Cell = tuple[str, str]
"""Key of a row, name of a column."""

TEST = "one-sample t-test over seeds of the contrast, one-sided at 5 % on either side"


@dataclass(frozen=True)
class Claim:
    """A statement that a contrast of numbers is above a threshold."""

    text: str
    terms: tuple[tuple[float, Cell], ...]
    """Weights of the numbers, or of their logarithms where the contrast is a ratio."""
    ratio: bool = False
    above: float = 0.0
    """Threshold of the contrast; of a ratio, the threshold of the ratio itself."""
    unit: str = ""
    ours: bool = False
    """True if the threshold is ours: the paper gives two numbers and no bound."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Cells whose numbers the claim compares."""
        return tuple(cell for _, cell in self.terms)

    @property
    def threshold(self) -> float:
        """Threshold on the scale of `contrast`."""
        return math.log(self.above) if self.ratio else self.above

    def contrast(self, values: Mapping[Cell, float]) -> float:
        """Return the contrast of one seed, or of the paper; NaN where a number is missing.

        The contrast of a ratio is its logarithm."""
        total = 0.0
        for weight, cell in self.terms:
            value = values.get(cell, math.nan)
            if self.ratio:
                value = math.log(value) if value > 0 else math.nan
            total += weight * value
        return total

    def shown(self, contrast: float) -> float:
        """Return a contrast as a reader sees it: a ratio, or a difference."""
        return math.exp(contrast) if self.ratio else contrast


@dataclass(frozen=True)
class Outcome:
    """Result of testing a claim over seeds."""

    claim: Claim
    verdict: Verdict
    value: float
    """Mean contrast over seeds, shown as a ratio where the claim is one; NaN if not measured."""
    low: float
    """Lower end of the 90 % interval, whose sides the test looks at; infinite for one seed."""
    high: float
    """Upper end of that interval."""
    seeds: int
    """Seeds that have all numbers of the claim."""
    paper: float
    """Contrast of the paper's numbers; NaN where it has none."""
    unverified: bool = False
    """True if one of the paper's numbers is only in later versions of it."""
    asked: int = 0
    """Seeds that were asked for; with fewer, nothing is decided."""
    wide: tuple[float, float] = (-math.inf, math.inf)
    """The 95 % interval of the mean contrast, shown as `value` is."""
    p: float = math.nan
    """p-value of the one-sided test that the claim holds; that of its opposite is 1 - p."""
    smallest: float = math.nan
    """Smallest distance from the threshold that these seeds see with a probability of 80 %, by
    their spread: a difference, or for a ratio the factor."""
    needed: int | None = None
    """Seeds that would decide the claim with a probability of 80 % if mean and spread are right;
    None where it is decided, or more than 1,000 would be needed."""
    holm: Verdict = "undecided"
    """The verdict where a false one among all of the table's claims must be rare; see
    `corrected`."""


def ratio(text: str, top: Cell, bottom: Cell, *, above: float = 1.0, ours: bool = False) -> Claim:
    """Claim that one number is more than `above` times another."""
    return Claim(text, ((1.0, top), (-1.0, bottom)), ratio=True, above=above, unit="x", ours=ours)


def difference(text: str, more: Cell, less: Cell, *, unit: str = "points") -> Claim:
    """Claim that one number is larger than another."""
    return Claim(text, ((1.0, more), (-1.0, less)), unit=unit)


def larger_gain(
    text: str, first: tuple[Cell, Cell], second: tuple[Cell, Cell], *, unit: str = "points"
) -> Claim:
    """Claim that the difference of one pair of numbers is larger than that of another pair."""
    (a, b), (c, d) = first, second
    return Claim(text, ((1.0, a), (-1.0, b), (-1.0, c), (1.0, d)), unit=unit)


def decide(
    claim: Claim,
    seeds: Sequence[Mapping[Cell, float]],
    paper: Mapping[Cell, float],
    unverified: Collection[Cell] = (),
) -> Outcome:
    """Test a claim on the numbers of each seed.

    A claim is undecided with one seed. It is also undecided where a seed lacks one of its numbers
    (it diverged, did not converge, or a ratio would have a negative term), since the seeds that
    remain are no fair sample, and where the contrast is the same in all seeds, since that shows
    nothing about chance.

    Source: Student, Biometrika 6 (1908)."""
    found = [value for values in seeds if math.isfinite(value := claim.contrast(values))]
    published = claim.shown(claim.contrast(paper))
    later = any(cell in unverified for cell in claim.cells)
    if not found:
        nan = math.nan
        return Outcome(claim, "not measured", nan, nan, nan, 0, published, later, len(seeds))
    low, high = mean_interval(found)
    verdict: Verdict = (
        "held" if low > claim.threshold else "not held" if high < claim.threshold else "undecided"
    )
    # equal contrasts differ by rounding, hence the tolerance
    if len(found) < len(seeds) or high - low < 1e-9 * max(map(abs, found)):
        verdict = "undecided"
    wide = mean_interval(found, LEVEL / 2)
    value, low, high, *wide95 = (
        claim.shown(end) if math.isfinite(end) else end for end in (fmean(found), low, high, *wide)
    )
    whole = len(found) == len(seeds)
    return Outcome(
        claim, verdict, value, low, high, len(found), published, later, len(seeds),
        wide=(wide95[0], wide95[1]),
        p=p_above(found, claim.threshold) if whole else math.nan,
        smallest=claim.shown(smallest_effect(found)),
        needed=seeds_needed(found, claim.threshold) if verdict == "undecided" and whole else None,
        holm="undecided",
    )  # fmt: skip


def corrected(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Return the outcomes of a table with their verdicts after Holm's correction.

    Each claim and its opposite are two hypotheses: with a probability of 95 % none of the verdicts
    `held` and `not held` of the table is false."""
    rejected = holm([p for outcome in outcomes for p in (outcome.p, 1 - outcome.p)])
    found = []
    for outcome, held, not_held in zip(outcomes, rejected[::2], rejected[1::2], strict=True):
        verdict: Verdict = "held" if held else "not held" if not_held else "undecided"
        # nothing that a single test leaves open is decided by a stricter one
        open_or_none = outcome.verdict in ("undecided", "not measured")
        found.append(replace(outcome, holm=outcome.verdict if open_or_none else verdict))
    return tuple(found)
