"""The demo: one small ViT, trained with and without SAM on embedded images, everything else the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from samovar import recipes
from samovar.config import MeasureConfig
from samovar.launch import train
from samovar.measure.command import measure_once
from samovar.measure.subject import open_subject
from samovar.records import Record, RunDir
from samovar.runtime import Runtime

TWINS = ("vit-digits", "vit-digits-sam")


def demo(output: Path, seed: int) -> list[RunDir]:
    """Train both twins below `output`, measure their geometry, print them side by side."""
    runs = [train(replace(recipes.get(name).config(), output=output, seed=seed)) for name in TWINS]
    found = [_numbers(run) for run in runs]
    table = Table("", "AdamW", "AdamW + SAM", title=f"digits, seed {seed}")
    for title, name, show in _ROWS:
        table.add_row(title, *(show(records[name]) for records in found))
    Console().print(table)
    print("geometry: last checkpoint, training images without augmentation; more: samovar measure RUN blocks density")
    for run in runs:
        print(f"run: {run.path}")
    return runs


def _numbers(run: RunDir) -> dict[str, Record]:
    """The last record of each name, the demo's measurements among them."""
    config = MeasureConfig(checkpoint="last", threads=1)
    subject = open_subject(str(run.path), config, Runtime(torch.device("cpu"), torch.float32))
    for name in ("hessian", "flatness"):
        measure_once(name, subject, config, run)
    return {record.name: record for record in run.records()}


def _eigenvalue(record: Record) -> str:
    return f"{record.value:.1f} ± {record.residual:.2g}" + ("" if record.converged else " (not converged)")


_ROWS: tuple[tuple[str, str, Callable[[Record], str]], ...] = (
    ("held-out accuracy", "val/accuracy", lambda r: f"{100 * r.value:.1f} %"),
    ("held-out loss", "val/loss", lambda r: f"{r.value:.3f}"),
    ("lambda_max of the Hessian (± residual)", "hessian/lambda_max", _eigenvalue),
    (
        "average loss under weight noise 0.05",
        "sharpness/average_flatness",
        lambda r: f"{r.value:.2f} ± {r.stderr or 0:.2f}",
    ),
)
