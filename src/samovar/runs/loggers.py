"""Further places that get a run's records: TensorBoard, trackio, wandb. Each is an extra of the package."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

from samovar.config import Config, Logger, to_dict
from samovar.runs.records import Record, RunDir, Sink

_PACKAGES: dict[Logger, str] = {
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}


def check_sinks(names: Iterable[Logger]) -> None:
    """Check that the packages behind `--run.loggers` are installed.

    Raises:
        ValueError: says which is not, and how to get it."""
    for name in names:
        if find_spec(_PACKAGES[name]) is None:
            raise ValueError(
                f"--run.loggers {name} needs the {name} package; install it with: pip install samovar[{name}]"
            )


def open_sinks(names: Iterable[Logger], run: RunDir, config: Config) -> list[Sink]:
    """A function per logger that takes a record."""
    check_sinks(names)
    return [_OPENERS[name](run, config) for name in names]


def _tensorboard(run: RunDir, config: Config) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run.path / "tensorboard"))

    def write(record: Record) -> None:
        writer.add_scalar(record.name, record.value, record.where.get("step"))
        writer.flush()

    return write


def _trackio(run: RunDir, config: Config) -> Sink:
    import trackio

    trackio.init(project="samovar", name=run.path.name, config=to_dict(config), resume="allow")
    return _log_to(trackio.log)


def _wandb(run: RunDir, config: Config) -> Sink:
    import wandb

    wandb.init(project="samovar", id=run.path.name, config=to_dict(config), resume="allow")
    return _log_to(wandb.log)


def _log_to(log: Callable[..., Any]) -> Sink:
    def write(record: Record) -> None:
        log({record.name: record.value}, step=record.where.get("step"))

    return write


_OPENERS: dict[Logger, Callable[[RunDir, Config], Sink]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
}
