"""Count epochs beside the steps of a curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from samovar.report.read import RunData, number
from samovar.report.text import short

_TICKS = 7
"""About as many epochs are named on an axis."""


def steps_per_epoch(run: RunData) -> float | None:
    """Return how many steps see each training image once; None where a folder does not say it."""
    batch = number(run.config.get("data.batch_size"))
    counts = run.class_counts.get("train")
    known = isinstance(counts, list) and all(type(each) is int and each >= 0 for each in counts)
    images = sum(counts) if known and counts else 0
    return images / batch if images and batch and batch > 0 else None


def epoch_axis(runs: Sequence[RunData], last: float) -> dict[str, Any]:
    """Return Plotly's second x axis with epochs above the figure.

    Args:
        runs: those in the figure.
        last: the last step.

    Returns:
        Nothing where the epochs of a run are unknown, or differ between the runs."""
    known = {steps_per_epoch(run) for run in runs}
    per_epoch = known.pop() if len(known) == 1 else None
    if not per_epoch or last <= 0:
        return {}
    # The ticks are places on the axis of steps, with which this one is zoomed.
    step = _round_up(last / per_epoch / _TICKS)
    epochs = [k * step for k in range(int(last / per_epoch / step * (1 + 1e-9)) + 1)]
    return {
        "overlaying": "x",
        "matches": "x",
        "side": "top",
        "tickvals": [float(f"{epoch * per_epoch:.7g}") for epoch in epochs],
        "ticktext": [f"{epoch:.7g}" for epoch in epochs],
        "title": {"text": "epoch", "standoff": 6, "font": {"size": 12}},
        "showgrid": False,
        "showline": False,
        "zeroline": False,
        "automargin": True,
        "ticks": "",
    }


def _round_up(value: float) -> float:
    """Return the next of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= value * (1 - 1e-9))


def epochs_said(runs: Sequence[RunData]) -> str:
    """Return how many steps an epoch has where that differs between the runs, else nothing."""
    known = {run.label: found for run in runs if (found := steps_per_epoch(run))}
    if len(set(known.values())) <= 1 and len(known) in (0, len(runs)):
        return ""
    each = ", ".join(f"{short(found)} ({label})" for label, found in known.items())
    return f"Steps of an epoch: {each}."
