"""Draw the claims of a reproduction as a forest plot: each contrast with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from samovar.report.chapters.reproduction import CLAIM
from samovar.report.paper.panels import TWO, escaped
from samovar.report.read import RunData, number
from samovar.runs.records import Record

_ROW, _FRAME = 0.19, 0.55  # inches of a claim, and of a panel's title and axis
_COLORS = {"held": "#1b7837", "not held": "#b2182b"}
"""Colours by verdict; what is undecided is grey."""
_UNDECIDED = "0.55"
_TITLES = {"x": "ratio"}


def claims(runs: Sequence[RunData]) -> Figure | None:
    """Draw the claims of all studies that are given, a panel for each unit."""
    units: dict[str, list[Record]] = {}
    for run in runs:
        for record in run.records.get(CLAIM, []):
            if math.isfinite(record.value):
                units.setdefault(str(record.settings.get("unit", "")), []).append(record)
    if not units:
        return None
    sizes = [len(found) * _ROW + _FRAME for found in units.values()]
    figure = Figure(figsize=(TWO, math.fsum(sizes) + 0.25), layout="constrained")
    panels = figure.subplots(len(units), 1, squeeze=False, height_ratios=sizes)[:, 0]
    for axes, (unit, found) in zip(panels, units.items(), strict=True):
        _forest(axes, found, unit)
    kinds = {**_COLORS, "undecided": _UNDECIDED}
    marks = [
        Line2D([], [], color=ink, marker="o", ls="", ms=4, label=v) for v, ink in kinds.items()
    ]
    paper = Line2D([], [], color="black", marker="D", mfc="none", ls="", ms=4, label="the paper")
    figure.legend(handles=[*marks, paper], loc="outside upper center", ncols=4)
    return figure


def _forest(axes: Axes, records: Sequence[Record], unit: str) -> None:
    # the first claim on top
    for height, record in enumerate(reversed(records)):
        ink = _COLORS.get(str(record.settings.get("verdict")), _UNDECIDED)
        if record.interval:
            # an arm without an end is not drawn
            ends = [end if math.isfinite(end) else record.value for end in record.interval]
            axes.plot(ends, [height, height], color=ink, linewidth=1.2)
        axes.plot([record.value], [height], color=ink, marker="o", markersize=4)
        published = number(record.settings.get("paper"))
        if published is not None and math.isfinite(published):
            axes.plot([published], [height], color="black", marker="D", mfc="none", markersize=4)
    names = [
        escaped(str(record.where.get("claim", ""))).replace("λ_max", r"$\lambda_{max}$")
        for record in reversed(records)
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(_TITLES.get(unit, unit or "difference"))
    if unit == "x":
        axes.set_xscale("log")
    axes.axvline(1 if unit == "x" else 0, color="0.6", linestyle=":", linewidth=0.8)
    axes.grid(axis="x", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
