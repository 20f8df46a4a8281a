"""Do the jobs of a study: train each run to its end, measure it, and never do either twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samovar import config as configs
from samovar.config import Config, MeasureConfig, RunConfig, cores
from samovar.config.encoded import dashed
from samovar.measure.catalog import default_split
from samovar.measure.command import measure_once
from samovar.measure.subject import open_subject
from samovar.runs.json_files import read_object
from samovar.runs.records import Record, RunDir
from samovar.runs.refused import removed_if_refused
from samovar.runtime import Runtime, started
from samovar.runtime.lock import Locked, locked
from samovar.runtime.workers import Stopped, share, signals_raise
from samovar.studies.jobs import Job, Measured
from samovar.studies.own_folder import make_folder
from samovar.train import branch
from samovar.train.fit import Diverged, Interrupted, fit, prepare
from samovar.train.resume import HARMLESS
from samovar.train.transfer import NoFiniteRate, choose_lr

DONE_FILE = "reproduced.json"
"""The file in a run's folder that lists what is done."""


@dataclass(frozen=True)
class Done:
    """How a job ended."""

    job: Job
    seconds: float
    """Processor time of this process, just now; 0 where the job was done before."""
    diverged: str = ""
    """Why training stopped early; empty where it did not."""
    fresh: bool = True
    """False where all of the job was done before."""
    busy: bool = False
    """Whether another process was at the run, so that nothing was done here."""


# --- what is done


def is_done(job: Job) -> bool:
    """Return whether the job's run has ended and all its measurements are taken.

    Raises:
        ValueError: the folder holds a run of other settings."""
    run = RunDir(job.folder)
    if not run.config_path.is_file():
        return False
    _check_same(run, job.config)
    done = _read(run)
    wanted = {_key(measured) for measured in job.measurements}
    # a run that diverged would do so again, so it counts as done
    return bool(done.get("diverged")) or (
        "steps" in done and wanted <= set(done.get("measured", {}))
    )


def _check_same(run: RunDir, config: Config) -> None:
    # a grid chooses the rate, so the saved one differs from the one asked for
    ignored = (*HARMLESS, "recipe") + (("optim.lr",) if config.grid.lr else ())
    for name, (before, now) in configs.differences(configs.load(run.config_path), config).items():
        if name not in ignored and not (name == "init" and _moved(Path(before), Path(now))):
            raise ValueError(
                f"{run.path} holds a run with --{dashed(name)} {before}, not {now}; "
                "give another --output"
            )


def _moved(before: Path, now: Path) -> bool:
    """Return whether two paths are one run whose folder was moved since."""
    # --init is a path to a sibling, and the folder of all runs may have been moved
    return before.name == now.name and (before.resolve() == now.resolve() or not before.exists())


def _read(run: RunDir) -> dict[str, Any]:
    path = run.path / DONE_FILE
    return read_object(path) if path.is_file() else {}


def _key(measured: Measured) -> str:
    """Return a measurement's name with all settings that flags changed, as one line of text."""
    # the place and the speed of a measurement do not change its result
    aside = ("device", "threads", "workers", "processes", "output", "name")
    default, given = (configs.to_dict(each) for each in (MeasureConfig(), measured.config))
    changed = sorted(key for key in given if given[key] != default[key] and key not in aside)
    return " ".join([measured.name, *(f"{key}={given[key]}" for key in changed)])


_PROTOCOL = (
    "measurement", "request", "weights", "source", "split", "images", "loss", "dtype", "seed"
)  # fmt: skip


def identity(record: Record) -> dict[str, Any]:
    """Return what distinguishes a measurement from one of the same name under another protocol."""
    return {key: record.settings.get(key) for key in _PROTOCOL} | {"step": record.where.get("step")}


def records_of(job: Job) -> list[Record]:
    """Return the records of the job's own training and measurements, and no others in its folder.

    There are none where the run diverged: what it recorded belongs to no trained network."""
    run = RunDir(job.folder)
    done = _read(run)
    if "steps" not in done:
        return []
    own = [done.get("measured", {}).get(_key(measured)) for measured in job.measurements]
    # training's records name no measurement; those of the last step are the result
    return [
        record
        for record in run.records()
        if identity(record) in own
        or ("measurement" not in record.settings and record.where.get("step") == done["steps"])
    ]


# --- one job


def run_job(job: Job, *, wait: bool = True) -> Done:
    """Train the job's run from where it stands, then take the measurements that are missing.

    Args:
        wait: for another process that trains or measures the run; else the job comes back busy.

    Raises:
        ValueError: as `fit.prepare`; the folder holds a run of other settings.
        Interrupted: a signal came during training; the state is saved.
        OSError: the disk is full; the last checkpoint is intact."""
    since = time.process_time()
    if is_done(job):
        return Done(job, 0.0, _read(RunDir(job.folder)).get("diverged", ""), fresh=False)
    is_new = not RunDir(job.folder).config_path.is_file()
    run = _open(job)
    try:
        with locked(run.path, "train", wait=wait):
            diverged = _train_once(job, run, is_new=is_new)
        with locked(run.path, "measure", wait=wait):
            for measured in () if diverged else job.measurements:
                _measure_once(measured, run)
    except Locked:
        return Done(job, 0.0, busy=True)
    return Done(job, time.process_time() - since, diverged)


def _train_once(job: Job, run: RunDir, *, is_new: bool) -> str:
    """Train to the end, unless that is done; return why the run diverged, empty if it did not.

    Args:
        is_new: the folder was made for this, and goes where the run is refused."""
    done = _read(run)
    if not {"steps", "diverged"} & set(done):
        refusable = removed_if_refused(run) if is_new else nullcontext()
        with refusable, started(job.config.run) as runtime:
            try:
                done["steps"] = _train(job, run, runtime)
            except (Diverged, NoFiniteRate) as error:
                done["diverged"] = str(error)
        run.write_json(DONE_FILE, done)
    return str(done.get("diverged", ""))


def _measure_once(measured: Measured, run: RunDir) -> None:
    """Take a measurement, unless that is done."""
    done = _read(run)
    if _key(measured) not in done.get("measured", {}):
        found = _measure(measured, run)
        taken = {_key(measured): identity(found[0]) if found else {}}
        # written after each, so that an interruption loses one measurement at most
        done["measured"] = done.get("measured", {}) | taken
        run.write_json(DONE_FILE, done)


def _open(job: Job) -> RunDir:
    run = RunDir(job.folder)
    for folder in (run.checkpoints, run.arrays):
        make_folder(folder, job.config.output)
    if not run.config_path.is_file():
        run.write_json(run.config_path.name, configs.to_dict(job.config))
    return run


def _train(job: Job, run: RunDir, runtime: Runtime) -> int:
    """Train to the end and return the number of steps.

    Raises:
        Diverged: the run diverged, or the one that it starts from."""
    config = job.config
    for before in (config.init, job.trunk):
        if before and "diverged" in _read(RunDir(Path(before))):
            raise Diverged(f"the run that it starts from, {Path(before).name}, diverged")
    # only the last checkpoint is measured, and disks are small beside hundreds of runs
    config = replace(config, run=replace(config.run, keep=1))
    chosen = choose_lr(config, run, runtime, lambda message: None)
    # after an interruption the rate chosen before it holds, which only the saved config has
    chosen = replace(chosen, optim=configs.load(run.config_path).optim)
    source, state = prepare(chosen, runtime)
    if job.trunk and not any(run.checkpoints.glob("step-*")):
        origin = branch.find(job.trunk, "last")
        branch.settings(origin, chosen, len(source.train))
        branch.place(origin, branch.load(origin), run, chosen, runtime)
    step = 0
    for event in fit(chosen, run, runtime, source, state):
        step = event.step
    return step


def _measure(measured: Measured, run: RunDir) -> list[Record]:
    config = measured.config
    # full precision, however the run was trained
    wanted = RunConfig(device=config.device, threads=config.threads, precision="fp32")
    with started(wanted) as runtime:
        split = config.split or default_split(measured.name)
        subject = open_subject(str(run.path), replace(config, split=split), runtime)
        return measure_once(measured.name, subject, config, run)


# --- several at a time


def run_all(jobs: Sequence[Job], *, at_a_time: int, on_done: Callable[[Done], None]) -> None:
    """Do the jobs in order, several at a time; each waits for the run it starts from.

    Jobs that another command is at, here or on a machine that shares the folder, come last.

    Raises:
        Stopped: SIGINT or SIGTERM came; the running jobs are saved.
        ChildProcessError: a process ended by itself.
        ValueError, OSError: as `run_job`."""
    first = [job for job in jobs if not (job.config.init or job.trunk)]
    tuned = [job for job in jobs if job.config.init or job.trunk]
    with signals_raise():
        for wave in (first, tuned):
            left = []
            for job in wave:
                if is_done(job):
                    on_done(run_job(job))
                else:
                    left.append(job)
            for work in (_work, _work_in_turn):
                busy: list[Job] = []

                def ended(done: Done, busy: list[Job] = busy) -> None:
                    if done.busy:
                        busy.append(done.job)
                    else:
                        on_done(done)

                _do(left, work, at_a_time, ended)
                left = busy


def _do(
    jobs: Sequence[Job], work: Callable[[Job], Done], at_a_time: int, ended: Callable[[Done], None]
) -> None:
    # a single job needs no process of its own, and has all cores here
    count = min(at_a_time, len(jobs))
    if count > 1:
        shared = [_with_threads(job, cores() // count) for job in jobs]
        share(shared, work, count, lambda job, done: ended(done))
    for job in jobs if count == 1 else ():
        ended(work(job))


def _with_threads(job: Job, threads: int) -> Job:
    run = job.config.run
    # processes that each take all cores would slow each other down; --run.threads still holds
    run = replace(run, threads=run.threads or max(1, threads))
    return replace(job, config=replace(job.config, run=run))


def _work(job: Job) -> Done:
    return _run(job, wait=False)


def _work_in_turn(job: Job) -> Done:
    return _run(job, wait=True)


def _run(job: Job, *, wait: bool) -> Done:
    with signals_raise():
        try:
            return run_job(job, wait=wait)
        except Interrupted as error:  # training handles signals itself; the pool expects `Stopped`
            raise Stopped(error.signum) from None
