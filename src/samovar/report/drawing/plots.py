"""Make what the figures of the page share: layouts, lines of runs, numbers that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from samovar.report.parts import Key
from samovar.report.read import RunData
from samovar.report.run_names import MANY
from samovar.report.text import plain
from samovar.runs.records import Record

MODEBAR = {
    "bgcolor": "rgba(0,0,0,0)",
    "color": "var(--muted)",
    "activecolor": "var(--ink)",
    "orientation": "v",
}

TOOLBAR_WIDTH = 30
"""Pixels at the right of a plot that its toolbar needs."""

TOOLBAR_HEIGHT = 210
"""Pixels of a plot in which the buttons of the toolbar stand in one column."""


def legend(runs: Iterable[RunData]) -> tuple[Key, ...]:
    """Return a key for each run, or for each recipe where runs are many."""
    labels = {run.group or run.label: run.color for run in runs}
    return tuple(Key(label, color) for label, color in labels.items())


def style(color: int) -> dict[str, Any]:
    """Return the line of a run; after `MANY` runs colours repeat with another dash."""
    dashes = ("solid", "dash", "dot", "dashdot")
    return {
        "color": f"var(--run-{color % MANY})",
        "dash": dashes[color // MANY % len(dashes)],
        "width": 2,
    }


def finite(value: float | None) -> float | None:
    """Round to seven digits; return None for NaN and infinities, which JSON cannot hold."""
    if value is None or not math.isfinite(value):
        return None
    # Seven digits are more than a screen shows, and keep the page small.
    return float(f"{value:.7g}")


def layout(
    x: str = "", *, log_y: Sequence[float | None] | None = None, **more: Any
) -> dict[str, Any]:
    """Return the layout of a plane figure; the title of the figure names the y axis.

    Args:
        x: the title of the x axis.
        log_y: the values on the y axis, if that is logarithmic.
        more: further keys, merged into those here."""
    # Colours are CSS variables and backgrounds are clear, so that plots follow the page's theme.
    line = {
        "gridcolor": "var(--grid)",
        "linecolor": "var(--axis)",
        "zeroline": False,
        "automargin": True,
        "ticks": "",
    }
    base: dict[str, Any] = {
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "var(--muted)"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        # The toolbar stands in the margin, not on the plot.
        "margin": {"l": 8, "r": TOOLBAR_WIDTH, "t": 10, "b": 8},
        # The page draws the legend, whose entries it can hide together with their runs.
        "showlegend": False,
        "modebar": MODEBAR,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--axis)",
            "font": {"color": "var(--ink)"},
        },
        "xaxis": line | {"showline": True, "showgrid": False},
        "yaxis": line | (_log_axis([v for v in log_y if v]) if log_y else {}),
    }
    if x:
        base["xaxis"]["title"] = {"text": x, "standoff": 8, "font": {"size": 12}}
    for name, values in more.items():
        base[name] = base.get(name, {}) | values if isinstance(values, dict) else values
    return base


def _log_axis(values: Sequence[float]) -> dict[str, Any]:
    """Return a logarithmic axis whose ticks are as dense as its range needs."""
    decades = math.log10(max(values) / min(values))
    # Plain numbers are easier to read, but many decades of them are too wide.
    wide = decades > 5 or max(values) >= 1e5 or min(values) < 1e-4
    return {
        "type": "log",
        "dtick": _log_step(values, decades),
        "exponentformat": "power",
        **({} if wide else {"tickformat": "~g"}),
    }


def _log_step(values: Sequence[float], decades: float) -> int | str:
    """Return Plotly's step between ticks: in powers of ten, at some digits, or linear (`L`)."""
    if decades > 2:
        return max(1, round(decades / 6))
    if decades > 0.3:
        return "D2" if decades > 0.6 else "D1"
    # Below a factor of two, an axis may hold no round digit at all and be left without a number.
    rough = (max(values) - min(values)) / 4 or max(values) / 10
    power = 10.0 ** math.floor(math.log10(rough))
    return f"L{power * max(digit for digit in (1, 2, 5) if digit * power <= rough * 1.001):g}"


def record_trace(run: RunData, marks: Sequence[tuple[Any, Record]]) -> dict[str, Any]:
    """Return a line with markers and error bars; hollow markers did not converge.

    Args:
        run: the run whose colour and label the line has.
        marks: pairs of a place on the x axis and a record."""
    line = style(run.color)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [x for x, _ in marks],
        "y": [finite(r.value) for _, r in marks],
        "name": plain(run.label),
        "meta": run.color,
        "line": line | {"width": 1.5},
        "marker": {
            "symbol": ["circle" if r.converged else "circle-open" for _, r in marks],
            "size": 8,
            "color": line["color"],
            "line": {"width": 1.5, "color": line["color"]},
        },
        "error_y": {
            "type": "data",
            "array": [error_of(r) for _, r in marks],
            "thickness": 1,
            "width": 3,
        },
        "hovertemplate": "%{fullData.name}<br>%{x}: %{y:.4g}<extra></extra>",
    }


def error_of(record: Record) -> float | None:
    """Return the standard error of a record, or else its residual, rounded for a plot."""
    return finite(raw_error(record))


def raw_error(record: Record) -> float | None:
    """Return the standard error of a record, or else its residual."""
    return record.stderr if record.stderr is not None else record.residual
