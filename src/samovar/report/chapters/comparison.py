"""SAM and its relatives: what each gains, against the processor time that it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samovar.report.chapters.comparison_table import BUDGETS, NUMBER, table
from samovar.report.drawing.labels import Box, beside
from samovar.report.drawing.plots import finite, layout
from samovar.report.parts import Data, Figure, Key, Part, Section, balanced
from samovar.report.read import RunData, number
from samovar.report.text import clean, plain
from samovar.runs.records import Record

UPWARD = {"top1": True, "lambda_max": False, "corruption": True}
"""Whether more is better, by the key of a column."""


@dataclass(frozen=True)
class Point:
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
    """Whether a folder is of `samovar compare`."""
    return NUMBER in run.records


def comparison(runs: Sequence[RunData]) -> Section:
    """The figures of each comparison, then a table for each budget with its answer."""
    parts: list[Part] = []
    for run in runs:
        parts += balanced(figures(run))
        parts += [table(run, budget) for budget in budgets_of(run)]
    lead = (
        "Each relative of SAM by what it came to and the processor time of its run, a plain run of the recipe’s steps "
        "being 1. The line joins what no other run beats at less or the same time."
    )
    return Section("comparison", "SAM and its relatives", lead, parts)


def budgets_of(run: RunData) -> list[str]:
    """The budgets that there are numbers of."""
    present = {record.where.get("budget") for record in run.records[NUMBER]}
    return [budget for budget in BUDGETS if budget in present]


# --- figures
# ---------------------------------------------------------------------------------------------------------


def figures(run: RunData) -> list[Figure]:
    """A figure for each number that some relative has."""
    columns = {
        str(r.where.get("key")): clean(r.where.get("column", "")) for r in run.records[NUMBER]
    }
    found = ((key, title, points(run, key)) for key, title in columns.items() if key in UPWARD)
    return [_figure(run, key, title, drawn) for key, title, drawn in found if drawn]


def points(run: RunData, key: str) -> list[Point]:
    """The relatives with a number, cheap ones first; SAM's run, which is the same under every
    budget, once."""
    found: dict[tuple[str, str], Point] = {}
    for record in run.records[NUMBER]:
        worth, value = number(record.settings.get("worth")), record.value
        name, budget = clean(record.where.get("relative", ""), 40), str(record.where.get("budget"))
        if (
            record.where.get("key") != key
            or budget not in BUDGETS
            or not worth
            or not math.isfinite(value * worth)
        ):
            continue
        low, high = record.interval or (value, value)
        once = "" if name == "sam" else budget
        found.setdefault((name, once), Point(name, budget, worth, value, low, high, record))
    return sorted(found.values(), key=lambda point: (point.worth, point.relative))


def front(found: Sequence[Point], *, upward: bool) -> list[Point]:
    """The points that none beats at less or the same time, cheap ones first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.worth, -p.value if upward else p.value)):
        if not best or (point.value > best[-1].value if upward else point.value < best[-1].value):
            best.append(point)
    return best


def _figure(run: RunData, key: str, title: str, found: Sequence[Point]) -> Figure:
    log = key == "lambda_max"
    present = [budget for budget in BUDGETS if any(point.budget == budget for point in found)]
    traces = [_line(front(found, upward=UPWARD[key]), found)]
    traces += [
        _markers([point for point in found if point.budget == budget], budget) for budget in present
    ]
    ends = [end for point in found for end in (point.low, point.high) if end > 0]
    x_range = _range([point.worth for point in found], log=False, pad=0.1)
    y_range = _range([end for point in found for end in (point.low, point.high)], log=log, pad=0.12)
    marks = beside([_box(point, x_range, y_range, log) for point in found])
    axes = layout(
        "processor time of a run ÷ a plain run’s", log_y=ends if log else None,
        xaxis={"range": x_range}, yaxis={"range": y_range}, annotations=marks,
    )  # fmt: skip
    data = Data(
        ("relative", "budget", "worth", "value", "low", "high", "seeds"),
        [(p.relative, p.budget, p.worth, p.value, p.low, p.high, p.record.n) for p in found],
    )
    keys = (
        tuple(Key(BUDGETS[budget][0], BUDGETS[budget][2]) for budget in present)
        if len(present) > 1
        else ()
    )
    said = _caption(found, log, len(present) > 1)
    plot = {"data": traces, "layout": axes}
    return Figure(f"pareto-{run.index}-{key}", title, plot, data, said, keys, height=380)


def _range(values: Sequence[float], *, log: bool, pad: float) -> list[float]:
    """Ends of an axis, of logarithms where it is logarithmic: those of the values and a margin."""
    scaled = [math.log10(value) for value in values if value > 0] if log else list(values)
    low, high = min(scaled), max(scaled)
    room = (high - low) * pad or abs(high) * pad or pad
    return [low - room, high + room]


def _box(point: Point, x_range: Sequence[float], y_range: Sequence[float], log: bool) -> Box:
    y = math.log10(point.value) if log else point.value
    at = [(v - low) / (high - low) for v, (low, high) in ((point.worth, x_range), (y, y_range))]
    return Box(plain(point.relative), point.worth, y, at[0], at[1])


def _line(best: Sequence[Point], found: Sequence[Point]) -> dict[str, Any]:
    """The front as steps: what can be had for a time, until more time buys more."""
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


def _markers(found: Sequence[Point], budget: str) -> dict[str, Any]:
    _, symbol, color = BUDGETS[budget]
    ink = f"var(--run-{color})"
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [finite(point.worth) for point in found],
        "y": [finite(point.value) for point in found],
        "error_y": {
            "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": ink,
            "array": [finite(point.high - point.value) for point in found],
            "arrayminus": [finite(point.value - point.low) for point in found],
        },
        "text": [plain(point.relative) for point in found],
        "customdata": [point.record.n or 1 for point in found],
        "name": BUDGETS[budget][0],
        "marker": {"symbol": symbol, "size": 9, "color": ink},
        "hovertemplate": "%{text}<br>%{x:.2f} plain runs: %{y:.4g}, seeds: %{customdata}<extra></extra>",
    }  # fmt: skip


def _caption(found: Sequence[Point], log: bool, both: bool) -> str:
    said = ["Dotted: the Pareto front."]
    if any(point.low < point.high for point in found):
        said.append("Bars: standard error over seeds" + (", of logarithms." if log else "."))
    if both:
        said.append("Circles: the recipe’s steps; diamonds: SAM’s processor time.")
    return " ".join(said)
