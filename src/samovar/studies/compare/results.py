"""What a comparison says: numbers of each relative, shares of SAM's gain, and an answer in a
sentence.

Nothing in this file needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from samovar.studies.compare.cost import Cost
from samovar.studies.compare.plan import Budget
from samovar.studies.reproduce.claims import LEVEL, Claim, Outcome, decide, difference
from samovar.studies.tune.search import stderr

KEPT = 0.9
"""Share of SAM's gain that a relative has to keep."""

CHEAP = 1.3
"""Times the cost of a plain step that it may take."""

COLUMNS = ("top1", "lambda_max", "corruption")
"""Of `samovar.studies.reproduce.columns`."""

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Relative -> column -> a number of each seed, NaN where there is none."""


@dataclass(frozen=True)
class Number:
    """A number of a relative over seeds."""

    mean: float
    """Geometric of an eigenvalue; NaN without any."""
    low: float
    high: float
    """The mean less and plus a standard error, of logarithms where it is geometric; the mean itself
    of one seed."""
    error: float | None
    """Standard error: of an eigenvalue as a share of it; None of one seed."""
    values: tuple[float, ...]
    """Of each seed that has one."""


@dataclass(frozen=True)
class Share:
    """A relative's gain over plain as a share of SAM's."""

    value: float
    """Of the mean gains; NaN where SAM has none."""
    low: float
    high: float
    """90 % interval of that ratio; infinite where SAM's own gain may be none."""
    outcome: Outcome
    """Of the claim that it is at least `KEPT`."""


@dataclass(frozen=True)
class Standing:
    """How a relative did."""

    relative: str
    cost: Cost
    steps: int
    numbers: Mapping[str, Number]
    """By column."""
    share: Share | None
    """None of plain, and of SAM, whose it is of."""

    def worth(self, steps: int) -> float:
        """Processor time of a run in that of a plain run of so many steps."""
        return self.cost.ratio * self.steps / steps


@dataclass(frozen=True)
class Results:
    """What came of the runs under one budget."""

    budget: Budget
    standings: tuple[Standing, ...]
    gain: Outcome
    """Of the claim that SAM is above plain."""

    @property
    def answer(self) -> str:
        """Which relatives keep SAM's gain, in a sentence or two."""
        return answer(self)


def results(
    budget: Budget, costs: Mapping[str, Cost], steps: Mapping[str, int], values: Values, seeds: int
) -> Results:
    """Judge the relatives that there are values of; `plain` and `sam` are among them.

    Args:
        steps: of a run of each."""
    paired = [
        {(name, "top1"): found["top1"][seed] for name, found in values.items()} for seed in range(seeds)
    ]  # fmt: skip
    standings = tuple(
        Standing(name, costs[name], steps[name], {column: number(column, found[column]) for column in COLUMNS},
                 None if name in ("plain", "sam") else share(name, paired))
        for name, found in values.items()
    )  # fmt: skip
    gain = decide(
        difference("SAM raises accuracy over plain training", ("sam", "top1"), ("plain", "top1")),
        paired,
        {},
    )
    return Results(budget, standings, gain)


def number(column: str, values: Sequence[float]) -> Number:
    """Mean and standard error over the seeds that have a number; of λ_max in logarithms, and only
    of positive ones."""
    geometric = column == "lambda_max"
    kept = tuple(value for value in values if math.isfinite(value) and (value > 0 or not geometric))
    if not kept:
        return Number(math.nan, math.nan, math.nan, None, ())
    scaled = [math.log(value) for value in kept] if geometric else list(kept)
    mean, error = math.fsum(scaled) / len(scaled), stderr(scaled)
    ends = [mean, mean - (error or 0.0), mean + (error or 0.0)]
    middle, low, high = map(math.exp, ends) if geometric else ends
    return Number(middle, low, high, error, kept)


def keeps(name: str) -> Claim:
    """The claim that a relative keeps `KEPT` of SAM's gain."""
    terms = ((1.0, (name, "top1")), (KEPT - 1, ("plain", "top1")), (-KEPT, ("sam", "top1")))
    return Claim(
        f"{name} keeps at least {100 * KEPT:.0f} % of SAM's gain", terms, unit="points", ours=True
    )


def share(name: str, seeds: Sequence[Mapping[tuple[str, str], float]]) -> Share:
    """A relative's share of SAM's gain, over the seeds that have all three accuracies."""
    pairs = [
        (
            values[name, "top1"] - values["plain", "top1"],
            values["sam", "top1"] - values["plain", "top1"],
        )
        for values in seeds
    ]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    ours, sams = (
        (math.fsum(column) for column in zip(*pairs, strict=True))
        if pairs
        else (math.nan, math.nan)
    )
    return Share(
        ours / sams if sams > 0 else math.nan, *fieller(pairs), decide(keeps(name), seeds, {})
    )


def fieller(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Interval of the ratio of the means of paired numbers: the ratios r for which a t-test at
    `LEVEL` on either side does not tell first - r x second from 0. Without ends where the second
    may be 0.

    Source: Fieller, J. R. Stat. Soc. B 16 (1954)."""
    from scipy.stats import t

    n = len(pairs)
    if n < 2:
        return -math.inf, math.inf
    x, y = (math.fsum(column) / n for column in zip(*pairs, strict=True))
    reach = float(t.ppf(1 - LEVEL, n - 1)) ** 2 / n / (n - 1)
    xx, xy, yy = (
        reach * math.fsum((a - x) ** i * (b - y) ** (2 - i) for a, b in pairs) for i in (2, 1, 0)
    )  # fmt: skip
    a, b, c = y * y - yy, x * y - xy, x * x - xx
    if a <= 0 or y <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(0.0, b * b - a * c))
    return (b - root) / a, (b + root) / a


# --- the answer
# ------------------------------------------------------------------------------------------------------


def answer(found: Results) -> str:
    """Which relatives keep SAM's gain at a low cost: held by the test, by the mean only, or none.

    Under the time budget all runs cost what SAM's does, and every relative is asked for."""
    gain = found.gain
    if gain.verdict != "held":
        return f"SAM's own gain over plain, {said(gain)}, is not above 0 by the test: of shares of it nothing can be said."
    asked = [
        standing for standing in found.standings if standing.share and _is_asked(found, standing)
    ]
    where = (
        "In SAM's processor time"
        if found.budget == "time"
        else f"At no more than {CHEAP} times the cost of plain"
    )
    if not asked:
        return (
            f"No relative that was compared costs at most {CHEAP} times as much as plain training."
        )
    held = [standing.relative for standing in asked if standing.share.outcome.verdict == "held"]  # type: ignore[union-attr]
    mean = [
        standing.relative
        for standing in asked
        if standing.share and standing.share.outcome.value >= 0 and standing.relative not in held
    ]
    what = f"at least {100 * KEPT:.0f} % of SAM's gain of {said(gain)}"
    if not held and not mean:
        return f"{where}, no relative keeps {what}, not even by the mean."
    sure = (
        f"{where}, {_listed(held, 'keep')} {what}."
        if held
        else f"{where}, no relative is sure to keep {what}."
    )
    return sure + (
        f" By the mean over seeds alone, undecided by the test: {', '.join(mean)}." if mean else ""
    )


def _is_asked(found: Results, standing: Standing) -> bool:
    return found.budget == "time" or standing.cost.ratio <= CHEAP


def _listed(names: Sequence[str], verb: str) -> str:
    """`a keeps`, `a and b keep`, `a, b and c keep`."""
    if len(names) == 1:
        return f"{names[0]} {verb}s"
    return f"{', '.join(names[:-1])} and {names[-1]} {verb}"


def said(outcome: Outcome) -> str:
    """A difference with its interval and seeds, as
    `1.2 points (90 % interval 0.4 to 2.0, 3 seeds)`."""
    if not outcome.seeds:
        return "not measured"
    ends = f"90 % interval {outcome.low:.2g} to {outcome.high:.2g}, " if outcome.seeds > 1 else ""
    few = "" if outcome.seeds == outcome.asked else f" of {outcome.asked}"
    seeds = "seed" if outcome.seeds == 1 and not few else "seeds"
    return f"{outcome.value:.2g} {outcome.claim.unit} ({ends}{outcome.seeds}{few} {seeds})"
