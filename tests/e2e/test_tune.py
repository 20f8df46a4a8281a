"""`samovar tune`: what a signal stops goes on where it was, and a short search finds what a full one does."""

import multiprocessing
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from samovar import recipes
from samovar.config import OptimConfig
from samovar.runs.records import RunDir
from samovar.runtime import started
from samovar.runtime.workers import Stopped
from samovar.studies.tune.command import tune
from samovar.studies.tune.search import Search
from samovar.studies.tune.view import TuneRequest
from samovar.train.trials import Trial, run_trial, run_trials
from tests.e2e.ranks import run_ranks

RHO = (0.02, 0.05, 0.1, 0.2, 0.35)
CONFIG = replace(recipes.get("vit-digits-sam").config(), steps=16, optim=OptimConfig(warmup_steps=5))


def result(trial: Trial) -> tuple:
    return trial.accuracy, trial.loss, trial.steps, trial.finite


def test_trials_in_two_processes_are_stopped_and_go_on_to_what_they_are_undisturbed(tmp_path) -> None:
    todo = {tmp_path / "a" / str(seed): replace(CONFIG, seed=seed) for seed in range(3)}
    ended: list[Trial] = []

    def stop(trial: Trial) -> None:
        ended.append(trial)
        os.kill(os.getpid(), signal.SIGINT)  # as from the keyboard, once the first has ended

    with pytest.raises(Stopped, match="SIGINT"):
        run_trials(todo, jobs=2, on_done=stop)
    assert not multiprocessing.active_children()
    assert len(ended) == 1
    assert result(run_trial(ended[0].config, ended[0].folder)) == result(ended[0])
    begun = [folder for folder in todo if folder.exists() and folder != ended[0].folder]
    assert len(begun) <= 2, "no more than two at a time"
    again = run_trials(todo, jobs=1, on_done=lambda trial: None)
    undisturbed = [run_trial(config, tmp_path / "b" / folder.name) for folder, config in todo.items()]
    assert list(map(result, again)) == list(map(result, undisturbed))


def rank(index: int, folder: Path) -> None:
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = (folder / "port").read_text()
    config = replace(CONFIG, steps=6)
    with started(config.run) as runtime:
        first = run_trial(config, folder / "a", runtime)
        again = run_trial(config, folder / "a", runtime)
        assert (again.accuracy, again.loss, again.finite) == (first.accuracy, first.loss, True)
        answers = [None, None]
        dist.all_gather_object(answers, (first.accuracy, first.loss))
        assert answers[0] == answers[1]
        with pytest.raises(ValueError, match="--seed 0, not 5"):
            run_trial(replace(config, seed=5), folder / "a", runtime)
        assert len(list(RunDir(folder / "a").records("val/accuracy"))) == 1, "one rank writes"


def test_ranks_run_a_trial_together_read_it_back_and_refuse_another_as_one(tmp_path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(probe.getsockname()[1]))
    run_ranks(rank, tmp_path, 2, 400)


@pytest.mark.slow
def test_the_short_search_finds_a_rho_within_one_grid_step_of_the_full_ones_at_two_fifths_of_its_cost(tmp_path) -> None:
    # three seeds each: with one, the seed is worth as much as a step of the grid
    places, gradients = [], []
    for name, full in (("short", False), ("full", True)):
        config = replace(recipes.get("vit-digits-sam").config(), output=tmp_path, name=name)
        asked = TuneRequest(("samovar", "tune"), ("samovar", "train", "vit-digits-sam"), config)
        run = tune(config, Search({"rho": RHO}, seeds=3, full=full), asked)
        records = list(run.records("tune/accuracy"))
        last = [r for r in records if r.where["rung"] == max(r.where["rung"] for r in records)]
        places.append(RHO.index(max(last, key=lambda r: r.value).where["rho"]))
        gradients.append(sum(r.cost["gradients"] for r in records))
    assert abs(places[0] - places[1]) <= 1
    assert gradients[0] <= 0.4 * gradients[1]
