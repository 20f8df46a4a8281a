"""Test built-in loggers, those of other packages, and what is refused."""

import json
import sys
import tomllib
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace

import pytest

from samovar import config as configs
from samovar import plugins
from samovar.config import LOGGERS, Config, RunConfig
from samovar.runs import loggers
from samovar.runs.loggers import check_loggers, open_loggers
from samovar.runs.records import Record, RunDir
from tests.conftest import ROOT

taken: list[tuple[str, Record]] = []


def make(run: RunDir, config: Config):
    """Open a logger, as another package would."""
    return lambda record: taken.append((f"{run.path.name} of {config.recipe}", record))


@pytest.fixture
def added(monkeypatch):
    """Install a package that adds the logger `notebook`."""
    point = EntryPoint("notebook", f"{__name__}:make", "samovar.loggers")
    wanted = point.group, point.name
    found = lambda group, name=point.name: [point] if (group, name) == wanted else []  # noqa: E731
    monkeypatch.setattr(plugins, "entry_points", found)
    plugins.names.cache_clear()
    taken.clear()
    yield
    plugins.names.cache_clear()


class FakeStore:
    """MLflow's client and its store in one; it notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        self.calls.append(("experiment", name))
        return "e1"

    def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
        self.calls.append(("create", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def update_run(self, run_id: str, status: str) -> None:
        self.calls.append(("update", run_id, status))

    def set_terminated(self, run_id: str) -> None:
        self.calls.append(("end", run_id))

    def log_batch(self, run_id: str, params: list) -> None:
        self.calls.append(("params", run_id, dict(params)))

    def log_metric(self, run_id: str, key: str, value: float, step: int | None) -> None:
        self.calls.append(("metric", run_id, key, value, step))

    def named(self, kind: str) -> list[tuple]:
        return [call[1:] for call in self.calls if call[0] == kind]


@pytest.fixture
def mlflow(monkeypatch):
    """Replace MLflow by a fake, and collect the functions it wants called at exit."""
    store, module = FakeStore(), ModuleType("mlflow")
    module.__spec__ = ModuleSpec("mlflow", None)
    module.MlflowClient = lambda: store
    module.get_tracking_uri = lambda: "http://store"
    entities, exceptions = ModuleType("mlflow.entities"), ModuleType("mlflow.exceptions")
    entities.Param = lambda key, value: (key, value)
    exceptions.MlflowException = type("MlflowException", (Exception,), {})
    for each in (module, entities, exceptions):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    ends: list[tuple] = []
    monkeypatch.setattr(
        loggers, "atexit", SimpleNamespace(register=lambda function, *args: ends.append((function, args)))
    )
    return SimpleNamespace(store=store, module=module, exceptions=exceptions, ends=ends)


def test_the_table_the_settings_and_the_extras_name_the_same_loggers() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert tuple(loggers._LOGGERS) == LOGGERS
    assert set(LOGGERS) <= set(extras)


def test_mlflow_gets_settings_once_and_records_with_their_steps(tmp_path, mlflow) -> None:
    run, config = RunDir.create(tmp_path, "r"), Config(seed=7)
    (sink,) = open_loggers(["mlflow"], run, config)
    sink(Record("train/loss", 0.5, where={"step": 3}))
    assert mlflow.store.named("create") == [("e1", "r")]
    batches = [params for _, params in mlflow.store.named("params")]
    assert all(len(params) <= 100 for params in batches)
    sent = {name: value for params in batches for name, value in params.items()}
    assert sent == {name: str(value) for name, value in configs.flatten(config).items()}
    assert mlflow.store.named("metric") == [("r1", "train/loss", 0.5, 3)]
    ((end, args),) = mlflow.ends
    end(*args)
    assert mlflow.store.named("end") == [("r1",)]


def test_a_resumed_run_goes_on_in_its_mlflow_run_of_the_same_store(tmp_path, mlflow) -> None:
    run = RunDir.create(tmp_path, "r")
    open_loggers(["mlflow"], run, Config())
    open_loggers(["mlflow"], run, Config(run=RunConfig(keep=5)))
    assert len(mlflow.store.named("create")) == 1
    assert mlflow.store.named("update") == [("r1", "RUNNING")]
    mlflow.module.get_tracking_uri = lambda: "http://another"
    open_loggers(["mlflow"], run, Config())
    assert len(mlflow.store.named("create")) == 2
    assert json.loads((run.path / "mlflow.json").read_text())["tracking_uri"] == "http://another"


def test_a_store_that_mlflow_cannot_use_is_one_line(tmp_path, mlflow) -> None:
    def fail(name: str) -> None:
        raise mlflow.exceptions.MlflowException("no such server.\nmore")

    mlflow.store.get_experiment_by_name = fail
    with pytest.raises(
        ValueError, match=r"^--run.loggers mlflow cannot use the store http://store: no such server; set"
    ):
        open_loggers(["mlflow"], RunDir.create(tmp_path, "r"), Config())


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(name: str, monkeypatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=rf"^--run.loggers {name} needs .*: pip install samovar\[{name}\]$"):
        check_loggers([name])


def test_a_logger_of_another_package_gets_the_records(tmp_path, added) -> None:
    config = Config(recipe="mine", run=RunConfig(loggers=("notebook",)))
    configs.validate(config)
    check_loggers(config.run.loggers)
    (sink,) = open_loggers(config.run.loggers, RunDir.create(tmp_path, "r"), config)
    record = Record("val/accuracy", 0.9)
    sink(record)
    assert taken == [("r of mine", record)]


def test_an_unknown_logger_is_met_with_the_nearest(added) -> None:
    for given, near in (("tensorbord", "tensorboard"), ("notebok", "notebook")):
        with pytest.raises(ValueError, match=rf"^--run.loggers {given} is unknown; did you mean {near}\?$"):
            configs.validate(Config(run=RunConfig(loggers=(given,))))
    with pytest.raises(ValueError, match="no installed package"):
        check_loggers(["nothing"])
