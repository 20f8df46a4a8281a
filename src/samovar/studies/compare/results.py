"""Results of a comparison: numbers of each relative, their shares of SAM's gain, the answer.

Nothing in this file needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from samovar.studies.claims import Claim, Outcome, decide, difference
from samovar.studies.compare.cost import Cost
from samovar.studies.compare.request import COMPARED, YARDSTICKS, Budget
from samovar.studies.intervals import ratio_interval, stderr

KEPT = 0.9
"""Share of SAM's gain that a relative has to keep."""

CHEAP = 1.25
"""Cost in plain steps that such a relative may have."""

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Relative -> column -> one number a seed, NaN where there is none."""


@dataclass(frozen=True)
class CompareNumber:
    """A number of a relative over seeds."""

    mean: float
    """Mean, geometric for an eigenvalue; NaN without any number."""
    low: float
    """Mean less a standard error (of logarithms if geometric); for one seed, the mean."""
    high: float
    """Mean plus a standard error, likewise."""
    error: float | None
    """Standard error, for an eigenvalue as a share of it; None for one seed."""
    values: tuple[float, ...]
    """One number a seed; seeds without one are left out."""


@dataclass(frozen=True)
class GainShare:
    """A relative's gain over plain training as a share of SAM's."""

    value: float
    """Ratio of the mean gains; NaN where SAM has none."""
    low: float
    """Lower end of the 90 % interval; infinite where SAM's own gain may be 0."""
    high: float
    """Upper end of that interval."""
    outcome: Outcome
    """Test of the claim that the share is at least `KEPT`."""


@dataclass(frozen=True)
class Standing:
    """Results of a relative."""

    relative: str
    cost: Cost
    steps: int
    numbers: Mapping[str, CompareNumber]
    """Numbers by column."""
    share: GainShare | None
    """Share of SAM's gain under the recipe's schedule; None for plain and for SAM there."""
    own_share: GainShare | None = None
    """Share of SAM's gain under this relative's own schedule, where that is another one."""

    def worth(self, steps: int) -> float:
        """Return the processor time of a run in that of a plain run of `steps` steps."""
        return self.cost.ratio * self.steps / steps


@dataclass(frozen=True)
class CompareResults:
    """Results of all relatives under one budget."""

    budget: Budget
    standings: tuple[Standing, ...]
    gain: Outcome
    """Test of the claim that SAM is above plain training."""

    @property
    def answer(self) -> str:
        """Sentences that name the relatives which keep SAM's gain."""
        return answer(self)


def results(
    budget: Budget, costs: Mapping[str, Cost], steps: Mapping[str, int], values: Values, seeds: int
) -> CompareResults:
    """Judge the relatives that there are values for; `plain` and `sam` must be among them.

    Args:
        steps: steps of a run, by relative."""
    # seeds are paired: runs of one seed share first weights and batches
    paired = [
        {(name, "top1"): found["top1"][seed] for name, found in values.items()}
        for seed in range(seeds)
    ]
    standings = tuple(
        Standing(
            name,
            costs[name],
            steps[name],
            {column: number(column, found[column]) for column in COMPARED},
            None if name in YARDSTICKS else share_of_gain(name, paired),
            own_share(name, paired),
        )
        for name, found in values.items()
    )
    claim = difference(
        "SAM raises accuracy over plain training", ("sam", "top1"), ("plain", "top1")
    )
    return CompareResults(budget, standings, decide(claim, paired, {}))


def number(column: str, values: Sequence[float]) -> CompareNumber:
    """Return mean and standard error over the seeds that have a number.

    λ_max is averaged by logarithms, over positive values only."""
    geometric = column == "lambda_max"
    kept = tuple(value for value in values if math.isfinite(value) and (value > 0 or not geometric))
    if not kept:
        return CompareNumber(math.nan, math.nan, math.nan, None, ())
    # eigenvalues differ by factors between seeds, so their logarithms are averaged
    scaled = [math.log(value) for value in kept] if geometric else kept
    mean, error = fmean(scaled), stderr(scaled)
    ends = [mean, mean - (error or 0.0), mean + (error or 0.0)]
    middle, low, high = map(math.exp, ends) if geometric else ends
    return CompareNumber(middle, low, high, error, kept)


def own_share(name: str, seeds: Sequence[Mapping[tuple[str, str], float]]) -> GainShare | None:
    """Return the share of the gain that SAM has under a relative's own schedule.

    None under the recipe's schedule, for the yardsticks, and where they were not compared."""
    _, at, schedule = name.partition("@")
    plain, sam = (f"{each}@{schedule}" for each in YARDSTICKS)
    if not at or name in (plain, sam) or not seeds or (sam, "top1") not in seeds[0]:
        return None
    return share_of_gain(name, seeds, plain, sam)


def keeps(name: str, plain: str = "plain", sam: str = "sam") -> Claim:
    """Claim that a relative keeps at least `KEPT` of SAM's gain."""
    terms = ((1.0, (name, "top1")), (KEPT - 1, (plain, "top1")), (-KEPT, (sam, "top1")))
    text = f"{name} keeps at least {100 * KEPT:.0f} % of SAM's gain"
    return Claim(text, terms, unit="points", ours=True)


def share_of_gain(
    name: str,
    seeds: Sequence[Mapping[tuple[str, str], float]],
    plain: str = "plain",
    sam: str = "sam",
) -> GainShare:
    """Return a relative's share of SAM's gain, over the seeds that have all three accuracies."""
    pairs = [
        tuple(values[each, "top1"] - values[plain, "top1"] for each in (name, sam))
        for values in seeds
    ]
    # a seed without one of the three accuracies has no share
    gains = [(ours, sams) for ours, sams in pairs if math.isfinite(ours) and math.isfinite(sams)]
    ours, sams = (math.fsum(column) for column in zip(*gains, strict=True)) if gains else (0.0, 0.0)
    value = ours / sams if sams > 0 else math.nan
    return GainShare(value, *ratio_interval(gains), decide(keeps(name, plain, sam), seeds, {}))


# --- the answer


def answer(found: CompareResults) -> str:
    """Return sentences on which relatives keep SAM's gain cheaply: by the test, by the mean, none.

    Under the time budget all runs cost what SAM's costs, so every relative is a candidate."""
    gain, free = found.gain, found.budget == "time"
    # a share of a gain that may be none has no meaning
    if gain.verdict != "held":
        return (
            f"SAM's own gain over plain, {gain_text(gain)}, is not above 0 by the test, "
            "so shares of it have no meaning."
        )
    tests = {
        each.relative: each.share.outcome
        for each in found.standings
        if each.share and (free or each.cost.ratio <= CHEAP)
    }
    if not tests:
        return (
            f"No relative that was compared costs at most {CHEAP} times as much as plain training."
        )
    where = (
        "In SAM's processor time" if free else f"At no more than {CHEAP} times the cost of plain"
    )
    what = f"at least {100 * KEPT:.0f} % of SAM's gain of {gain_text(gain)}"
    held = [name for name, test in tests.items() if test.verdict == "held"]
    # a contrast of 0 or more keeps the share by the mean, if not by the test
    mean = [name for name, test in tests.items() if test.value >= 0 and name not in held]
    if not held and not mean:
        return f"{where}, no relative keeps {what}, not even by the mean."
    keep = _listed(held, "keep") if held else "no relative is sure to keep"
    by_mean = (
        f" By the mean over seeds alone, undecided by the test: {', '.join(mean)}." if mean else ""
    )
    return f"{where}, {keep} {what}.{by_mean}"


def _listed(names: Sequence[str], verb: str) -> str:
    """Return `a keeps`, `a and b keep` or `a, b and c keep`."""
    if len(names) == 1:
        return f"{names[0]} {verb}s"
    return f"{', '.join(names[:-1])} and {names[-1]} {verb}"


def gain_text(outcome: Outcome) -> str:
    """Return a difference as `1.2 points (90 % interval 0.4 to 2.0, 3 seeds)`."""
    if not outcome.seeds:
        return "not measured"
    ends = f"90 % interval {outcome.low:.2g} to {outcome.high:.2g}, " if outcome.seeds > 1 else ""
    few = "" if outcome.seeds == outcome.asked else f" of {outcome.asked}"
    seeds = "seed" if outcome.seeds == 1 and not few else "seeds"
    return f"{outcome.value:.2g} {outcome.claim.unit} ({ends}{outcome.seeds}{few} {seeds})"
