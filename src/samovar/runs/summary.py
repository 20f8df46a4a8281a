"""What a run folder says of itself in one line: recipe, progress, accuracy, lambda_max, size.

Imports no torch, so `samovar list runs` and `samovar show RUN` answer at once."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from samovar import config as configs
from samovar.runs import progress
from samovar.runs.records import Record, RunDir, from_json

ACCURACIES = ("val/accuracy", "accuracy/top1", "val/knn_accuracy")
"""Records of held-out accuracy; the first that a run has counts."""
LAMBDA_MAX = "hessian/lambda_max"


@dataclass(frozen=True)
class Summary:
    """A run in short."""

    path: Path
    recipe: str
    """Empty for a folder of measurements, and for one whose settings cannot be read."""
    written: float
    """When it last wrote records, progress or settings; seconds since 1970."""
    step: int
    """Steps that are saved."""
    total: int
    """Steps in all; 0 where the run does not say."""
    status: str
    """`training` (also after an interruption), `done`, `measured` for a folder that was not
    trained, or `damaged`."""
    accuracy: float | None
    """Best held-out accuracy, as a share."""
    curve: tuple[float, ...]
    """Held-out accuracy of each evaluation, in the order in which they were recorded."""
    lambda_max: float | None
    """Newest largest Hessian eigenvalue."""
    measured: tuple[str, ...]
    """Names of the measurements that were made."""
    size: int
    """Bytes of all files."""

    @property
    def share(self) -> float:
        """Return the share of its steps that is saved, 0 to 1."""
        return 1.0 if self.status == "done" else self.step / self.total if self.total else 0.0


def runs_in(folder: Path) -> list[RunDir]:
    """Return the runs that lie directly in a folder, sorted by name.

    Raises:
        ValueError: there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the one that --output of train named")
    return [RunDir(path.parent) for path in sorted(folder.glob("*/config.json"))]


def summarize(run: RunDir) -> Summary:
    """Return a run in short; damage is part of the result, so one bad run hides no others."""
    damaged, recipe = False, ""
    found: progress.RunProgress | None = None
    try:
        recipe = configs.load(run.config_path).recipe
        found = progress.read(run)
    except ValueError:
        damaged = True
    curves: dict[str, list[float]] = {name: [] for name in ACCURACIES}
    lambda_max, measured = None, dict[str, None]()
    for record in _records(run):
        if record.name in curves and record.where.get("split", "val") == "val":
            curves[record.name].append(record.value)
        if record.name == LAMBDA_MAX:
            lambda_max = record.value
        if measurement := record.settings.get("measurement"):
            measured[str(measurement)] = None
    curve = next((values for values in curves.values() if values), [])
    trained = found is not None or any(run.checkpoints.glob("step-*"))
    status = found.status if found else "training" if trained else "measured"
    return Summary(
        path=run.path,
        recipe=recipe,
        written=_written(run),
        step=found.step if found else 0,
        total=found.total if found else 0,
        status="damaged" if damaged else status,
        accuracy=max(filter(math.isfinite, curve), default=None),
        curve=tuple(curve),
        lambda_max=lambda_max,
        measured=tuple(measured),
        size=_size(run.path),
    )


def _records(run: RunDir) -> Iterator[Record]:
    """Yield the records that a summary reads, without the lines that are none."""
    if not run.records_path.is_file():
        return
    wanted = (*(f'"{name}"' for name in (*ACCURACIES, LAMBDA_MAX)), '"measurement"')
    with run.records_path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            # a long run has many thousand records of its loss; those are not decoded
            if any(name in line for name in wanted):
                try:
                    yield from_json(line)
                except (ValueError, TypeError):
                    continue  # a line that a crash cut short; `samovar report` counts these


def _written(run: RunDir) -> float:
    files = (run.config_path, run.records_path, run.path / progress.FILE)
    return max(path.stat().st_mtime for path in files if path.is_file())


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # a run that trains renames its files meanwhile
            path = Path(place) / name
            total += path.stat().st_size if path.is_file() else 0
    return total
