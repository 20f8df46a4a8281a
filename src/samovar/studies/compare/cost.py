"""What a training step of a relative of SAM costs beside a plain one. Nothing in this file needs
torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from samovar.config import SamConfig

Kind = Literal["climb", "between", "outside"]
"""Of a step: with a climb; between two of them under `every`; before the start of SAM or after its
end."""


@dataclass(frozen=True)
class Cost:
    """What a step costs, on average over the steps of a run."""

    ratio: float
    """Times a plain step, by processor time: the median over repetitions of the ratio within
    each."""
    low: float
    high: float
    """Lowest and highest of those ratios."""
    seconds: float
    """Median over repetitions."""
    passes: float
    """Gradients of each image, counted."""


def shares(sam: SamConfig, total: int) -> dict[Kind, float]:
    """Which share of a run's `total` steps is of which kind; kinds that do not occur are left
    out."""
    first, last = (round(at * total) for at in (sam.start, sam.end))
    inside = last - first if sam.rho else 0
    climbs = math.ceil(last / sam.every) - math.ceil(first / sam.every) if sam.rho else 0
    counts: dict[Kind, int] = {
        "climb": climbs,
        "between": inside - climbs,
        "outside": total - inside,
    }
    return {kind: count / total for kind, count in counts.items() if count}


def weighed(seconds: Mapping[Kind, float], share: Mapping[Kind, float]) -> float:
    """Seconds of an average step, of those of each kind."""
    return math.fsum(seconds[kind] * weight for kind, weight in share.items())


def costs_of(times: Mapping[str, Sequence[float]], passes: Mapping[str, float]) -> dict[str, Cost]:
    """The costs of relatives, of seconds of a step in each repetition; `plain` is among them."""
    found = {}
    for name, seconds in times.items():
        ratios = [one / plain for one, plain in zip(seconds, times["plain"], strict=True)]
        middle = statistics.median(ratios), min(ratios), max(ratios)
        found[name] = Cost(*middle, statistics.median(seconds), passes[name])
    return found


def counted(passes: Mapping[str, float]) -> dict[str, Cost]:
    """Costs as gradients count, where no processor time is measured."""
    return {name: Cost(count, count, count, math.nan, count) for name, count in passes.items()}


def steps_for(total: int, cost: Cost, sam: Cost) -> int:
    """Steps that the processor time of `total` steps of SAM pays for."""
    return max(1, round(total * sam.ratio / cost.ratio))
