"""Show searches for the best settings: accuracy by setting, and every setting that was tried."""

from __future__ import annotations

from collections.abc import Sequence

from samovar.report.chapters.tuning_figures import figures
from samovar.report.chapters.tuning_settings import ACCURACY, TITLES, Tried, tried
from samovar.report.chapters.tuning_table import table
from samovar.report.parts import Chapter, Part
from samovar.report.read import RunData

_LEAD = (
    "Accuracy on images held out of training. Every run completes the learning-rate schedule of "
    "its own length."
)
_RUNGS = (
    " Short runs only eliminate the worse half of the settings: they favour settings that learn "
    "fast, such as a small rho."
)


def is_search(run: RunData) -> bool:
    """Return whether `samovar tune` wrote a folder."""
    return ACCURACY in run.records


def tuning(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: figures and a table for each search."""
    parts: list[Part] = []
    notes: list[str] = []
    rungs = False
    for run in runs:
        found = tried(run)
        if found:
            parts += [*figures(run, found), table(run, found)]
            notes += [f"{run.label}: {text}" if len(runs) > 1 else text for text in _edges(found)]
            rungs = rungs or len({each.rung for each in found}) > 1
    lead = _LEAD + (_RUNGS if rungs else "")
    return Chapter("tuning", "Search", lead if parts else "", parts, (), notes)


def _edges(found: Sequence[Tried]) -> list[str]:
    """Return a warning for each value of the best setting at the edge of the values tried."""
    said = []
    for name, value in found[0].setting:
        values = sorted({each.values[name] for each in found if name in each.values})
        if len(values) > 1 and value in (values[0], values[-1]) and value > 0:
            side, more = ("lowest", "lower") if value == values[0] else ("highest", "higher")
            said.append(
                f"The best {TITLES[name]}, {value:g}, is the {side} value tried; a {more} one may "
                "be better."
            )
    return said
