"""Draw a record's values over steps: a line per run, or per recipe where runs are many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samovar.report.chapters.curve_epochs import epoch_axis, epochs_said
from samovar.report.drawing.plots import finite, layout, style
from samovar.report.parts import Data, Figure, Key
from samovar.report.read import RunData, number, place
from samovar.report.run_names import MANY, Recipe, recipes
from samovar.report.text import left_out, plain, slug
from samovar.runs.records import Record

MOST_POINTS = 500
"""The most points of a curve; longer curves show means of consecutive points."""

_SHARES = ("val/accuracy", "val/knn_accuracy")

_SENSES = {
    **dict.fromkeys(("train/loss", "train/contrastive_loss", "val/loss"), "lower is better"),
    **dict.fromkeys(_SHARES, "higher is better"),
    **dict.fromkeys(("watch/lambda_max", "watch/sam_sharpness"), "lower is flatter"),
    "train/images_per_second": "higher is faster",
}

# Records of single batches, whose noise would hide the course of the curve.
_NOISY = ("train/loss", "train/contrastive_loss", "train/grad_norm", "train/images_per_second")

_SMOOTH_FROM = 40
"""Curves with fewer points are not smoothed."""


@dataclass(frozen=True)
class CurvePoint:
    """The value at a step: of one run, or the mean of a recipe's runs."""

    step: int
    value: float | None
    """None where it is not finite."""
    low: float | None
    """Lowest value of the recipe's runs."""
    high: float | None
    """Highest value of the recipe's runs."""
    runs: int
    """Number of runs with a finite value."""
    converged: bool


@dataclass(frozen=True)
class Curve:
    """Values over steps, of a run or of a recipe."""

    key: Key
    points: list[CurvePoint]
    banded: bool
    """True for several runs: a band then spans their lowest to highest values."""
    every: int = 1
    """Number of log lines averaged into a point."""
    best: float | None = None
    """Step of the best checkpoint of a run, on curves of held-out images."""

    @property
    def gaps(self) -> int:
        """Return the number of values that are not finite."""
        return sum(point.value is None for point in self.points)


def curves(runs: Sequence[RunData], name: str) -> list[Curve]:
    """Return the curves of a record name; runs without the record have none."""
    # The number of all runs decides, so that every figure of a page has the same lines.
    having = [run for run in runs if run.series(name)]
    if len(runs) <= MANY:
        return [_thinned(_curve([run], run, name)) for run in having]
    return [_thinned(_curve(recipe.runs, recipe, name)) for recipe in recipes(having)]


def _curve(runs: Sequence[RunData], whole: RunData | Recipe, name: str) -> Curve:
    at: dict[int, list[Record]] = {}
    for run in runs:
        for record in run.series(name):
            at.setdefault(int(place(record, "step")), []).append(record)
    points = [_point(step, at[step]) for step in sorted(at)]
    best = number(runs[0].best.get("step")) if len(runs) == 1 and name.startswith("val/") else None
    return Curve(Key(whole.label, whole.color), points, banded=len(runs) > 1, best=best)


def _point(step: int, records: Sequence[Record]) -> CurvePoint:
    """Return the point of the records of all runs at one step."""
    converged = all(record.converged for record in records)
    values = [record.value for record in records if math.isfinite(record.value)]
    if not values:
        return CurvePoint(step, None, None, None, 0, converged)
    mean = finite(math.fsum(values) / len(values))
    return CurvePoint(step, mean, finite(min(values)), finite(max(values)), len(values), converged)


def _thinned(curve: Curve) -> Curve:
    """Replace consecutive points by their mean if there are more than a figure can show."""
    # Means keep the height of a noisy curve; every n-th point would keep its noise.
    every = -(-len(curve.points) // MOST_POINTS)
    if every <= 1:
        return curve
    bins = [curve.points[start : start + every] for start in range(0, len(curve.points), every)]
    return replace(curve, points=[_merged(points) for points in bins], every=every)


def _merged(points: Sequence[CurvePoint]) -> CurvePoint:
    """Return the mean of consecutive points, placed at the last of them."""
    return CurvePoint(
        step=points[-1].step,
        value=_mean_of_known([point.value for point in points]),
        low=_mean_of_known([point.low for point in points]),
        high=_mean_of_known([point.high for point in points]),
        runs=min(point.runs for point in points),
        converged=all(point.converged for point in points),
    )


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return finite(float(np.mean(known))) if known else None


def curve_figure(
    runs: Sequence[RunData],
    name: str,
    title: str,
    *,
    markers: bool = False,
    landmarks: Sequence[dict[str, Any]] = (),
) -> Figure:
    """Draw the values of a record over steps.

    Args:
        runs: the runs; those without the record are left out.
        name: of the record.
        title: of the figure, which names the y axis.
        markers: draw a marker at each value.
        landmarks: further lines of Plotly, for comparison."""
    found = curves(runs, name)
    smooth = name in _NOISY
    lines = [trace for curve in found for trace in _traces(curve, markers, smooth)]
    traces = [*lines, *landmarks]
    values = [v for trace in traces for v in trace["y"] if v is not None]
    # A logarithmic axis shows values of different size; it needs positive ones.
    log = bool(values) and min(values) > 0 and max(values) > 20 * min(values)
    axis: dict[str, Any] = {"tickformat": ".0%"} if name in _SHARES else {}
    axes = layout("step", log_y=values if log else None, yaxis=axis)
    having = [run for run in runs if run.series(name)]
    last = max((point.step for curve in found for point in curve.points), default=0)
    epochs = epoch_axis(having, last)
    if epochs:
        axes["xaxis2"] = epochs
        # Plotly draws an axis only where a trace lies on it.
        traces.append({"type": "scatter", "x": [None], "y": [None], "xaxis": "x2"})
    said = [] if epochs else [epochs_said(having)]
    return Figure(
        slug(name),
        title,
        {"data": traces, "layout": axes},
        _data(found),
        " ".join(filter(None, [_caption(found, smooth, markers), *said])),
        tuple(curve.key for curve in found),
        sense=_SENSES.get(name, ""),
    )


def _traces(curve: Curve, markers: bool, smooth: bool) -> list[dict[str, Any]]:
    """Return a curve with its band, or with the recorded line behind the smoothed one."""
    line = line_trace(curve, markers)
    window = _window(curve) if smooth else 1
    if window == 1:
        return [*_band(curve), line]
    raw = line | {"opacity": 0.4, "line": line["line"] | {"width": 1}}
    mean = {"y": smoothed(line["y"], window), "mode": "lines", "hoverinfo": "skip"}
    # Hovering tells what was recorded.
    return [raw, {key: line[key] for key in line if key != "hovertemplate"} | mean]


def _window(curve: Curve) -> int:
    """Return how many neighbouring points are averaged, an odd number; 1 for none."""
    n = len(curve.points)
    if curve.banded or n < _SMOOTH_FROM:
        return 1
    return min(25, max(5, n // 20)) // 2 * 2 + 1


def smoothed(values: Sequence[float | None], window: int) -> list[float | None]:
    """Return the mean of each value and its neighbours; gaps stay.

    Towards the start, where curves are steep, the window shrinks and stays centred. At the end,
    where they are flat, it keeps its half before the value.

    Args:
        values: None where there is a gap.
        window: how many values are averaged, an odd number."""
    reach = [min(window // 2, k) for k in range(len(values))]
    return [
        None if value is None else _mean_of_known(values[k - r : k + r + 1])
        for k, (value, r) in enumerate(zip(values, reach, strict=True))
    ]


def _shared(curve: Curve) -> dict[str, Any]:
    """Return what the line of a curve and the edges of its band have in common."""
    return {
        "type": "scatter",
        "x": [point.step for point in curve.points],
        "meta": curve.key.color,
        "name": plain(curve.key.label),
    }


def _band(curve: Curve) -> list[dict[str, Any]]:
    """Return the lower and upper edge of the band of several runs, with the area between filled."""
    if not curve.banded:
        return []
    color = style(curve.key.color)["color"].replace("--run-", "--band-")
    edge = _shared(curve) | {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    low = {"y": [point.low for point in curve.points]}
    high = {"y": [point.high for point in curve.points], "fill": "tonexty", "fillcolor": color}
    return [edge | low, edge | high]


def line_trace(curve: Curve, markers: bool = False) -> dict[str, Any]:
    """Return the line of a curve; markers are hollow where an iteration stopped early."""
    line = style(curve.key.color)
    every = markers or len(curve.points) == 1
    best = None if every else _best(curve)
    sizes = [0] * len(curve.points)
    if best is not None:
        sizes[best] = 11
    return _shared(curve) | {
        "y": [point.value for point in curve.points],
        "mode": "lines" if best is None and not every else "lines+markers",
        "line": line,
        "marker": {
            "symbol": ["circle" if point.converged else "circle-open" for point in curve.points],
            "size": 7 if best is None else sizes,
            "opacity": 1,
            "color": line["color"],
            "line": {"width": 1.5 if best is None else 0, "color": line["color"]},
        },
        "connectgaps": False,
        "hovertemplate": "%{fullData.name}<br>step %{x}: %{y:.4g}<extra></extra>",
    }


def _best(curve: Curve) -> int | None:
    """Return the place of the best checkpoint among the points, or of those that hold it."""
    if curve.best is None:
        return None
    return next((k for k, point in enumerate(curve.points) if point.step >= curve.best), None)


def _data(found: Sequence[Curve]) -> Data:
    pairs = [(curve.key.label, point) for curve in found for point in curve.points]
    if any(curve.banded for curve in found):
        return Data(
            ("recipe", "step", "mean", "lowest", "highest", "runs"),
            [(label, p.step, p.value, p.low, p.high, p.runs) for label, p in pairs],
        )
    return Data(
        ("run", "step", "value", "converged"),
        [(label, p.step, p.value, p.converged) for label, p in pairs],
    )


def _caption(found: Sequence[Curve], smooth: bool, markers: bool) -> str:
    said = []
    windows = {_window(curve) for curve in found} - {1} if smooth else set()
    if windows:
        of = "" if len(windows) == 1 else "up to "
        said.append(
            f"Thick lines: means of {of}{max(windows)} neighbouring points; thin lines: what was "
            "recorded."
        )
    if not markers and any(_best(curve) is not None and len(curve.points) > 1 for curve in found):
        said.append("Marker: the best checkpoint.")
    every = max((curve.every for curve in found), default=1)
    if every > 1:
        said.append(f"Each point is the mean of up to {every} log lines.")
    if any(not point.converged for curve in found for point in curve.points):
        said.append("Hollow markers: not converged.")
    said += [
        left_out(curve.gaps, "value", f" of {curve.key.label}") for curve in found if curve.gaps
    ]
    return " ".join(said)
