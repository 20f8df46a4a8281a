"""The table of `samovar list runs`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from samovar.runs.summary import Summary, runs_in, summarize
from samovar.runtime.lock import is_locked

SORTS: dict[str, Callable[[Summary], Any]] = {
    "when": lambda run: -run.written,
    "name": lambda run: run.path.name,
    "recipe": lambda run: (run.recipe, run.path.name),
    "progress": lambda run: -run.share,
    "accuracy": lambda run: -_number(run.accuracy, -math.inf),
    "lambda_max": lambda run: _number(run.lambda_max, math.inf),
    "size": lambda run: -run.size,
}
"""What `--sort` names: the newest, most accurate, flattest or largest run comes first."""


def lines(folder: Path, sort: str = "when", text: str = "") -> list[str]:
    """Return the lines of the table.

    Args:
        folder: holds the runs.
        sort: a name of `SORTS`; runs without that number come last.
        text: only runs whose name or recipe has it; empty takes all.

    Raises:
        ValueError: there is no such folder."""
    found = [summarize(run) for run in runs_in(folder)]
    kept = [run for run in found if text in run.path.name or text in run.recipe]
    if not kept:
        what = f"no run of {len(found)} in {folder} has {text!r} in its name or recipe"
        return [f"{what if found else f'no runs in {folder}'}; `samovar train RECIPE` makes one"]
    rows = [_row(run) for run in sorted(kept, key=SORTS[sort])]
    return _aligned([list(HEAD), *rows])


HEAD = ("name", "recipe", "when", "progress", "best accuracy", "lambda_max", "size")


def _row(run: Summary) -> list[str]:
    return [
        run.path.name,
        run.recipe,
        f"{datetime.fromtimestamp(run.written).astimezone():%Y-%m-%d %H:%M}",
        state(run),
        "" if run.accuracy is None else f"{run.accuracy:.2%}".replace("%", " %"),
        "" if run.lambda_max is None else f"{run.lambda_max:.4g}",
        size_text(run.size),
    ]


def state(run: Summary) -> str:
    """Return how a run stands, such as `done` or `stopped at 45 %`."""
    if run.status != "training":
        return run.status
    share = f" {math.floor(run.share * 100)} %" if run.total else ""
    if is_locked(run.path):
        return f"training{share}"
    return f"stopped at{share}" if share else "stopped"


def size_text(size: int) -> str:
    """Format bytes as `812 kB`, `41 MB` or `3.2 GB`."""
    if size < 999_500:
        return f"{math.ceil(size / 1e3)} kB"
    return f"{size / 1e6:.0f} MB" if size < 999.5e6 else f"{size / 1e9:.1f} GB"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _number(value: float | None, otherwise: float) -> float:
    return otherwise if value is None or math.isnan(value) else value
