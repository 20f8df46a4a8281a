"""The demo: one small ViT, trained with and without SAM on embedded images, everything else the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from samovar import recipes
from samovar.launch import train
from samovar.records import RunDir

TWINS = ("vit-digits", "vit-digits-sam")


def demo(output: Path, seed: int) -> list[RunDir]:
    """Train both twins below `output` and print them side by side."""
    runs = [train(replace(recipes.get(name).config(), output=output, seed=seed)) for name in TWINS]
    table = Table("", "AdamW", "AdamW + SAM", title=f"held-out digits, seed {seed}")
    for title, name, show in _ROWS:
        table.add_row(title, *(show(_last(run, name)) for run in runs))
    Console().print(table)
    for run in runs:
        print(f"run: {run.path}")
    return runs


def _last(run: RunDir, name: str) -> float:
    return [record.value for record in run.records(name)][-1]


_ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("accuracy", "val/accuracy", lambda v: f"{100 * v:.1f} %"),
    ("loss", "val/loss", lambda v: f"{v:.3f}"),
)
