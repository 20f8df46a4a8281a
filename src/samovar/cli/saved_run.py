"""Find the run that a command line goes on with, and its settings before flags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from samovar import config as configs
from samovar.cli.flags import Flag, Line
from samovar.cli.settings import Start, parse_settings
from samovar.config import Config
from samovar.models import trust
from samovar.runs import progress
from samovar.runtime.lock import is_locked


def last_unfinished(line: Line, own: Sequence[Flag]) -> Path:
    """Return the run below `--output` that was trained last and has not come to its end.

    Raises:
        ValueError: there is none, or each rank would look for itself."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--resume needs a path under torchrun, or auto with a recipe and --name")
    output = parse_settings(Config(), line.settings, "train --resume", own).output
    found = progress.unfinished(output)
    free = [run for run in found if not is_locked(run.path)]
    if not free:
        busy = f" but {found[0].path}, which is being trained" if found else ""
        raise ValueError(
            f"--resume finds no unfinished run in {output}{busy}; give the folder of a run"
        )
    return free[0].path


def of_run(resumed: Path, line: Line, flag: str = "--resume") -> Start:
    """Return the settings of a run that a flag names.

    Raises:
        ValueError: it is no run, or the command line names a recipe or a config too."""
    if line["--config"]:
        raise ValueError(f"{flag} and --config exclude each other; give one of them")
    if line.words:
        raise ValueError(f"{flag} takes the recipe from the run; leave {' '.join(line.words)} out")
    saved = resumed / "config.json"
    if not saved.is_file():
        raise ValueError(
            f"{flag} {resumed} is not a run: it has no config.json; give the folder of a run"
        )
    return Start(configs.load(saved), ("--resume", str(resumed)))


def refuse_code(config: Config, run: Path | None) -> None:
    """Refuse code that only a file names.

    Args:
        config: the settings, changed by the flags.
        run: the folder that they come from; None for a file behind `--config`.

    Raises:
        ValueError: as `trust.refuse`."""
    trust.refuse(config.model.name, run / "config.json" if run else "--config")
