"""What goes before and after fine-tuning: the choice of a learning rate, and what the weights are
worth as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from samovar import config as configs
from samovar.config import Config, GridConfig, MeasureConfig
from samovar.measure.command import measure_once, open_subjects
from samovar.runs.records import Record, RunDir
from samovar.runtime import Runtime
from samovar.train.trials import Trial, run_trial

FROZEN = ("knn", "linear")
"""Measurements of features that were not trained further."""

Say = Callable[[str], None]


class NoFiniteRate(ValueError):
    """All learning rates of a grid diverged."""


def choose_lr(config: Config, run: RunDir, runtime: Runtime, say: Say) -> Config:
    """The config with the best of the learning rates in `config.grid`, which it also saves as that
    of the run.

    Each rate trains as the run will, but on part of the training images, and is judged by its last
    accuracy on the others; the validation split is not looked at. A run that has a checkpoint has
    chosen before.

    Raises:
        NoFiniteRate: no rate gave a finite result.
        Interrupted: a signal came; the trial under way is saved, those that ended are kept."""
    if not config.grid.lr or any(run.checkpoints.glob("step-*")):
        return config
    trials = []
    for lr in dict.fromkeys(config.grid.lr):
        trials.append(run_trial(_trial(config, lr), run.path / "grid" / f"lr-{lr!r}", runtime))
        say(_line(trials[-1]))
    best = _best(trials)
    chosen = replace(config, optim=replace(config.optim, lr=best.config.optim.lr))
    if runtime.is_main:
        if not any(
            run.records("grid/accuracy")
        ):  # a crash between here and the first checkpoint comes back here
            run.append(*(_record(trial) for trial in trials))
        run.write_json(run.config_path.name, configs.to_dict(chosen))
    say(f"lr {chosen.optim.lr:g} it is; training on all images")
    return chosen


def _trial(config: Config, lr: float) -> Config:
    data = replace(config.data, tune_share=config.grid.share)
    return replace(
        config, name="", optim=replace(config.optim, lr=lr), data=data, grid=GridConfig()
    )


def _best(trials: list[Trial]) -> Trial:
    finite = [trial for trial in trials if trial.finite]
    if not finite:
        rates = " ".join(f"{trial.config.optim.lr:g}" for trial in trials)
        raise NoFiniteRate(f"--grid.lr {rates}: no rate gave a finite result; give smaller ones")
    return max(finite, key=lambda trial: (trial.accuracy, -trial.loss))


def _line(trial: Trial) -> str:
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
    """The scores in a few words."""
    knn, linear = (f"{100 * found[name].value:.2f} %" for name in FROZEN)
    return (
        f"before fine-tuning, on frozen features: nearest neighbours {knn}, linear probe {linear}"
    )


def frozen_scores(config: Config, run: RunDir, runtime: Runtime) -> dict[str, Record]:
    """Validation accuracy of nearest neighbours and of a linear probe on the features that the run
    started from.

    Recorded in the run, and not computed again when they are there."""
    asked = MeasureConfig(checkpoint="init", workers=config.data.workers)
    subjects = open_subjects(str(run.path), FROZEN, asked, runtime)
    return {name: measure_once(name, subject, asked, run)[0] for name, subject in subjects.items()}
