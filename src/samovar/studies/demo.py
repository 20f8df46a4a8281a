"""Demo: one small ViT trained with and without SAM on embedded images, all else the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.table import Table

from samovar import recipes
from samovar.config import MeasureConfig
from samovar.measure.command import measure_once, open_subjects
from samovar.report import write
from samovar.runs.records import Record, RunDir
from samovar.runs.saddle import saddles
from samovar.runtime import Runtime
from samovar.runtime.heartbeat import doing
from samovar.runtime.terminal import console
from samovar.train.command import train

TWINS = ("vit-digits", "vit-digits-sam")
MEASURED = (
    "hessian", "blocks", "flatness", "landscape", "activations", "attention", "predictions",
    "accuracy", "robustness",
)  # fmt: skip
SETTINGS = MeasureConfig(
    checkpoint="last", threads=1, points=21, processes=1, corruption_images=300
)


def demo(output: Path, seed: int) -> list[RunDir]:
    """Train both twins below `output`, measure them, print a table and write a report."""
    # one seed, so that both start from the same weights and see the same batches
    runs = [train(replace(recipes.get(name).config(), output=output, seed=seed)) for name in TWINS]
    found = [_numbers(run) for run in runs]
    table = Table("", "AdamW", "AdamW + SAM", title=f"digits, seed {seed}")
    for title, name, show in _ROWS:
        table.add_row(title, *(show(records[name]) for records in found))
    console().print(table)
    for run, records in zip(runs, found, strict=True):
        for text in saddles(list(records.values())):
            print(f"{run.path.name}: {text}.")
    print(
        "geometry: last checkpoint, training images without augmentation; "
        "corruptions: 19 at 5 severities"
    )
    for run in runs:
        print(f"run: {run.path}")
    with doing("writing the report"):
        page = write([run.path for run in runs], output / f"demo-seed{seed}.html")
    print(f"report: {page}")
    return runs


def _numbers(run: RunDir) -> dict[str, Record]:
    """Measure a run, and return its last record of each name."""
    print(f"measuring {run.path.name}: {', '.join(MEASURED)}", flush=True)
    runtime = Runtime(torch.device("cpu"), torch.float32)
    for name, subject in open_subjects(str(run.path), MEASURED, SETTINGS, runtime).items():
        measure_once(name, subject, SETTINGS, run)
    return {record.name: record for record in run.records()}


def _percent(record: Record) -> str:
    return f"{100 * record.value:.1f} %"


def _eigenvalue(record: Record) -> str:
    failed = "" if record.converged else " (not converged)"
    return f"{record.value:.1f} ± {record.residual:.2g}{failed}"


_ROWS: tuple[tuple[str, str, Callable[[Record], str]], ...] = (
    ("held-out accuracy", "val/accuracy", _percent),
    ("held-out loss", "val/loss", lambda r: f"{r.value:.3f}"),
    ("accuracy on corrupted images", "robustness/mean_corruption_accuracy", _percent),
    ("lambda_max of the Hessian (± residual)", "hessian/lambda_max", _eigenvalue),
    (
        "average loss under weight noise 0.05",
        "flatness/average_flatness",
        lambda r: f"{r.value:.2f} ± {r.stderr or 0:.2f}",
    ),
)
"""Rows of the table: title, record name, how the record is written."""
