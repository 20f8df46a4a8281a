"""The Pareto figure of a paper: one panel a number."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samovar.report.chapters.comparison import UPWARD, Point, front, is_comparison, points
from samovar.report.chapters.comparison_table import BUDGETS
from samovar.report.drawing.labels import LETTER, Box, places
from samovar.report.drawing.palette import LIGHT
from samovar.report.read import RunData

_MARKERS = {"steps": "o", "time": "D"}
_SIZE, _LETTER = 6.5, 3.2  # points: height of the names' letters, width of one


def pareto(runs: Sequence[RunData]) -> Figure | None:
    """Each relative of SAM by what it came to and its processor time; of the first comparison among
    the runs."""
    run = next((run for run in runs if is_comparison(run)), None)
    found = {key: drawn for key in UPWARD if run and (drawn := points(run, key))}
    if not found:
        return None
    figure = Figure(figsize=(6.75, 2.8), layout="constrained")
    named: dict[Axes, list[Point]] = {}
    for axes, (key, drawn) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        named[axes] = _draw(axes, drawn, key)
        axes.set_ylabel(
            str(drawn[0].record.where.get("column", "")).replace("λ_max", r"$\lambda_{max}$")
        )
        axes.set_xlabel("processor time ÷ plain")
    figure.draw_without_rendering()  # settles how large the panels are
    for axes, points_of in named.items():
        _name(axes, points_of)
    return figure


def _draw(axes: Axes, found: Sequence[Point], key: str) -> list[Point]:
    """Points, bars and the front; the points that want a name."""
    best = front(found, upward=UPWARD[key])
    axes.step(
        [*(point.worth for point in best), found[-1].worth], [*(point.value for point in best), best[-1].value],
        where="post", color="0.6", linestyle=":",
    )  # fmt: skip
    for point in found:
        bars = [[point.value - point.low], [point.high - point.value]]
        axes.errorbar(point.worth, point.value, bars, fmt=_MARKERS[point.budget], color=LIGHT[BUDGETS[point.budget][2]],
                      markersize=3, elinewidth=0.6)  # fmt: skip
    axes.margins(0.12)
    if key == "lambda_max":
        axes.set_yscale("log")
    return [point for point in found if point.budget == "steps" or point in best]


def _name(axes: Axes, found: Sequence[Point]) -> None:
    """Names beside their points, none over another."""
    panel, to_panel = axes.get_window_extent(), axes.transData + axes.transAxes.inverted()
    scale = _LETTER / LETTER  # points to a pixel of the page
    size = [side * 72 / axes.figure.dpi / scale for side in (panel.width, panel.height)]
    ends = [(point.worth, point.value) for point in found]
    boxes = [
        Box(point.relative, *end, *to_panel.transform(end))
        for point, end in zip(found, ends, strict=True)
    ]
    line = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.5", "shrinkA": 0, "shrinkB": 2}
    for box, place in zip(boxes, places(boxes, *size), strict=True):
        axes.annotate(
            box.text.replace("$", r"\$"), (box.x, box.y), (place.dx * scale, -place.dy * scale),
            textcoords="offset points", fontsize=_SIZE, ha="center", va="center",
            arrowprops=line if place.far else None,
        )  # fmt: skip
