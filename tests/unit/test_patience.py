"""Test early stopping: when a run ends, what it says and records, that a resume keeps the count."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samovar import recipes
from samovar.config import Config, RunConfig
from samovar.runs import checkpoint, progress
from samovar.runs.progress import RunProgress
from samovar.runs.records import Record, RunDir
from samovar.runtime import Runtime
from samovar.train.fit import Progress, fit, prepare
from samovar.train.trials import run_trial

CPU = Runtime(torch.device("cpu"), torch.float32)
ACCURACIES = (0.3, 0.5, 0.5, 0.4, 0.6, 0.1, 0.2, 0.6, 0.9)


def config(patience: int = 3, steps: int = 9) -> Config:
    base = recipes.get("vit-digits").config()
    run = RunConfig(eval_every=1, patience=patience, keep=20)
    return replace(base, steps=steps, optim=replace(base.optim, warmup_steps=0), run=run)


@pytest.fixture(autouse=True)
def _made_accuracies(monkeypatch) -> None:
    """The evaluation after step t finds the t-th of `ACCURACIES`."""

    def made(config, source, runtime, state, bad_files) -> list[Record]:
        where = {"split": "val", "step": state.step}
        return [
            Record("val/loss", 1.0, "nats", where=where),
            Record("val/accuracy", ACCURACIES[state.step - 1], "1", where=where),
        ]

    monkeypatch.setattr("samovar.train.fit.validate", made)


def events(settings: Config, folder: Path) -> Iterator[Progress]:
    folder.mkdir(exist_ok=True)
    return fit(settings, RunDir(folder), CPU, *prepare(settings, CPU))


@pytest.mark.parametrize(("patience", "stops"), [(0, 9), (1, 3), (2, 4), (3, 8), (4, 9)])
def test_a_run_ends_after_so_many_evaluations_without_a_better_one(tmp_path, patience: int, stops: int) -> None:
    *_, done = events(config(patience), tmp_path / "r")
    assert (done.kind, done.step) == ("done", stops)
    assert done.values["best/step"] == ACCURACIES.index(max(ACCURACIES[:stops])) + 1
    run = RunDir(tmp_path / "r")
    assert progress.read(run) == RunProgress("done", stops, 9)
    found = [(r.value, r.where, r.settings) for r in run.records("train/stopped_early")]
    if stops == 9:
        assert (found, done.notes) == ([], ())
        return
    best = int(done.values["best/step"])
    assert found == [(stops, {"step": stops}, {"patience": patience, "best_step": best})]
    assert done.notes == (
        f"stopped early at step {stops} of 9: {patience} evaluations in a row gave no better accuracy than step "
        f"{best} (--run.patience {patience})",
    )


@pytest.mark.parametrize("kept", [1, 4, 6, 7, 8])
def test_a_resume_keeps_the_count_and_a_stopped_run_stays_stopped(tmp_path, kept: int) -> None:
    settings = config(3)
    folder = tmp_path / "r"
    *_, straight = events(settings, folder)
    run = RunDir(folder)
    before = [(r.name, r.value) for r in run.records() if r.name != "train/images_per_second"]
    for step in checkpoint.steps_saved(run.checkpoints):
        if step > kept:
            for file in checkpoint.path_of(run.checkpoints, step).iterdir():
                file.unlink()
            checkpoint.path_of(run.checkpoints, step).rmdir()
    *_, resumed = events(settings, folder)
    assert (resumed.step, resumed.notes, resumed.values) == (straight.step, straight.notes, straight.values)
    assert [(r.name, r.value) for r in run.records() if r.name != "train/images_per_second"] == before


def test_checkpoints_of_runs_without_patience_hold_no_count(tmp_path) -> None:
    list(events(config(0, steps=4), tmp_path / "r"))
    found = checkpoint.load(checkpoint.path_of(RunDir(tmp_path / "r").checkpoints, 4))
    assert not {"stale", "micro_batch"} & set(found.state)


def test_trials_are_trained_to_their_end_whatever_the_patience(tmp_path) -> None:
    trial = run_trial(config(1, steps=4), tmp_path / "t", CPU)
    assert trial.steps == 4
    assert not list(RunDir(tmp_path / "t").records("train/stopped_early"))
    assert run_trial(config(1, steps=4), tmp_path / "t", CPU).seconds == trial.seconds  # read back
