"""What changed while a run trained: losses, accuracy, sharpness over steps."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samovar.report.drawing.plots import finite, layout, style
from samovar.report.parts import Data, Figure, Group, Key, Missing, Section, balanced, labels_of
from samovar.report.read import RunData, place
from samovar.report.run_names import MANY, Recipe, recipes
from samovar.report.text import clean, count, plain, setting, slug
from samovar.runs.records import Record

MOST_POINTS = 500

# What is not here follows folded away.
_TRAINING = {
    "train/loss": "Training loss, nats",
    "val/loss": "Held-out loss, nats",
    "val/accuracy": "Held-out accuracy",
    "train/contrastive_loss": "Contrastive training loss, nats",
    "val/knn_accuracy": "k-NN accuracy of the features",
    "train/grad_norm": "Gradient norm",
}
_WATCH = {
    "watch/lambda_max": "λ_max of the training loss",
    "watch/sam_sharpness": "Rise of the loss at SAM’s point, nats",
    "watch/grad_norm": "Gradient norm on the watched batch",
}
_SHARES = ("val/accuracy", "val/knn_accuracy")
_FOLDED = {"train/lr": "Learning rate", "train/images_per_second": "Images per second"}
_KNOWN = ("train/skipped", "watch/stability_threshold")


@dataclass(frozen=True)
class Curve:
    """Values over steps, of a run or the mean of a recipe's runs."""

    key: Key
    steps: list[int]
    values: list[float | None]
    low: list[float | None]
    high: list[float | None]
    """Lowest and highest of the recipe's runs; empty for one run."""
    runs: list[int]
    """How many runs are behind a value."""
    hollow: list[bool]
    every: int = 1
    """Log lines averaged into a point."""

    @property
    def left_out(self) -> int:
        """Values that are not finite."""
        return sum(value is None for value in self.values)


def training(runs: Sequence[RunData]) -> Section:
    """Losses, accuracy and gradient norm over steps."""
    names = dict.fromkeys(
        name for run in runs for name in run.records if name.startswith(("train/", "val/"))
    )
    main = [figure(runs, name, _TRAINING[name]) for name in _TRAINING if name in names]
    rest = [
        figure(runs, name, _FOLDED.get(name, clean(name)))
        for name in names
        if name not in (*_TRAINING, *_KNOWN)
    ]
    more = [Group("more-curves", "Learning rate and speed", rest, folded=True)] if rest else []
    lead = "Each figure shows the records as they were written."
    if len(runs) > MANY:
        lead = "Lines are means over the runs of a recipe, bands reach from the lowest to the highest of them."
    untrained = [run for run in runs if not run.trained]
    hint = "Such a folder was measured, or its training has not come to its first record."
    missing = (
        [Missing("training records", labels_of(untrained), ("samovar train RECIPE",), hint)]
        if untrained
        else []
    )
    return Section(
        "training", "Training", lead if main else "", [*main, *more], missing, _objectives(runs)
    )


def watch(runs: Sequence[RunData]) -> Section:
    """Sharpness over steps, beside the edge of stability."""
    present = [name for name in _WATCH if any(name in run.records for run in runs)]
    figures = [figure(runs, name, _WATCH[name], markers=True) for name in present]
    lead = (
        "Measured on one fixed batch without augmentation. Dashed: the λ above which gradient descent on a quadratic "
        "does not converge (2 / learning rate, less with SAM); with Adam-like optimizers it is a landmark only."
    )
    without = [run for run in runs if run.trained and "watch/lambda_max" not in run.records]
    missing = (
        [Missing("sharpness while training", labels_of(without), _retrain(without))]
        if without
        else []
    )
    return Section(
        "watch", "Geometry while training", lead if figures else "", balanced(figures), missing
    )


def _retrain(runs: Sequence[RunData]) -> tuple[str, ...]:
    paths = (shlex.quote(clean(run.path / "config.json", 4000)) for run in runs)
    return tuple(f"samovar train --config {path} --run.watch-every 100" for path in paths)


def figure(runs: Sequence[RunData], name: str, title: str, *, markers: bool = False) -> Figure:
    """A record's values over steps, one line a run, or one a recipe where runs are many."""
    found = curves(runs, name)
    lines = [trace for curve in found for trace in _traces(curve, markers)]
    dashed = _thresholds(runs) if name == "watch/lambda_max" else []
    values = [v for trace in (*lines, *dashed) for v in trace["y"] if v is not None]
    log = bool(values) and min(values) > 0 and max(values) > 20 * min(values)
    axis: dict[str, Any] = {"tickformat": ".0%"} if name in _SHARES else {}
    return Figure(
        slug(name),
        title,
        {
            "data": lines + dashed,
            "layout": layout("step", log_y=values if log else None, yaxis=axis),
        },
        _data(found),
        _caption(found),
        tuple(curve.key for curve in found),
    )


def curves(runs: Sequence[RunData], name: str) -> list[Curve]:
    """The curves of a record name; runs without it have none."""
    having = [run for run in runs if run.series(name)]
    if len(runs) <= MANY:
        return [_thin(_curve([run], run, name)) for run in having]
    return [_thin(_curve(recipe.runs, recipe, name)) for recipe in recipes(having)]


def _curve(runs: Sequence[RunData], whole: RunData | Recipe, name: str) -> Curve:
    at: dict[int, list[Record]] = {}
    for run in runs:
        for record in run.series(name):
            at.setdefault(int(place(record, "step")), []).append(record)
    steps = sorted(at)
    values = [[r.value for r in at[step] if math.isfinite(r.value)] for step in steps]
    several = len(runs) > 1
    return Curve(
        Key(whole.label, whole.color),
        steps,
        [finite(math.fsum(v) / len(v)) if v else None for v in values],
        [finite(min(v)) if v else None for v in values] if several else [],
        [finite(max(v)) if v else None for v in values] if several else [],
        [len(v) for v in values],
        [not all(r.converged for r in at[step]) for step in steps],
    )


def _thin(curve: Curve) -> Curve:
    """The curve by means of consecutive values, where there are more than a figure can show."""
    every = -(-len(curve.steps) // MOST_POINTS)
    if every <= 1:
        return curve
    bins = [slice(start, start + every) for start in range(0, len(curve.steps), every)]
    values, low, high = (
        [_mean(column[b]) for b in bins if column]
        for column in (curve.values, curve.low, curve.high)
    )
    hollow = [any(curve.hollow[b]) for b in bins]
    return Curve(
        curve.key,
        [curve.steps[b][-1] for b in bins],
        values,
        low,
        high,
        [min(curve.runs[b]) for b in bins],
        hollow,
        every,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return finite(float(np.mean(kept))) if kept else None


def _traces(curve: Curve, markers: bool) -> list[dict[str, Any]]:
    line = style(curve.key.color)
    shared = {
        "type": "scatter",
        "x": curve.steps,
        "meta": curve.key.color,
        "name": plain(curve.key.label),
    }
    band = []
    if curve.low:
        edge = shared | {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        filled = {"fill": "tonexty", "fillcolor": line["color"].replace("--run-", "--band-")}
        band = [edge | {"y": curve.low}, edge | {"y": curve.high} | filled]
    symbols = ["circle-open" if hollow else "circle" for hollow in curve.hollow]
    main = shared | {
        "y": curve.values,
        "mode": "lines+markers" if markers or len(curve.steps) == 1 else "lines",
        "line": line,
        "marker": {
            "symbol": symbols,
            "size": 7,
            "color": line["color"],
            "line": {"width": 1.5, "color": line["color"]},
        },
        "connectgaps": False,
        "hovertemplate": "%{fullData.name}<br>step %{x}: %{y:.4g}<extra></extra>",
    }
    return [*band, main]


def _thresholds(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    traces = []
    for curve in curves(runs, "watch/stability_threshold"):
        (trace,) = _traces(
            Curve(curve.key, curve.steps, curve.values, [], [], curve.runs, curve.hollow), False
        )
        trace |= {
            "line": trace["line"] | {"dash": "dash", "width": 1.25},
            "opacity": 0.75,
            "mode": "lines",
        }
        traces.append(
            trace | {"hovertemplate": "edge of stability<br>step %{x}: %{y:.4g}<extra></extra>"}
        )
    return traces


def _data(found: Sequence[Curve]) -> Data:
    if any(curve.low for curve in found):
        rows = [
            (curve.key.label, step, value, low, high, n)
            for curve in found
            for step, value, low, high, n in zip(
                curve.steps,
                curve.values,
                curve.low or curve.values,
                curve.high or curve.values,
                curve.runs,
                strict=True,
            )
        ]
        return Data(("recipe", "step", "mean", "lowest", "highest", "runs"), rows)
    return Data(
        ("run", "step", "value", "converged"),
        [
            (curve.key.label, step, value, not hollow)
            for curve in found
            for step, value, hollow in zip(curve.steps, curve.values, curve.hollow, strict=True)
        ],
    )


def _caption(found: Sequence[Curve]) -> str:
    said = []
    every = sorted({curve.every for curve in found if curve.every > 1})
    if every:
        said.append(f"Each point is the mean of up to {every[-1]} log lines.")
    if any(any(curve.hollow) for curve in found):
        said.append("Hollow: not converged.")
    said += [
        f"{count(curve.left_out, 'value')} of {curve.key.label} not finite, left out."
        for curve in found
        if curve.left_out
    ]
    return " ".join(said)


def _objectives(runs: Iterable[RunData]) -> list[str]:
    names = ("loss", "label_smoothing", "data.mixup", "data.cutmix")
    notes = []
    for name in names:
        found: dict[str, list[str]] = {}
        for run in runs:
            if run.trained:
                found.setdefault(setting(run.config.get(name, "not stated")), []).append(run.label)
        if len(found) > 1:
            groups = "; ".join(
                f"{value} ({', '.join(labels[:4])})" for value, labels in found.items()
            )
            notes.append(
                f"Training losses are of different objectives, which do not compare: {name} {groups}."
            )
    return notes
