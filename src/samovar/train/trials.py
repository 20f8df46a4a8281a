"""Trials: configs trained to their end for one number, each in a folder of its own."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from samovar import config as configs
from samovar.config import Config, cores
from samovar.data.splits import Source
from samovar.runs.json_files import read_object
from samovar.runs.records import RunDir
from samovar.runtime import Runtime, started
from samovar.runtime.workers import Stopped, share, signals_raise
from samovar.train.fit import Diverged, Interrupted, fit, prepare
from samovar.train.loop import TrainState
from samovar.train.resume import changes

RESULT = "trial.json"

MOST_EVALUATIONS = 4
"""Most evaluations of a trial; each saves a checkpoint, so a crash loses at most a quarter."""

EVALUATION_SHARE = 0.05
"""Largest cost of evaluation relative to training; a short trial is evaluated only at its end."""

T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """Result of a finished trial."""

    folder: Path
    config: Config
    accuracy: float
    """Accuracy at the final step; NaN after a divergence."""
    loss: float
    """Loss at the final step, in nats; NaN after a divergence."""
    steps: int
    """Optimizer steps of the whole trial."""
    seconds: float
    """Processor time of this process, in training and evaluation."""
    finite: bool
    """False where gradients or the last loss were not finite."""


def run_trial(config: Config, folder: Path, runtime: Runtime | None = None) -> Trial:
    """Train a config to its end in a folder, without printing.

    A finished trial in the folder is read back; an unfinished one continues. A trial is evaluated
    rarely, whatever `run.eval_every` says, and deletes its checkpoints at its end. Under torchrun
    all ranks call this together with their runtime, and get the same trial except for `seconds`.

    Raises:
        ValueError: as `prepare`; the folder holds a trial with other settings.
        Interrupted: SIGINT or SIGTERM came while it trained; the state is saved.
        OSError: the disk is full; the last checkpoint is intact."""
    with contextlib.nullcontext(runtime) if runtime else started(config.run) as runtime:
        found = _by_main(lambda: finished(config, folder), runtime)
        return found or _train(config, folder, runtime)


def finished(config: Config, folder: Path) -> Trial | None:
    """Return the finished trial in a folder; None if there is none or it has not finished.

    Raises:
        ValueError: the folder holds a trial with other settings."""
    run = RunDir(folder)
    if not run.config_path.is_file():
        return None
    saved = configs.load(run.config_path)
    for name, (before, now) in changes(
        saved, config, also_harmless=["recipe", "run.patience"]
    ).items():
        flag = "--" + name.replace("_", "-")
        raise ValueError(
            f"{folder} holds a trial with {flag} {before}, not {now}; give another folder"
        )
    values = _read(run)
    if "finite" not in values:
        return None
    # strict JSON has no NaN, so the file of a diverged trial holds null
    accuracy, loss = (math.nan if values[k] is None else values[k] for k in ("accuracy", "loss"))
    return Trial(
        folder, config, accuracy, loss, values["steps"], values["seconds"], values["finite"]
    )


def _read(run: RunDir) -> dict[str, Any]:
    """Return what a trial has written: nothing, the seconds so far, or its result."""
    path = run.path / RESULT
    return read_object(path) if path.is_file() else {}


def _by_main(look: Callable[[], T], runtime: Runtime) -> T:
    """Call a function on the main rank; return its result, or raise its error, on every rank."""
    # an error has to reach the other ranks too, which would otherwise wait for the main one forever
    answer: list[Any] = [None, None]
    if runtime.is_main:
        try:
            answer[0] = look()
        except (ValueError, OSError) as error:
            answer[1] = error
    if runtime.world_size > 1:
        dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    found: T = answer[0]
    return found


def _train(config: Config, folder: Path, runtime: Runtime) -> Trial:
    source, state = prepare(config, runtime)
    total = sum(configs.num_steps(stage, len(source.train)) for stage in configs.stages(config))
    # many trials share a disk, and only their last evaluation is read
    sparing = replace(
        config.run,
        keep=1,
        loggers=(),
        watch_every=0,
        patience=0,
        eval_every=eval_every(config, source, total),
    )
    config, run = replace(config, run=sparing), RunDir(folder)
    _by_main(lambda: _make(run, config), runtime)
    # an interrupted trial leaves the time it took, which counts in the total of the continued one
    before, since = _read(run).get("seconds", 0.0), time.process_time()
    try:
        accuracy, loss = _fit(config, run, runtime, source, state)
    except Interrupted:
        if runtime.is_main:
            run.write_json(RESULT, {"seconds": before + time.process_time() - since})
        raise
    seconds = before + time.process_time() - since
    trial = Trial(folder, config, accuracy, loss, total, seconds, math.isfinite(loss))
    if runtime.is_main:
        measured = ("accuracy", "loss", "steps", "seconds", "finite")
        values = {name: getattr(trial, name) for name in measured}
        lost = {} if trial.finite else {"accuracy": None, "loss": None}
        run.write_json(RESULT, values | lost)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return trial


def eval_every(config: Config, source: Source, total: int) -> int:
    """Return the steps between evaluations, so that these cost a small share of the trial.

    Cost is counted in images that pass forward and backward; the latter costs twice the former."""
    training = total * config.data.batch_size * configs.passes(config)
    evaluation = len(source.val) / 3
    parts = min(MOST_EVALUATIONS, int(EVALUATION_SHARE * training / max(1.0, evaluation)))
    return math.ceil(total / max(1, parts))


def _make(run: RunDir, config: Config) -> None:
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        run.arrays.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write to {run.path}: {error.strerror}; give another folder"
        ) from error
    run.write_json(run.config_path.name, configs.to_dict(config))


def _fit(
    config: Config, run: RunDir, runtime: Runtime, source: Source, state: TrainState
) -> tuple[float, float]:
    """Train to the end and return the last accuracy and loss, both NaN after a divergence."""
    lost = math.nan, math.nan
    try:
        *_, done = fit(config, run, runtime, source, state, trial=True)
    except Diverged:
        return lost
    accuracy, loss = (done.values[f"last/val/{key}"] for key in ("accuracy", "loss"))
    # a trial of fewer steps than `run.max_nonfinite` may skip them all without raising Diverged
    learned = done.values["skipped"] < done.step and math.isfinite(loss)
    return (accuracy, loss) if learned else lost


# --- several at a time


def run_trials(
    todo: Mapping[Path, Config], *, jobs: int, on_done: Callable[[Trial], None]
) -> list[Trial]:
    """Run trials, `jobs` of them at a time, and return them in the order given.

    With more than one job they run in new processes, which share the cores and take the GPUs in
    turn; those import the main module, so a script needs `if __name__ == "__main__":`.

    Args:
        todo: the config of each trial, by its folder.
        on_done: called with each trial as it ends; first with those that had ended before.

    Raises:
        Stopped: SIGINT or SIGTERM came; every running trial is saved.
        ChildProcessError: a process died, for instance for lack of memory.
        ValueError, OSError: as `run_trial`."""
    ended = {
        folder: trial for folder, config in todo.items() if (trial := finished(config, folder))
    }
    for trial in ended.values():
        on_done(trial)
    left = [(folder, config) for folder, config in todo.items() if folder not in ended]
    count = min(jobs, len(left))

    def keep(task: tuple[Path, Config], trial: Trial) -> None:
        ended[task[0]] = trial
        on_done(trial)

    # a running trial handles signals itself; these handlers hold between trials
    with signals_raise():
        if jobs > 1 and left:
            each = max(1, cores() // count)
            share(
                [(folder, _with_threads(config, each)) for folder, config in left],
                _run,
                count,
                keep,
            )
        for task in left if jobs == 1 else ():
            keep(task, _run(task))
    return [ended[folder] for folder in todo]


def _with_threads(config: Config, threads: int) -> Config:
    return replace(config, run=replace(config.run, threads=config.run.threads or threads))


def _run(task: tuple[Path, Config]) -> Trial:
    folder, config = task
    try:
        return run_trial(config, folder)
    except Interrupted as error:
        raise Stopped(error.signum) from None
