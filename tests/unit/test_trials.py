"""Test trials: trained once, then read back; the same however often stopped; one folder, one trial."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from samovar import recipes
from samovar.config import OptimConfig, RunConfig, SamConfig
from samovar.data.sources import open_source
from samovar.runs.records import RunDir
from samovar.runtime.workers import Stopped
from samovar.train import loop, trials
from samovar.train.fit import Interrupted
from samovar.train.trials import Trial, eval_every, run_trial, run_trials

CONFIG = replace(
    recipes.get("vit-digits-sam").config(),
    steps=24,
    optim=OptimConfig(lr=1e-3, warmup_steps=4),
    run=RunConfig(log_every=5, threads=1),
)


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """Return a list that grows by one with every optimizer step."""
    taken: list[int] = []
    update = loop.update
    monkeypatch.setattr(loop, "update", lambda *args: (taken.append(1), update(*args))[1])
    return taken


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Trial:
    return run_trial(CONFIG, tmp_path_factory.mktemp("trials") / "a")


def stop_at(step: int, monkeypatch) -> None:
    """Send this process SIGINT when training logs `step`."""
    fit = trials.fit

    def interrupted(*args, **options):
        for event in fit(*args, **options):
            if (event.kind, event.step) == ("train", step):
                os.kill(os.getpid(), signal.SIGINT)
            yield event

    monkeypatch.setattr(trials, "fit", interrupted)


def result(trial: Trial) -> tuple:
    return trial.accuracy, trial.loss, trial.steps, trial.finite


def test_a_trial_is_the_last_evaluation_at_the_final_step(undisturbed) -> None:
    (accuracy,) = RunDir(undisturbed.folder).records("val/accuracy")
    (loss,) = RunDir(undisturbed.folder).records("val/loss")
    assert accuracy.where["step"] == undisturbed.steps == 24
    assert (accuracy.value, loss.value) == (undisturbed.accuracy, undisturbed.loss)
    assert undisturbed.finite
    assert undisturbed.seconds > 0


def test_what_is_left_of_a_trial_is_small(undisturbed) -> None:
    files = [path for path in undisturbed.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "classes.json", "config.json", "provenance.json", "records.jsonl", "trial.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in files) < 20_000


def test_a_finished_trial_is_read_back_and_not_repeated(undisturbed, steps) -> None:
    again = run_trial(CONFIG, undisturbed.folder)
    assert result(again) == result(undisturbed)
    assert again.seconds == undisturbed.seconds
    assert steps == []


def test_a_stopped_trial_goes_on_and_ends_as_if_it_had_not_been_stopped(
    tmp_path, undisturbed, steps, monkeypatch
) -> None:
    with monkeypatch.context() as patched:
        stop_at(10, patched)
        with pytest.raises(Interrupted):
            run_trial(CONFIG, tmp_path / "a")
    stopped = len(steps)
    assert 10 <= stopped <= 11
    assert "finite" not in json.loads((tmp_path / "a" / "trial.json").read_text())
    assert json.loads((tmp_path / "a" / "trial.json").read_text())["seconds"] > 0
    (tmp_path / "a" / "trial.json").write_text('{"seconds": 1000.0}')
    ended = run_trial(CONFIG, tmp_path / "a")
    assert result(ended) == result(undisturbed)
    assert len(steps) == 24
    assert 1000 < ended.seconds < 1100, "both parts count"


def test_a_folder_of_another_trial_is_refused(undisturbed) -> None:
    other = replace(CONFIG, optim=replace(CONFIG.optim, lr=0.5))
    with pytest.raises(ValueError, match="holds a trial with --optim.lr 0.001, not 0.5; give another folder"):
        run_trial(other, undisturbed.folder)
    harmless = replace(CONFIG, name="other", run=replace(CONFIG.run, eval_every=3, keep=7))
    assert result(run_trial(harmless, undisturbed.folder)) == result(undisturbed)


def test_a_diverged_trial_is_not_finite_and_not_repeated(tmp_path, steps) -> None:
    wild = replace(CONFIG, optim=OptimConfig(name="sgd", lr=1e38))
    trial = run_trial(wild, tmp_path / "a")
    assert not trial.finite
    assert math.isnan(trial.accuracy)
    assert math.isnan(trial.loss)
    taken = len(steps)
    again = run_trial(wild, tmp_path / "a")
    assert not again.finite
    assert math.isnan(again.loss)
    assert len(steps) == taken > 0
    assert json.loads((tmp_path / "a" / "trial.json").read_text())["accuracy"] is None, "strict JSON has no NaN"


def test_a_trial_too_short_to_be_called_diverged_is_not_finite_either(tmp_path) -> None:
    wild = replace(CONFIG, steps=4, optim=OptimConfig(name="sgd", lr=1e38))
    assert not run_trial(wild, tmp_path / "a").finite
    # from so far away no gradient comes back: every step is skipped, and the first weights have a finite loss
    assert not run_trial(replace(CONFIG, steps=4, sam=SamConfig(rho=1e30)), tmp_path / "b").finite


def test_settings_that_do_not_fit_are_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(ValueError, match="--optim.warmup-steps 99"):
        run_trial(replace(CONFIG, optim=OptimConfig(warmup_steps=99)), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("total", "expected"), [(24, 24), (200, 100), (630, 158), (5000, 1250), (7, 7)])
def test_evaluation_costs_at_most_a_twentieth_of_a_trial_or_comes_once(total: int, expected: int) -> None:
    source = open_source(CONFIG.data)
    assert eval_every(CONFIG, source, total) == expected
    evaluations = -(-total // expected)
    # a forward pass over 1528 images is worth 509 of training; a SAM step is 2 x 64 of those
    assert evaluations <= max(1, 0.05 * total * 128 / 509)
    assert evaluations <= 4


# --- several ---------------------------------------------------------------------------------------------------------


def fake(monkeypatch, fail: dict[str, Exception] | None = None) -> list[str]:
    """Replace trials by ones that take no time; return the names of the folders that run."""
    ran: list[str] = []

    def run(config, folder: Path) -> Trial:
        ran.append(folder.name)
        if folder.name in (fail or {}):
            raise fail[folder.name]
        return Trial(folder, config, 0.5, 1.0, config.steps, 1.0, True)

    monkeypatch.setattr(trials, "run_trial", run)
    return ran


def test_several_trials_come_back_in_order_the_finished_ones_first(tmp_path, undisturbed, monkeypatch) -> None:
    ran = fake(monkeypatch)
    todo = {tmp_path / "x": CONFIG, undisturbed.folder: CONFIG, tmp_path / "y": CONFIG}
    reported: list[str] = []
    found = run_trials(todo, jobs=1, on_done=lambda trial: reported.append(trial.folder.name))
    assert [trial.folder for trial in found] == list(todo)
    assert ran == ["x", "y"]
    assert reported == ["a", "x", "y"]


def test_a_stop_in_a_trial_stops_all_and_leaves_the_handlers_as_they_were(tmp_path, monkeypatch) -> None:
    ran = fake(monkeypatch, {"y": Interrupted(signal.SIGTERM, 3)})
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    todo = {tmp_path / name: CONFIG for name in "xyz"}
    with pytest.raises(Stopped) as caught:
        run_trials(todo, jobs=1, on_done=lambda trial: None)
    assert caught.value.signum == signal.SIGTERM
    assert ran == ["x", "y"]
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_between_trials_stops_as_well(tmp_path, monkeypatch) -> None:
    fake(monkeypatch)
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        run_trials({tmp_path / "x": CONFIG}, jobs=1, on_done=lambda trial: os.kill(os.getpid(), signal.SIGTERM))


def test_a_refusal_passes_through(tmp_path, monkeypatch) -> None:
    fake(monkeypatch, {"x": ValueError("no")})
    with pytest.raises(ValueError, match="no"):
        run_trials({tmp_path / "x": CONFIG}, jobs=1, on_done=lambda trial: None)
