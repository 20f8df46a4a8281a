"""Define the numbers of the headline: where each is found and how it is shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from samovar.report.drawing.plots import raw_error
from samovar.report.read import RunData, number, place
from samovar.report.text import number as shown
from samovar.report.text import percent, setting, with_error
from samovar.runs.records import Record
from samovar.words import duration

SPEED = "train/images_per_second"


@dataclass(frozen=True)
class Metric:
    """A column of the headline table."""

    title: str
    find: Callable[[RunData], Record | None]
    about: str
    measurement: str = ""
    """Its name in `samovar measure`; empty for what training records."""
    always: bool = True
    """True if the column is there although no run has the number."""
    share: bool = False
    """True if it is the share of images that are classified correctly."""
    show: Callable[[Record], tuple[str, str]] = lambda r: with_error(r.value, raw_error(r))
    """Format value and error."""


def _accuracy(record: Record) -> tuple[str, str]:
    return percent(record.value, record.stderr)


def _latest(name: str) -> Callable[[RunData], Record | None]:
    return lambda run: run.latest(name)


def _best_accuracy(run: RunData) -> Record | None:
    found = [r for r in run.series("val/accuracy") if math.isfinite(r.value)]
    return _as_measured(max(found, key=lambda r: r.value), run) if found else None


def _last_accuracy(run: RunData) -> Record | None:
    found = run.series("val/accuracy")
    return _as_measured(found[-1], run) if found else None


def _as_measured(record: Record, run: RunData) -> Record:
    """Return a record of training with the settings that measurements write themselves."""
    return replace(
        record, settings={"images": record.n or "", "source": run.task} | record.settings
    )


def training_time(run: RunData) -> Record | None:
    """Return the seconds of the training loop without evaluation.

    They are the images of each log line divided by its images per second."""
    speeds = run.series(SPEED)
    batch = number(run.config.get("data.batch_size"))
    steps = [0.0, *(place(r, "step") for r in speeds)]
    # The first log line covers the steps from 0; `steps` has one entry more than `speeds`.
    spent = [
        (b - a, r.value) for a, b, r in zip(steps, steps[1:], speeds, strict=False) if r.value > 0
    ]
    if not spent or not batch:
        return None
    seconds = math.fsum(done * batch / speed for done, speed in spent)
    where = {"step": int(steps[-1])}
    return Record("training time", seconds, "s", n=len(spent), settings=_hardware(run), where=where)


def _speed(run: RunData) -> Record | None:
    records = run.series(SPEED)
    # The median leaves out the slow first steps, in which libraries choose their kernels.
    values = [r.value for r in records if math.isfinite(r.value)]
    if not values:
        return None
    return Record(
        f"median of {SPEED}",
        float(np.median(values)),
        "images/s",
        n=len(values),
        where={"step": records[-1].where["step"]},
        settings=_hardware(run),
    )


def _hardware(run: RunData) -> dict[str, str]:
    """Return the facts on which a speed depends."""
    names = ("device", "gpu", "cpu", "dtype", "threads", "world_size")
    found = {name: run.provenance.get(name) for name in names}
    return {name: setting(value) for name, value in found.items() if value not in (None, "")}


METRICS = (
    Metric(
        "Accuracy, best",
        _best_accuracy,
        "on held-out images, best of all evaluations, ± standard error",
        show=_accuracy,
    ),
    Metric(
        "Accuracy, last",
        _last_accuracy,
        "on held-out images, last evaluation, ± standard error",
        show=_accuracy,
    ),
    Metric(
        "λ_max",
        _latest("hessian/lambda_max"),
        "largest eigenvalue of the Hessian by magnitude, ± Ritz residual",
        "hessian",
    ),
    Metric(
        "Average flatness",
        _latest("flatness/average_flatness"),
        "loss under Gaussian weight noise in nats, ± standard error over draws",
        "flatness",
    ),
    Metric(
        "Clean loss",
        _latest("flatness/clean_loss"),
        "the same loss without noise, in nats",
        "flatness",
    ),
    Metric(
        "Training time",
        training_time,
        "training loop without evaluation, computed from images per second",
        show=lambda r: (duration(r.value), ""),
    ),
    Metric("Images/s", _speed, "median over log lines", show=lambda r: (shown(r.value, 3), "")),
    Metric(
        "Accuracy, measured",
        _latest("accuracy/top1"),
        "top-1 accuracy of the checkpoint, ± standard error",
        "accuracy",
        always=False,
        share=True,
        show=_accuracy,
    ),
    Metric(
        "Trace",
        _latest("hessian/trace"),
        "trace of the Hessian, ± standard error",
        "trace",
        always=False,
    ),
    Metric(
        "SAM sharpness",
        _latest("sharpness/sam"),
        "loss increase at SAM’s perturbed weights, in nats",
        "sharpness",
        always=False,
    ),
    Metric(
        "NTK κ",
        _latest("ntk/condition_number"),
        "condition number of the neural tangent kernel",
        "ntk",
        always=False,
    ),
    Metric(
        "Corrupted images",
        _latest("robustness/mean_corruption_accuracy"),
        "accuracy on corrupted images, mean over corruptions and severities",
        "robustness",
        always=False,
        share=True,
        show=_accuracy,
    ),
    Metric(
        "PGD attack",
        _latest("robustness/pgd_accuracy"),
        "accuracy on attacked images",
        "attack",
        always=False,
        share=True,
        show=_accuracy,
    ),
)
