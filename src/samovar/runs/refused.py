"""Take back the folder of a run that is refused, so that its name is free for the next try."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from samovar.runs.records import RunDir


@contextmanager
def removed_if_refused(
    run: RunDir,
    *,
    others: Collection[str] = (),
    keep: Callable[[RunDir], bool] | None = None,
) -> Iterator[None]:
    """Remove the folder of a new run if a ValueError or TypeError ends it before work is saved.

    These are what the command line answers with exit code 2; other ends can be continued.

    Args:
        others: names of files and folders that lay in the folder before; they stay.
        keep: tells whether the folder holds work that must stay; `holds_training` by default."""
    try:
        yield
    except (ValueError, TypeError):
        if not (keep or holds_training)(run):
            for path in set(run.path.glob("*")) - {run.path / name for name in others}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not others:
                run.path.rmdir()
        raise


def holds_training(run: RunDir) -> bool:
    """Return whether a run has saved steps, finished trials, or a list of unreadable images."""
    return (
        any(run.checkpoints.glob("step-*"))
        or any(run.path.glob("grid/*/trial.json"))
        or run.bad_files.exists()
        # measurements before the first step say nothing of the training
        or any("measurement" not in record.settings for record in run.records())
    )


def holds_records(run: RunDir) -> bool:
    """Return whether a folder holds the records of a measurement."""
    return any(run.records())
