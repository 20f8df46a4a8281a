"""Open a run folder: a new one, one that is continued, or whichever `--resume auto` finds."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from samovar import config as configs
from samovar.config import Config
from samovar.runs import checkpoint, progress
from samovar.runs.json_files import read_object
from samovar.runs.progress import RunProgress
from samovar.runs.records import RunDir, timestamp
from samovar.runs.refused import is_refused
from samovar.runtime import Runtime


def new_run(config: Config, runtime: Runtime, *, take_over: bool) -> tuple[RunDir, str]:
    """Make a run's folder and save its config; the same folder on all ranks.

    The folder of a run of this name that was refused is used again.

    Args:
        take_over: use a folder of the run's name that has no config yet, as a crash leaves behind.

    Returns:
        The run, and a line for the reader if another run has its name.

    Raises:
        ValueError: the folder cannot be made."""
    paths: list[Any] = [None]
    if runtime.is_main:
        name = config.name or f"{config.recipe}-seed{config.seed}-{timestamp()}"
        run = RunDir(config.output / name)
        left_over = is_refused(run)
        if left_over:
            run.bad_files.unlink()
        if left_over or (take_over and run.path.is_dir() and not run.config_path.exists()):
            run.checkpoints.mkdir(exist_ok=True)
            run.arrays.mkdir(exist_ok=True)
        else:
            run = RunDir.create(config.output, name)
        run.write_json(run.config_path.name, configs.to_dict(config))
        progress.write(run, RunProgress("training"))
        paths[0] = run.path
    run = RunDir(_from_main(paths, runtime)[0])
    if not config.name or run.path.name == config.name:
        return run, ""
    taken = config.output / config.name
    return run, (
        f"{taken} exists, so this run goes into {run.path}; "
        f"--resume {taken} or --resume auto would continue it"
    )


def begun(config: Config, runtime: Runtime) -> tuple[RunDir | None, bool]:
    """Find the run of `config.name` as the main rank sees it, so that all ranks agree.

    Returns:
        The run, None if it was not begun; and whether it has come to its end."""
    found: list[Any] = [None, False]
    if runtime.is_main:
        run = RunDir(config.output / config.name)
        if run.config_path.is_file():
            found = [run.path, _is_finished(run)]
    path, finished = _from_main(found, runtime)
    return (RunDir(path) if path else None), finished


def _is_finished(run: RunDir) -> bool:
    """Return whether a run says so, and still has the checkpoint of its last step."""
    found = progress.read(run)
    saved = checkpoint.steps_saved(run.checkpoints)
    return bool(found and found.status == "done" and saved and saved[-1] == found.step)


def finished_line(run: RunDir) -> str:
    """Return one line on a run that has come to its end."""
    found = progress.read(run)
    steps = f" at step {found.step:,}" if found else ""
    best = run.checkpoints / "best.json"
    values = read_object(best) if best.is_file() else {}
    accuracy = values.get("val/accuracy")
    words = f", best val accuracy {100 * accuracy:.2f} %" if accuracy is not None else ""
    return f"{run.path} has come to its end{steps}{words}; nothing is left to do"


def _from_main(values: list[Any], runtime: Runtime) -> list[Any]:
    """Return the main rank's values on every rank."""
    if runtime.world_size > 1:
        dist.broadcast_object_list(values, src=0)
    return values
