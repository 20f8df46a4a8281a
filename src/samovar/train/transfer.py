"""Before fine-tuning: choose a learning rate, and score the features as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from samovar import config as configs
from samovar.config import Config, GridConfig, MeasureConfig
from samovar.measure.command import measure_once, open_subjects
from samovar.runs.records import Record, RunDir
from samovar.runtime import Runtime
from samovar.runtime.heartbeat import doing
from samovar.train.trials import Trial, run_trial

FROZEN = ("knn", "linear")
"""Measurements of the features before they are trained further."""

Say = Callable[[str], None]


class NoFiniteRate(ValueError):
    """Every learning rate of a grid diverged."""


def choose_lr(config: Config, run: RunDir, runtime: Runtime, say: Say) -> Config:
    """Return the config with the best learning rate of `config.grid`; also save it as the run's.

    Each rate trains as the run will, but on part of the training images, and is judged by its last
    accuracy on the rest; the validation split is not used. A run that has a checkpoint has made its
    choice, and its config comes back unchanged.

    Raises:
        NoFiniteRate: no rate gave a finite result.
        Interrupted: a signal came; the running trial is saved, finished ones are kept."""
    if not config.grid.lr or any(run.checkpoints.glob("step-*")):
        return config
    trials = []
    # without repetitions: a rate given twice would share its folder
    rates = list(dict.fromkeys(config.grid.lr))
    for index, lr in enumerate(rates, start=1):
        folder = run.path / "grid" / f"lr-{lr!r}"
        with doing(f"lr {lr:g}, rate {index} of {len(rates)}"):
            trials.append(run_trial(_trial(config, lr), folder, runtime))
        say(_trial_line(trials[-1]))
    best = _best(trials)
    chosen = replace(config, optim=replace(config.optim, lr=best.config.optim.lr))
    if runtime.is_main:
        # a run that crashed before its first checkpoint chooses again, from the finished trials
        if not any(run.records("grid/accuracy")):
            run.append(*(_record(trial) for trial in trials))
        run.write_json(run.config_path.name, configs.to_dict(chosen))
    say(f"chose lr {chosen.optim.lr:g}; training on all images")
    return chosen


def _trial(config: Config, lr: float) -> Config:
    # held out of the training images, so that the validation split stays unseen by the choice
    data = replace(config.data, tune_share=config.grid.share)
    return replace(
        config, name="", optim=replace(config.optim, lr=lr), data=data, grid=GridConfig()
    )


def _best(trials: list[Trial]) -> Trial:
    finite = [trial for trial in trials if trial.finite]
    if not finite:
        rates = " ".join(f"{trial.config.optim.lr:g}" for trial in trials)
        raise NoFiniteRate(f"--grid.lr {rates}: no rate gave a finite result; give smaller ones")
    # on few held-out images several rates may reach the same accuracy; the loss decides
    return max(finite, key=lambda trial: (trial.accuracy, -trial.loss))


def _trial_line(trial: Trial) -> str:
    found = f"{100 * trial.accuracy:.2f} %, loss {trial.loss:.4f}" if trial.finite else "not finite"
    return f"lr {trial.config.optim.lr:g}: {found} on held-out training images"


def _record(trial: Trial) -> Record:
    config = trial.config
    settings = {"tune_share": config.data.tune_share, "steps": trial.steps}
    where = {"lr": config.optim.lr, "split": "held-out training images"}
    value = trial.accuracy if trial.finite else math.nan
    return Record(
        "grid/accuracy", value, "1", where=where, settings=settings, converged=trial.finite
    )


def frozen_line(found: dict[str, Record]) -> str:
    """Format the scores of frozen features as one line."""
    knn, linear = (f"{100 * found[name].value:.2f} %" for name in FROZEN)
    return f"before fine-tuning, on frozen features: k-NN {knn}, linear probe {linear}"


def frozen_scores(config: Config, run: RunDir, runtime: Runtime) -> dict[str, Record]:
    """Measure k-NN and linear-probe accuracy of the features that the run starts from.

    The records are kept in the run and read back the next time.

    Returns:
        A record for each name in `FROZEN`, on the validation split."""
    asked = MeasureConfig(checkpoint="init", workers=config.data.workers)
    with doing("scoring the features as they are"):
        subjects = open_subjects(str(run.path), FROZEN, asked, runtime)
        return {
            name: measure_once(name, subject, asked, run)[0] for name, subject in subjects.items()
        }
