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

    These are what the command line answers with exit code 2; other ends can be continued. A list
    of unreadable images stays, since the refusal names it; `is_refused` tells such a folder.

    Args:
        others: names of files and folders that lay in the folder before; they stay.
        keep: tells whether the folder holds work that must stay; `holds_training` by default."""
    try:
        yield
    except (ValueError, TypeError):
        if not (keep or holds_training)(run):
            stay = {run.bad_files, *(run.path / name for name in others)}
            for path in set(run.path.glob("*")) - stay:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not any(run.path.iterdir()):
                run.path.rmdir()
        raise


def is_refused(run: RunDir) -> bool:
    """Return whether a folder is what a refused run left behind: a list of unreadable images."""
    return run.bad_files.is_file() and list(run.path.iterdir()) == [run.bad_files]


def holds_training(run: RunDir) -> bool:
    """Return whether a run has records of training, saved steps or finished trials."""
    return (
        any(run.checkpoints.glob("step-*"))
        or any(run.path.glob("grid/*/trial.json"))
        # measurements before the first step say nothing of the training
        or any("measurement" not in record.settings for record in run.records())
    )


def holds_records(run: RunDir) -> bool:
    """Return whether a folder holds the records of a measurement."""
    return any(run.records())
