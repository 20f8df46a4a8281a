"""Show sharpness over the steps of training, beside the edge of stability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samovar.report.chapters.curves import curve_figure, curves, line_trace
from samovar.report.parts import Chapter, Missing, balanced, labels_of
from samovar.report.read import RunData
from samovar.report.text import count

_WATCHED = {
    "watch/lambda_max": "λ_max of the training loss",
    "watch/sam_sharpness": "SAM sharpness (loss increase), nats",
    "watch/grad_norm": "Gradient norm on the watched batch",
}

_LEAD = (
    "Measured on one fixed batch without augmentation. The dashed line is the λ_max above which "
    "gradient descent on a quadratic diverges (2 / learning rate; lower with SAM). For Adam-like "
    "optimizers it is only a landmark."
)


def watch(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter with the curves of `--run.watch-every`."""
    present = [name for name in _WATCHED if any(name in run.records for run in runs)]
    figures = [
        curve_figure(
            runs,
            name,
            _WATCHED[name],
            markers=True,
            landmarks=_thresholds(runs) if name == "watch/lambda_max" else (),
        )
        for name in present
    ]
    lead = _LEAD if figures else ""
    return Chapter(
        "watch", "Geometry while training", lead, balanced(figures), _missing(runs), _saddles(runs)
    )


def _saddles(runs: Sequence[RunData]) -> list[str]:
    """Return a sentence for each run whose largest eigenvalue by magnitude is below 0 somewhere."""
    below = {
        run.label: sum(r.value + (r.residual or 0) < 0 for r in run.series("watch/lambda_max"))
        for run in runs
    }
    return [
        f"{label}: λ_max, the eigenvalue of largest magnitude, is negative at "
        f"{count(steps, 'step')}, where the weights are no minimum of the loss; it is not to be "
        "compared with a positive one."
        for label, steps in below.items()
        if steps
    ]


def _thresholds(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return a dashed line for each curve of the edge of stability."""
    # Where the learning rate is 0 the edge is infinite: there the line has a gap.
    traces = []
    for curve in curves(runs, "watch/stability_threshold"):
        trace = line_trace(curve)
        traces.append(
            trace
            | {
                "line": trace["line"] | {"dash": "dash", "width": 1.25},
                "opacity": 0.75,
                "mode": "lines",
                "hovertemplate": "edge of stability<br>step %{x}: %{y:.4g}<extra></extra>",
            }
        )
    return traces


def _missing(runs: Sequence[RunData]) -> list[Missing]:
    """Return that the runs were trained without the watch."""
    without = [run for run in runs if run.trained and "watch/lambda_max" not in run.records]
    hint = "It is recorded only during training, with --run.watch-every."
    return [Missing("sharpness while training", labels_of(without), (), hint)] if without else []
