"""Trials: configs trained to their end for the sake of one number, each in a folder of its own."""

from __future__ import annotations

import contextlib
import json
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
from samovar.runs.records import RunDir
from samovar.runtime import Runtime, started
from samovar.runtime.workers import Stopped, share, signals_raise
from samovar.train.fit import HARMLESS, Diverged, Interrupted, fit, prepare
from samovar.train.loop import TrainState

RESULT = "trial.json"

MOST_EVALUATIONS = 4
"""Of a trial; a checkpoint is saved at each, so a machine that fails loses a quarter at most."""

EVALUATION_SHARE = 0.05
"""Of the work of training, at most; a short trial is evaluated at its end alone."""

T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """How a trial ended."""

    folder: Path
    config: Config
    accuracy: float
    """Of the last evaluation, at the final step; NaN after a divergence, as is the loss."""
    loss: float
    """In nats."""
    steps: int
    """Optimizer steps of the whole trial."""
    seconds: float
    """Processor time of this process, in training and evaluation."""
    finite: bool
    """False where gradients or the last loss were not finite."""


def run_trial(config: Config, folder: Path, runtime: Runtime | None = None) -> Trial:
    """Train `config` to its end in `folder`, quietly; what is finished there is read back, what was
    begun goes on.

    It is evaluated rarely, whatever `run.eval_every` says, and once it is done its checkpoints are
    deleted. Under torchrun all ranks call this together with their runtime, and get the same trial
    but for the seconds.

    Raises:
        ValueError: as `prepare`; a folder that holds a trial of other settings.
        Interrupted: SIGINT or SIGTERM came while it trained; the state is saved.
        OSError: the disk is full; the last checkpoint is intact."""
    with contextlib.nullcontext(runtime) if runtime else started(config.run) as runtime:
        found = _by_main(lambda: finished(config, folder), runtime)
        return found or _train(config, folder, runtime)


def finished(config: Config, folder: Path) -> Trial | None:
    """The trial that ended in `folder`; None where it has not yet, or there is none.

    Raises:
        ValueError: the folder holds a trial of other settings."""
    run = RunDir(folder)
    if not run.config_path.is_file():
        return None
    pairs = configs.differences(configs.load(run.config_path), config)
    for name, (before, now) in pairs.items():
        if name not in (*HARMLESS, "recipe"):
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{folder} holds a trial with {flag} {before}, not {now}; give another folder"
            )
    values = _read(run)
    if "finite" not in values:
        return None
    accuracy, loss = (
        math.nan if values[key] is None else values[key] for key in ("accuracy", "loss")
    )
    return Trial(
        folder, config, accuracy, loss, values["steps"], values["seconds"], values["finite"]
    )


def _read(run: RunDir) -> dict[str, Any]:
    """What is known of a trial: nothing, the time it took so far, or how it ended."""
    path = run.path / RESULT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _by_main(look: Callable[[], T], runtime: Runtime) -> T:
    """What the main rank finds, or the error that it meets, on every rank."""
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
    sparing = replace(
        config.run, keep=1, loggers=(), watch_every=0, eval_every=eval_every(config, source, total)
    )
    config, run = replace(config, run=sparing), RunDir(folder)
    _by_main(lambda: _make(run, config), runtime)
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
        _write(run, trial)
    return trial


def eval_every(config: Config, source: Source, total: int) -> int:
    """Steps between evaluations that cost no more than a small share of the trial, in passes over
    images."""
    training = total * config.data.batch_size * configs.passes(config)
    evaluation = (
        len(source.val) / 3
    )  # a forward pass, where training has a backward one of twice its cost as well
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
    """Train to the end; returns the last accuracy and loss, NaN both where they or the gradients
    are not finite."""
    lost = math.nan, math.nan
    try:
        *_, done = fit(config, run, runtime, source, state)
    except Diverged:
        return lost
    accuracy, loss = (done.values[f"last/val/{key}"] for key in ("accuracy", "loss"))
    # a very short trial may skip every step and not yet be called a divergence
    return (
        lost if done.values["skipped"] >= done.step or not math.isfinite(loss) else (accuracy, loss)
    )


def _write(run: RunDir, trial: Trial) -> None:
    """Keep how the trial ended, and nothing heavy."""
    measured = (
        {"accuracy": trial.accuracy, "loss": trial.loss}
        if trial.finite
        else {"accuracy": None, "loss": None}
    )
    run.write_json(
        RESULT, {**measured, "steps": trial.steps, "seconds": trial.seconds, "finite": trial.finite}
    )
    shutil.rmtree(run.checkpoints, ignore_errors=True)


# --- several at a time
# -----------------------------------------------------------------------------------------------


def run_trials(
    todo: Mapping[Path, Config], *, jobs: int, on_done: Callable[[Trial], None]
) -> list[Trial]:
    """Run the trials of folders, `jobs` of them at a time; returns them in the order given.

    With more than one job they run in new processes, which share the cores and take the GPUs in
    turn; those import the main module, so a script needs `if __name__ == "__main__":`.

    Args:
        on_done: called with each trial as it ends, those first that had ended before.

    Raises:
        Stopped: SIGINT or SIGTERM came; every running trial is saved.
        ChildProcessError: a process ended by itself, for instance for lack of memory.
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

    with signals_raise():
        if jobs > 1 and left:
            share(
                [(folder, _with_threads(config, cores() // count)) for folder, config in left],
                _run,
                count,
                keep,
            )
        for task in left if jobs == 1 else ():
            keep(task, _run(task))
    return [ended[folder] for folder in todo]


def _with_threads(config: Config, threads: int) -> Config:
    return replace(config, run=replace(config.run, threads=config.run.threads or max(1, threads)))


def _run(task: tuple[Path, Config]) -> Trial:
    folder, config = task
    try:
        return run_trial(config, folder)
    except Interrupted as error:
        raise Stopped(error.signum) from None
