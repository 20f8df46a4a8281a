"""Draw accuracy by the settings of a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samovar.report.chapters.tuning_settings import TITLES, Tried
from samovar.report.drawing.plots import error_of, finite, layout, style
from samovar.report.parts import Data, Figure, Key, balanced
from samovar.report.read import RunData
from samovar.report.text import count, left_out, plain

Lines = Mapping[str, Sequence[Tried]]
"""The settings of each line of a figure, by the label of the line."""


def figures(run: RunData, found: Sequence[Tried]) -> list[Figure]:
    """Draw a search.

    A search of several axes has a figure for each length of run, with a line for each value of the
    axes but the first. A search of one axis has a figure of its longest runs, and one of all."""
    axes = _axes(found)
    complete = [each for each in found if all(name in each.values for name in axes)]
    if not axes or not complete:
        return []
    by_length = _grouped(complete, lambda each: count(int(each.steps), "step"))
    if len(axes) > 1:
        drawn = _by_line(by_length, axes[1:])
        labels = sorted({label for _, lines in drawn for label in lines})
    else:
        drawn, labels = _by_length(by_length), list(by_length)
    # A label has the same colour in all figures of the search.
    colors = {label: k for k, label in enumerate(labels)}
    return balanced(
        [
            _figure(f"tuning-{run.index}-{k}", axes[0], length, lines, colors, complete[0])
            for k, (length, lines) in enumerate(drawn)
        ]
    )


def _axes(found: Sequence[Tried]) -> list[str]:
    """Return the axes on which several values were tried."""
    return [name for name in TITLES if len({each.values.get(name) for each in found}) > 1]


def _by_line(by_length: Lines, axes: Sequence[str]) -> list[tuple[str, Lines]]:
    return [(name, _grouped(of, lambda each: each.said(axes))) for name, of in by_length.items()]


def _by_length(by_length: Lines) -> list[tuple[str, Lines]]:
    longest = next(iter(by_length))
    alone: tuple[str, Lines] = (longest, {longest: by_length[longest]})
    return [alone, ("each length", by_length)] if len(by_length) > 1 else [alone]


def _grouped(found: Sequence[Tried], name: Callable[[Tried], str]) -> dict[str, list[Tried]]:
    """Group by name, the longest runs first; within a group, sort by setting."""
    groups: dict[str, list[Tried]] = {}
    for each in sorted(found, key=lambda each: (-each.rung, each.setting)):
        groups.setdefault(name(each), []).append(each)
    return groups


def _figure(
    id: str, axis: str, length: str, lines: Lines, colors: Mapping[str, int], best: Tried
) -> Figure:
    drawn = [each for line in lines.values() for each in line]
    places = _places(sorted({each.values[axis] for each in drawn}))
    traces = [
        _trace([_mark(each, axis, places) for each in line], axis, label, colors[label])
        for label, line in lines.items()
    ]
    if best in drawn:
        traces.append(_ring(_mark(best, axis, places)))
    return Figure(
        id,
        f"Held-out accuracy by {TITLES[axis]}, runs of {length}",
        {"data": traces, "layout": _layout(axis, places)},
        _data(drawn, best),
        _caption(drawn, places, best),
        _keys(lines, colors),
        sense="higher is better",
    )


def _keys(lines: Lines, colors: Mapping[str, int]) -> tuple[Key, ...]:
    if len(lines) <= 1:
        return ()
    return tuple(Key(label, color) for label, color in colors.items() if label in lines)


def _data(drawn: Sequence[Tried], best: Tried) -> Data:
    names = list(best.values)
    rows = [
        (*(each.values.get(name) for name in names), each.steps, each.accuracy.value,
         each.accuracy.stderr, each.accuracy.n)
        for each in drawn
    ]  # fmt: skip
    return Data((*names, "steps", "accuracy", "stderr", "seeds"), rows)


def _places(values: Sequence[float]) -> dict[float, float]:
    """Return the place of each value on a logarithmic axis.

    A value of 0 is as far below the lowest positive value as that is below the next."""
    positive = [value for value in values if value > 0]
    if not positive:
        return {value: value for value in values}
    zero = positive[0] ** 2 / positive[1] if len(positive) > 1 else positive[0] / 2
    return {value: value if value > 0 else zero for value in values}


def _layout(axis: str, places: Mapping[float, float]) -> dict[str, Any]:
    ticks = {"tickvals": list(places.values()), "ticktext": [f"{value:g}" for value in places]}
    scale = {"type": "log"} if all(place > 0 for place in places.values()) else {}
    return layout(TITLES[axis], xaxis={**scale, **ticks}, yaxis={"tickformat": ".3~p"})


@dataclass(frozen=True)
class TuningMark:
    """A setting in a figure."""

    x: float
    value: float
    """Value on the x axis, which is 0 where `x` cannot be."""
    accuracy: float | None
    error: float | None
    seeds: int


def _mark(each: Tried, axis: str, places: Mapping[float, float]) -> TuningMark:
    value, accuracy = each.values[axis], each.accuracy
    return TuningMark(
        places[value], value, finite(accuracy.value), error_of(accuracy), accuracy.n or 1
    )


def _trace(marks: Sequence[TuningMark], axis: str, label: str, color: int) -> dict[str, Any]:
    """Return a line with error bars; the point at 0 is not joined to the others."""
    drawn: list[TuningMark | None] = list(marks)
    if marks[0].value == 0 and len(marks) > 1:
        # On a logarithmic axis 0 is infinitely far away: leave a gap in the line.
        drawn.insert(1, None)
    stroke = style(color)
    errors = [m and m.error for m in drawn]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [m and m.x for m in drawn],
        "y": [m and m.accuracy for m in drawn],
        "error_y": {"type": "data", "array": errors, "thickness": 1, "width": 3},
        "customdata": [[f"{m.value:g}", m.seeds] if m else [None, None] for m in drawn],
        "name": plain(label),
        "line": stroke | {"width": 1.5},
        "marker": {"size": 8, "color": stroke["color"]},
        "connectgaps": False,
        "hovertemplate": f"%{{fullData.name}}<br>{TITLES[axis]} %{{customdata[0]}}: %{{y:.2%}}, "
        "seeds: %{customdata[1]}<extra></extra>",
    }


def _ring(mark: TuningMark) -> dict[str, Any]:
    """Return a ring around the best setting."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [mark.x],
        "y": [mark.accuracy],
        "name": "best",
        "hoverinfo": "skip",
        "marker": {
            "symbol": "circle-open",
            "size": 17,
            "color": "var(--ink)",
            "line": {"width": 1.5},
        },
    }


def _caption(drawn: Sequence[Tried], places: Mapping[float, float], best: Tried) -> str:
    said = ["Ring: the best setting."] if best in drawn else []
    if any((each.accuracy.n or 1) > 1 for each in drawn):
        said.append("Bars: standard error over seeds.")
    if places.get(0.0, 0.0) > 0:
        said.append("The leftmost point is at 0.")
    lost = sum(not math.isfinite(each.accuracy.value) for each in drawn)
    if lost:
        said.append(left_out(lost, "setting"))
    return " ".join(said)
