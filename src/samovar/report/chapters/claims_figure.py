"""Draw claims as a forest plot: the contrast with its interval, and the paper's value."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from samovar.report.drawing.plots import TOOLBAR_HEIGHT, finite, layout
from samovar.report.parts import Data, Figure
from samovar.report.read import number
from samovar.report.text import clean, plain
from samovar.runs.records import Record

_ROW = 62
"""Pixels of a claim: its interval, and two lines of text above it."""

_LINE = 44
"""Letters of a line of text; so many fit on a phone."""

_CAPTION = (
    "Dots with their intervals are ours, diamonds the paper’s. The dotted line is the threshold of "
    "most claims: 1 for a ratio, 0 for a difference."
)


def forests(records: Sequence[Record], id: str, title: str) -> list[Figure]:
    """Return a forest plot for each unit of the claims; claims without a number are left out.

    Ratios lie on a logarithmic axis.

    Args:
        id: begins the ids of the figures."""
    units: dict[str, list[Record]] = {}
    for record in records:
        if math.isfinite(record.value):
            units.setdefault(clean(record.settings.get("unit", "")), []).append(record)
    return [
        _forest(found, f"{id}-{place}", f"{title}: {_axis(unit)}", unit)
        for place, (unit, found) in enumerate(units.items())
    ]


def _axis(unit: str) -> str:
    return "ratios" if unit == "x" else f"differences in {unit}" if unit else "differences"


def _forest(records: Sequence[Record], id: str, title: str, unit: str) -> Figure:
    # an axis of categories is drawn from below, and readers start at the top
    rows = list(reversed(records))
    names = [clean(record.where.get("claim", "")) for record in rows]
    ends = [record.interval or (None, None) for record in rows]
    paper = [number(record.settings.get("paper")) for record in rows]
    ours = {
        "type": "scatter",
        "mode": "markers",
        "x": [finite(record.value) for record in rows],
        "y": names,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_reach(high, r.value) for (_, high), r in zip(ends, rows, strict=True)],
            "arrayminus": [_reach(r.value, low) for (low, _), r in zip(ends, rows, strict=True)],
        },
        "marker": {"color": "var(--run-0)", "size": 8},
        "customdata": [clean(record.settings.get("verdict", "")) for record in rows],
        "hovertemplate": "%{y}<br>here %{x:.4g}: %{customdata}<extra></extra>",
    }
    published = {
        "type": "scatter",
        "mode": "markers",
        "x": [finite(value) for value in paper],
        "y": names,
        "marker": {"color": "var(--ink)", "size": 9, "symbol": "diamond-open"},
        "hovertemplate": "%{y}<br>paper %{x:.4g}<extra></extra>",
    }
    ratio = unit == "x"
    # shapes stand at the value itself, on a logarithmic axis too
    threshold = 1.0 if ratio else 0.0
    line = {"type": "line", "x0": threshold, "x1": threshold, "yref": "paper", "y0": 0, "y1": 1}
    axis: dict[str, Any] = {"type": "log", "dtick": "D2", "tickformat": "~g"} if ratio else {}
    axes = layout(
        "ratio" if ratio else unit,
        xaxis={"showgrid": True, **axis},
        yaxis={
            "type": "category",
            "showgrid": False,
            "showticklabels": False,
            "range": [-0.4, len(rows) - 0.3],
        },
        # A claim beside its interval would leave a phone no room for the interval.
        annotations=[_text(name) for name in names],
        shapes=[line | {"line": {"color": "var(--axis)", "dash": "dot", "width": 1}}],
    )
    values = [
        (r.where.get("claim"), r.value, *(r.interval or (None, None)), p)
        for r, p in zip(rows, paper, strict=True)
    ]
    return Figure(
        id,
        title,
        {"data": [ours, published], "layout": axes},
        Data(("claim", "value", "low", "high", "paper"), values),
        caption=_CAPTION,
        height=max(TOOLBAR_HEIGHT, 110 + _ROW * len(rows)),
        wide=True,
        sense="further right is more for the claim",
    )


def _text(name: str) -> dict[str, Any]:
    """Return the text of a claim above its interval, in lines that fit on a phone."""
    lines = textwrap.wrap(name, _LINE, max_lines=2, placeholder=" …")
    return {
        "text": "<br>".join(map(plain, lines)),
        "xref": "paper",
        "x": 0,
        "y": name,
        "xanchor": "left",
        "yanchor": "bottom",
        "xshift": 4,
        "yshift": 6,
        "align": "left",
        "showarrow": False,
        "font": {"color": "var(--ink)", "size": 12},
    }


def _reach(more: float | None, less: float | None) -> float | None:
    """Return the length of one arm of an interval; None where it has no end."""
    return None if more is None or less is None else finite(more - less)
