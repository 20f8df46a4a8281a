"""Cost of a training step of SAM's relatives in plain steps. Nothing in this file needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from samovar.config import Config, sam_span
from samovar.config.derived import expected_climbs

Kind = Literal["climb", "between", "outside"]
"""Kind of a step: it climbs; it lies between two climbs under `every`; SAM is off at it."""


@dataclass(frozen=True)
class Cost:
    """Cost of a step, averaged over the steps of a run."""

    ratio: float
    """Processor time in plain steps: the median over repetitions of the ratio within each."""
    low: float
    """Lowest of those ratios."""
    high: float
    """Highest of those ratios."""
    seconds: float
    """Median over repetitions."""
    passes: float
    """Gradients of each image, counted."""


def shares(config: Config, total: int) -> dict[Kind, float]:
    """Return the share of each kind of step in a run of `total` steps; kinds may be absent."""
    sam, (first, last) = config.sam, sam_span(config, total)
    inside = last - first if sam.rho else 0
    # steps climb at the multiples of `every` from first to before last
    climbs = math.ceil(last / sam.every) - math.ceil(first / sam.every) if sam.rho else 0
    # where AE-SAM does not climb, a step costs what one without SAM does
    skips = inside * (1 - expected_climbs(sam)) if sam.rho and sam.c_skip else 0
    counts: dict[Kind, float] = {
        "climb": climbs - skips,
        "between": inside - climbs,
        "outside": total - inside + skips,
    }
    return {kind: count / total for kind, count in counts.items() if count}


def weighed(seconds: Mapping[Kind, float], share: Mapping[Kind, float]) -> float:
    """Return the seconds of an average step from those of each kind."""
    return math.fsum(seconds[kind] * weight for kind, weight in share.items())


def costs_of(times: Mapping[str, Sequence[float]], passes: Mapping[str, float]) -> dict[str, Cost]:
    """Return the costs of relatives from the seconds of a step in each repetition.

    Args:
        times: by relative; `plain` is among them.
        passes: gradients of each image that a step takes, by relative."""
    found = {}
    for name, seconds in times.items():
        # ratios within a repetition, where both ran on an equally busy machine
        ratios = [one / plain for one, plain in zip(seconds, times["plain"], strict=True)]
        found[name] = Cost(median(ratios), min(ratios), max(ratios), median(seconds), passes[name])
    return found


def counted(passes: Mapping[str, float]) -> dict[str, Cost]:
    """Return costs by counted gradients, where no processor time is measured."""
    return {name: Cost(count, count, count, math.nan, count) for name, count in passes.items()}


def steps_for(total: int, cost: Cost, sam: Cost) -> int:
    """Return the steps that take the processor time of `total` steps of SAM."""
    return max(1, round(total * sam.ratio / cost.ratio))
