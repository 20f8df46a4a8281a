"""The runs of a study: each trained to its end, measured, and never done again."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samovar import config as configs
from samovar.config import Config, RunConfig, cores
from samovar.measure.command import measure_once
from samovar.measure.subject import open_subject
from samovar.measure.table import default_split
from samovar.runs.records import Record, RunDir
from samovar.runtime import Runtime, started
from samovar.runtime.workers import Stopped, share, signals_raise
from samovar.studies.reproduce.plan import Job, Measured
from samovar.train.fit import Diverged, Interrupted, fit, prepare
from samovar.train.resume import HARMLESS
from samovar.train.transfer import NoFiniteRate, choose_lr

MARK = "reproduced.json"
"""The file in a run's folder that says what is done."""


@dataclass(frozen=True)
class Done:
    """What a task came to."""

    task: Job
    seconds: float
    """Processor time of this process, now; 0 of a task that was done before."""
    diverged: str = ""
    fresh: bool = True
    """False where all of it was done before."""


def is_done(task: Job) -> bool:
    """Whether a task's run has ended and all that is asked of it is measured.

    Raises:
        ValueError: its folder holds a run of other settings."""
    run = RunDir(task.folder)
    if not run.config_path.is_file():
        return False
    _check_same(run, task.config)
    mark = _read(run)
    return bool(mark.get("diverged")) or (
        "steps" in mark
        and {_words(measured) for measured in task.measurements} <= set(mark.get("measured", {}))
    )


def _check_same(run: RunDir, config: Config) -> None:
    ignored = (*HARMLESS, "recipe") + (("optim.lr",) if config.grid.lr else ())
    for name, (before, now) in configs.differences(configs.load(run.config_path), config).items():
        if name not in ignored and not (name == "init" and _moved(Path(before), Path(now))):
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{run.path} holds a run with {flag} {before}, not {now}; give another --output"
            )


def _moved(before: Path, now: Path) -> bool:
    """Whether a run is the same, in a folder that was since moved."""
    return before.name == now.name and (before.resolve() == now.resolve() or not before.exists())


def _read(run: RunDir) -> dict[str, Any]:
    path = run.path / MARK
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _words(measured: Measured) -> str:
    """A measurement with all of its settings that a flag can change."""
    free = configs.MeasureConfig()
    changed = {
        k: v for k, v in configs.to_dict(measured.config).items() if v != configs.to_dict(free)[k]
    }
    aside = ("device", "threads", "workers", "processes", "output", "name")
    return " ".join(
        [
            measured.name,
            *(f"{key}={value}" for key, value in sorted(changed.items()) if key not in aside),
        ]
    )


def run_task(task: Job) -> Done:
    """Train a task's run from wherever it stands, then measure what was not; what is done stays
    done.

    Raises:
        ValueError: as `fit.prepare`; a folder that holds a run of other settings.
        Interrupted: a signal came while it trained; the state is saved.
        OSError: the disk is full; the last checkpoint is intact."""
    since = time.process_time()
    if is_done(task):
        return Done(task, 0.0, _read(RunDir(task.folder)).get("diverged", ""), fresh=False)
    run = _open(task)
    mark = _read(run)
    if "steps" not in mark:
        with started(task.config.run) as runtime:
            try:
                mark["steps"] = _train(task.config, run, runtime)
            except (Diverged, NoFiniteRate) as error:
                mark["diverged"] = str(error)
        run.write_json(MARK, mark)
    for measured in () if "diverged" in mark else task.measurements:
        if _words(measured) not in mark.get("measured", {}):
            found = _measure(measured, run)
            mark["measured"] = mark.get("measured", {}) | {
                _words(measured): identity(found[0]) if found else {}
            }
            run.write_json(MARK, mark)
    return Done(task, time.process_time() - since, mark.get("diverged", ""))


def _open(task: Job) -> RunDir:
    run = RunDir(task.folder)
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        run.arrays.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write to --output {task.config.output}: {error.strerror}; give another"
        ) from error
    if not run.config_path.is_file():
        run.write_json(run.config_path.name, configs.to_dict(task.config))
    return run


def _train(config: Config, run: RunDir, runtime: Runtime) -> int:
    """Train to the end; returns the number of steps.

    Raises:
        Diverged: it did, or the run whose weights it starts from."""
    if config.init and "diverged" in _read(RunDir(Path(config.init))):
        raise Diverged(f"the run that it starts from, {Path(config.init).name}, diverged")
    config = replace(config, run=replace(config.run, keep=1))
    chosen = choose_lr(config, run, runtime, lambda message: None)
    saved = configs.load(run.config_path)
    chosen = replace(chosen, optim=saved.optim)  # a rate that was chosen before an interruption
    source, state = prepare(chosen, runtime)
    step = 0
    for event in fit(chosen, run, runtime, source, state):
        step = event.step
    return step


def _measure(measured: Measured, run: RunDir) -> list[Record]:
    config = measured.config
    asked = RunConfig(device=config.device, threads=config.threads, precision="fp32")
    with started(asked) as runtime:
        split = config.split or default_split(measured.name)
        subject = open_subject(str(run.path), replace(config, split=split), runtime)
        return measure_once(measured.name, subject, config, run)


_PROTOCOL = (
    "measurement",
    "request",
    "weights",
    "source",
    "split",
    "images",
    "loss",
    "dtype",
    "seed",
)


def identity(record: Record) -> dict[str, Any]:
    """What tells the records of a measurement from those of the same name under another
    protocol."""
    return {key: record.settings.get(key) for key in _PROTOCOL} | {"step": record.where.get("step")}


def records_of(task: Job) -> list[Record]:
    """The records that a task's own training and measurements left, none of what else is in its
    folder.

    Empty where the run diverged: what it recorded before is of no trained network."""
    run = RunDir(task.folder)
    mark = _read(run)
    if "steps" not in mark:
        return []
    own = [mark.get("measured", {}).get(_words(measured)) for measured in task.measurements]
    return [
        record
        for record in run.records()
        if identity(record) in own
        or ("measurement" not in record.settings and record.where.get("step") == mark["steps"])
    ]


# --- several at a time
# -----------------------------------------------------------------------------------------------


def run_all(tasks: Sequence[Job], *, jobs: int, on_done: Callable[[Done], None]) -> list[Done]:
    """Do the tasks in order, `jobs` at a time; fine-tuning waits for the runs it starts from.

    Raises:
        Stopped: SIGINT or SIGTERM came; what ran is saved.
        ChildProcessError: a process ended by itself.
        ValueError, OSError: as `run_task`."""
    found: list[Done] = []

    def keep(task: Job, done: Done) -> None:
        found.append(done)
        on_done(done)

    with signals_raise():
        for wave in _waves(tasks):
            left = []
            for task in wave:
                if is_done(task):
                    keep(task, run_task(task))
                else:
                    left.append(task)
            count = min(jobs, len(left))
            if count > 1:
                share([_with_threads(task, cores() // count) for task in left], _work, count, keep)
            for task in left if count == 1 else ():
                keep(task, _work(task))
    return found


def _waves(tasks: Sequence[Job]) -> Iterator[list[Job]]:
    yield [task for task in tasks if not task.config.init]
    yield [task for task in tasks if task.config.init]


def _with_threads(task: Job, threads: int) -> Job:
    run = task.config.run
    return replace(
        task, config=replace(task.config, run=replace(run, threads=run.threads or max(1, threads)))
    )


def _work(task: Job) -> Done:
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals_raise())
        try:
            return run_task(task)
        except Interrupted as error:
            raise Stopped(error.signum) from None
