"""Show what each relative of SAM gains, against the processor time of its run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samovar.report.chapters.comparison_table import BUDGETS, NUMBER, table
from samovar.report.drawing.labels import Box, beside
from samovar.report.drawing.plots import finite, layout
from samovar.report.parts import Chapter, Data, Figure, Key, Part, balanced
from samovar.report.read import RunData, number
from samovar.report.text import clean, plain
from samovar.runs.records import Record

UPWARD = {"top1": True, "lambda_max": False, "corruption": True}
"""Whether more is better, by the key of a column."""

_LEAD = (
    "The result of each relative of SAM against the processor time of its run, where a plain run "
    "of the recipe’s steps takes 1. The dotted line is the Pareto front: no other run is better in "
    "the same time or less."
)


@dataclass(frozen=True)
class RelativePoint:
    """A relative in a figure."""

    relative: str
    budget: str
    worth: float
    """Processor time of a run, in plain runs of the recipe's steps."""
    value: float
    low: float
    high: float
    record: Record


def is_comparison(run: RunData) -> bool:
    """Return whether `samovar compare` wrote a folder."""
    return NUMBER in run.records


def comparison(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: the figures of each comparison, and a table with an answer per budget."""
    parts: list[Part] = []
    for run in runs:
        parts += balanced(figures(run))
        parts += [table(run, budget) for budget in budgets_of(run)]
    return Chapter("comparison", "SAM and its relatives", _LEAD, parts)


def budgets_of(run: RunData) -> list[str]:
    """Return the budgets for which a comparison has numbers."""
    present = {record.where.get("budget") for record in run.records[NUMBER]}
    return [budget for budget in BUDGETS if budget in present]


def figures(run: RunData) -> list[Figure]:
    """Draw a figure for each number that some relative has."""
    columns = {
        str(r.where.get("key")): clean(r.where.get("column", "")) for r in run.records[NUMBER]
    }
    found = ((key, title, points(run, key)) for key, title in columns.items() if key in UPWARD)
    return [_figure(run, key, title, drawn) for key, title, drawn in found if drawn]


def points(run: RunData, key: str) -> list[RelativePoint]:
    """Return the relatives that have a number, cheap ones first.

    SAM's run is the same under every budget, so it is there once."""
    found: dict[tuple[str, str], RelativePoint] = {}
    for record in run.records[NUMBER]:
        point = _point(record)
        if point and record.where.get("key") == key:
            # SAM's steps are its budget of time, so both budgets hold the same run.
            once = "" if point.relative == "sam" else point.budget
            found.setdefault((point.relative, once), point)
    return sorted(found.values(), key=lambda point: (point.worth, point.relative))


def _point(record: Record) -> RelativePoint | None:
    """Return the point of a record; None where it cannot be drawn."""
    worth, value = number(record.settings.get("worth")), record.value
    budget = str(record.where.get("budget"))
    if budget not in BUDGETS or not worth or not math.isfinite(value * worth):
        return None
    low, high = record.interval or (value, value)
    relative = clean(record.where.get("relative", ""), 40)
    return RelativePoint(relative, budget, worth, value, low, high, record)


def front(found: Sequence[RelativePoint], *, upward: bool) -> list[RelativePoint]:
    """Return the points that no other point beats in the same time or less, cheap ones first."""
    # From cheap to expensive, only a better result than all before belongs to the front.
    best: list[RelativePoint] = []
    for point in sorted(found, key=lambda p: (p.worth, -p.value if upward else p.value)):
        if not best or (point.value > best[-1].value if upward else point.value < best[-1].value):
            best.append(point)
    return best


def _figure(run: RunData, key: str, title: str, found: Sequence[RelativePoint]) -> Figure:
    log = key == "lambda_max"
    by_budget = {budget: [p for p in found if p.budget == budget] for budget in BUDGETS}
    present = {budget: drawn for budget, drawn in by_budget.items() if drawn}
    several = len(present) > 1
    return Figure(
        f"pareto-{run.index}-{key}",
        title,
        {
            "data": [
                _front_trace(front(found, upward=UPWARD[key]), found),
                *(_markers(drawn, budget) for budget, drawn in present.items()),
            ],
            "layout": _layout(found, log),
        },
        Data(
            ("relative", "budget", "worth", "value", "low", "high", "seeds"),
            [(p.relative, p.budget, p.worth, p.value, p.low, p.high, p.record.n) for p in found],
        ),
        _caption(found, log, several),
        tuple(Key(BUDGETS[name].title, BUDGETS[name].color) for name in present if several),
        height=380,
        sense="up and to the left is better" if UPWARD[key] else "down and to the left is better",
    )


def _layout(found: Sequence[RelativePoint], log: bool) -> dict[str, Any]:
    """Return axes with room for the names beside the points."""
    ends = [end for point in found for end in (point.low, point.high)]
    x_range = _range([point.worth for point in found], log=False, pad=0.1)
    y_range = _range(ends, log=log, pad=0.12)
    return layout(
        "processor time of a run ÷ that of a plain run",
        log_y=[end for end in ends if end > 0] if log else None,
        xaxis={"range": x_range},
        yaxis={"range": y_range},
        annotations=beside([_box(point, x_range, y_range, log) for point in found]),
    )


def _range(values: Sequence[float], *, log: bool, pad: float) -> list[float]:
    """Return the ends of an axis with a margin; logarithms where the axis is logarithmic."""
    scaled = [math.log10(value) for value in values if value > 0] if log else list(values)
    low, high = min(scaled), max(scaled)
    room = (high - low) * pad or abs(high) * pad or pad
    return [low - room, high + room]


def _box(
    point: RelativePoint, x_range: Sequence[float], y_range: Sequence[float], log: bool
) -> Box:
    # Plotly places annotations by logarithms on a logarithmic axis.
    y = math.log10(point.value) if log else point.value
    across, up = (
        (v - low) / (high - low) for v, (low, high) in ((point.worth, x_range), (y, y_range))
    )
    return Box(plain(point.relative), point.worth, y, across, up)


def _front_trace(best: Sequence[RelativePoint], found: Sequence[RelativePoint]) -> dict[str, Any]:
    """Return the front as steps: the best result that each processor time can reach."""
    x, y = [point.worth for point in best], [finite(point.value) for point in best]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, max(point.worth for point in found)],
        "y": [*y, y[-1]],
        "name": "front",
        "line": {"shape": "hv", "width": 1.25, "color": "var(--axis)", "dash": "dot"},
        "hoverinfo": "skip",
    }


def _markers(found: Sequence[RelativePoint], budget: str) -> dict[str, Any]:
    ink = f"var(--run-{BUDGETS[budget].color})"
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [finite(point.worth) for point in found],
        "y": [finite(point.value) for point in found],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "thickness": 1,
            "width": 3,
            "color": ink,
            "array": [finite(point.high - point.value) for point in found],
            "arrayminus": [finite(point.value - point.low) for point in found],
        },
        "text": [plain(point.relative) for point in found],
        "customdata": [point.record.n or 1 for point in found],
        "name": BUDGETS[budget].title,
        "marker": {"symbol": BUDGETS[budget].symbol, "size": 9, "color": ink},
        "hovertemplate": "%{text}<br>%{x:.2f} plain runs: %{y:.4g}, seeds: %{customdata}"
        "<extra></extra>",
    }


def _caption(found: Sequence[RelativePoint], log: bool, several: bool) -> str:
    said = ["Dotted: the Pareto front."]
    if any(point.low < point.high for point in found):
        said.append("Bars: standard error over seeds" + (", of the logarithm." if log else "."))
    if several:
        said.append("Circles: the recipe’s steps; diamonds: SAM’s processor time.")
    return " ".join(said)
