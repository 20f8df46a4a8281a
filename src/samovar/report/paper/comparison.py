"""Draw the Pareto figure of a paper: a panel for each number."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samovar.report.chapters.comparison import UPWARD, RelativePoint, front, is_comparison, points
from samovar.report.chapters.comparison_table import BUDGETS
from samovar.report.drawing.labels import LETTER, Box, places
from samovar.report.paper.panels import TWO, escaped, ink
from samovar.report.read import RunData

_MARKERS = {"steps": "o", "time": "D"}
_SIZE, _LETTER = 6.5, 3.2  # height and width of the names' letters, in points


def pareto(runs: Sequence[RunData]) -> Figure | None:
    """Draw the relatives of SAM by result and processor time, from the first comparison."""
    run = next((run for run in runs if is_comparison(run)), None)
    found = {key: drawn for key in UPWARD if run and (drawn := points(run, key))}
    if not found:
        return None
    figure = Figure(figsize=(TWO, 2.8), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    named: dict[Axes, list[RelativePoint]] = {}
    for axes, (key, drawn) in zip(panels, found.items(), strict=True):
        named[axes] = _draw(axes, drawn, key)
        title = str(drawn[0].record.where.get("column", ""))
        axes.set_ylabel(title.replace("λ_max", r"$\lambda_{max}$"))
        axes.set_xlabel("processor time ÷ plain")
    # The places of names depend on the size of the panels, which a first drawing settles.
    figure.draw_without_rendering()
    for axes, drawn in named.items():
        _name(axes, drawn)
    return figure


def _draw(axes: Axes, found: Sequence[RelativePoint], key: str) -> list[RelativePoint]:
    """Draw points, bars and the front; return the points that need a name."""
    best = front(found, upward=UPWARD[key])
    axes.step(
        [*(point.worth for point in best), found[-1].worth],
        [*(point.value for point in best), best[-1].value],
        where="post",
        color="0.6",
        linestyle=":",
    )
    for point in found:
        axes.errorbar(
            point.worth,
            point.value,
            [[point.value - point.low], [point.high - point.value]],
            fmt=_MARKERS[point.budget],
            color=ink(BUDGETS[point.budget].color),
            markersize=3,
            elinewidth=0.6,
        )
    axes.margins(0.12)
    if key == "lambda_max":
        axes.set_yscale("log")
    # A relative has the same name under both budgets: under the second only the best are named.
    return [point for point in found if point.budget == "steps" or point in best]


def _name(axes: Axes, found: Sequence[RelativePoint]) -> None:
    """Write names beside their points so that they do not overlap."""
    panel, to_panel = axes.get_window_extent(), axes.transData + axes.transAxes.inverted()
    scale = _LETTER / LETTER  # points per pixel of the page
    width, height = (side * 72 / axes.figure.dpi / scale for side in (panel.width, panel.height))
    boxes = [
        Box(
            point.relative,
            point.worth,
            point.value,
            *to_panel.transform((point.worth, point.value)),
        )
        for point in found
    ]
    line = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.5", "shrinkA": 0, "shrinkB": 2}
    for box, place in zip(boxes, places(boxes, width, height), strict=True):
        axes.annotate(
            escaped(box.text),
            (box.x, box.y),
            (place.dx * scale, -place.dy * scale),
            textcoords="offset points",
            fontsize=_SIZE,
            ha="center",
            va="center",
            arrowprops=line if place.far else None,
        )
