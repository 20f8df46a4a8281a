"""Loggers: other places that receive a run's records, built in or added by other packages.

Another package adds a logger under the entry point group `samovar.loggers`: a function of the run
folder and the config that returns a function of one record. Loggers are imported when used."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

from samovar import plugins
from samovar.config import Config, flatten, to_dict
from samovar.runs.json_files import read_object
from samovar.runs.records import Record, RunDir, Sink


def check_loggers(names: Iterable[str]) -> None:
    """Check that the packages behind `--run.loggers` are installed.

    Raises:
        ValueError: names the first that is not, and the command that installs it."""
    for name in names:
        if name not in _LOGGERS:
            plugins.load("loggers", name)
        elif find_spec(name) is None:
            raise ValueError(
                f"--run.loggers {name} needs the {name} package; "
                f"install it with: pip install samovar[{name}]"
            )


def open_loggers(names: Iterable[str], run: RunDir, config: Config) -> list[Sink]:
    """Open loggers for a run; each returned function takes one record.

    Raises:
        ValueError: as `check_loggers`."""
    names = list(names)
    check_loggers(names)
    openers = [_LOGGERS.get(name) or plugins.load("loggers", name) for name in names]
    return [opener(run, config) for opener in openers]


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


def _mlflow(run: RunDir, config: Config) -> Sink:
    """Log to the store that MLFLOW_TRACKING_URI names; a resumed run continues its MLflow run.

    Raises:
        ValueError: MLflow cannot use the store."""
    import mlflow
    from mlflow.exceptions import MlflowException

    store = mlflow.get_tracking_uri()
    try:
        # not mlflow.log_metric: it logs to the process's one active run, which may be the user's
        client = mlflow.MlflowClient()
        run_id = _mlflow_run(client, store, run, config)
    except MlflowException as error:
        reason = str(error).partition("\n")[0].strip().rstrip(".")
        raise ValueError(
            f"--run.loggers mlflow cannot use the store {store}: {reason}; "
            "set MLFLOW_TRACKING_URI to that of a server"
        ) from error
    atexit.register(client.set_terminated, run_id)

    def write(record: Record) -> None:
        client.log_metric(run_id, record.name, record.value, step=record.where.get("step"))

    return write


def _mlflow_run(client: Any, store: str, run: RunDir, config: Config) -> str:
    """Return the id of the MLflow run of a run folder; create it, with the settings, if needed."""
    from mlflow.entities import Param

    path = run.path / "mlflow.json"
    kept = read_object(path) if path.is_file() else {}
    if kept.get("tracking_uri") == store:
        client.update_run(kept["run_id"], status="RUNNING")
        return str(kept["run_id"])
    found = client.get_experiment_by_name("samovar")
    experiment = found.experiment_id if found else client.create_experiment("samovar")
    run_id = str(client.create_run(experiment, run_name=run.path.name).info.run_id)
    settings = [Param(name, str(value)) for name, value in flatten(config).items()]
    for first in range(0, len(settings), 100):  # a server takes at most 100 in one request
        client.log_batch(run_id, params=settings[first : first + 100])
    run.write_json(path.name, {"tracking_uri": store, "run_id": run_id})
    return run_id


# The name of a built-in logger is also that of its extra and of the package it needs.
_LOGGERS: dict[str, Callable[[RunDir, Config], Sink]] = {
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
}
