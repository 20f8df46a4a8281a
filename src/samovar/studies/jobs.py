"""Jobs of a study: runs with the measurements taken of them, and how flags change both.

Nothing in this file needs torch; `samovar.studies.running` does the jobs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samovar import config as configs
from samovar.config import Config, MeasureConfig
from samovar.recipes import replay


@dataclass(frozen=True)
class Measured:
    """A measurement of a run."""

    name: str
    config: MeasureConfig


@dataclass(frozen=True)
class Job:
    """A run and the measurements taken of it."""

    config: Config
    measurements: tuple[Measured, ...]
    trunk: Path | None = field(default=None, kw_only=True)
    """Folder of the run from whose last checkpoint this one branches; None starts anew."""

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.config.output / self.config.name

    @property
    def title(self) -> str:
        """Short name for progress lines."""
        return self.config.name


def command_of(job: Job) -> Sequence[str]:
    """Return the command that trains the job's run by itself, in the folder a study looks in."""
    return replay.command(job.config)


# --- settings


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """Return a config with some settings replaced, given by dotted name."""
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        config = replace(
            config, **{head: changed(getattr(config, head), {rest: value}) if rest else value}
        )
    return config


def shorter(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return the changed config, its warm-up shortened with the epochs.

    The warm-up shrinks in proportion where the changes give fewer epochs and no warm-up."""
    short: Config = changed(config, changes)
    share = short.epochs / config.epochs
    # warm-up is counted in steps, so a shorter run could end before it is over
    if share < 1:
        given = [name.removeprefix("optim.") for name in changes]
        short = replace(short, optim=configs.shorter_schedule(short.optim, share, given))
    return short


def check_measure(config: MeasureConfig) -> None:
    """Check settings of measurements, naming their flags `--measure.X` as studies spell them.

    Raises:
        ValueError: the flag, the value given, the allowed values."""
    try:
        configs.validate_measure(config)
    except ValueError as error:
        raise ValueError(str(error).replace("--", "--measure.", 1)) from None


def refuse_torchrun(
    verb: str, advice: str = "give --jobs N without torchrun, and N GPUs are used"
) -> None:
    """Refuse to run under torchrun, since a study starts its own processes.

    Raises:
        ValueError: the process is one of several ranks."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"samovar {verb} starts its own processes; {advice}")
