"""How far a run is, as `progress.json` in its folder says; without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from samovar.runs.json_files import Damaged, read_object
from samovar.runs.records import RunDir

FILE = "progress.json"
Status = Literal["training", "done"]
_MOST_STEPS = 10**12


@dataclass(frozen=True)
class RunProgress:
    """Steps done, and whether the run has come to its end."""

    status: Status
    """`training` also after an interruption; `done` also after early stopping."""
    step: int = 0
    """Steps that are saved."""
    total: int = 0
    """Steps of the whole run; 0 before its images were opened."""


def write(run: RunDir, progress: RunProgress) -> None:
    """Write how far a run is."""
    run.write_json(FILE, asdict(progress))


def read(run: RunDir) -> RunProgress | None:
    """Return how far a run is; None where it does not say.

    Raises:
        ValueError: the file is damaged."""
    path = run.path / FILE
    if not path.is_file():
        return None
    try:
        values = read_object(path)
        status, step, total = values["status"], int(values["step"]), int(values["total"])
        if status not in get_args(Status):
            raise ValueError(f"its status is none of {', '.join(get_args(Status))}")
        if not 0 <= step <= _MOST_STEPS or not 0 <= total <= _MOST_STEPS:
            raise ValueError("its steps are no counts")
        return RunProgress(status, step, total)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise Damaged(f"{path} cannot be read: {error}; delete it") from error


def unfinished(output: Path) -> list[RunDir]:
    """Return the runs in a folder that have not come to their end, the last written first."""
    files = [path for path in output.glob(f"*/{FILE}") if (path.parent / "config.json").is_file()]
    runs = [RunDir(path.parent) for path in sorted(files, key=_written, reverse=True)]
    return [run for run in runs if (found := read(run)) and found.status != "done"]


def _written(path: Path) -> tuple[int, str]:
    # by name where a coarse clock gives two files one time
    return path.stat().st_mtime_ns, path.parent.name
