"""Train from the shell: open the run folder, train, show progress, print how it ended."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from samovar import config as configs
from samovar.config import Config
from samovar.config.derived import Shorten
from samovar.data.sources import open_source
from samovar.models import trust
from samovar.models.load import resolve
from samovar.runs.loggers import check_loggers
from samovar.runs.records import RunDir
from samovar.runs.refused import removed_if_refused
from samovar.runtime import Runtime, heartbeat, started
from samovar.runtime.lock import locked
from samovar.train import branch
from samovar.train.estimate import plan_lines
from samovar.train.fit import Diverged, Interrupted, fit, prepare
from samovar.train.memory import OutOfMemory
from samovar.train.open_run import begun, finished_line, new_run
from samovar.train.resume import check_resume
from samovar.train.transfer import choose_lr, frozen_line, frozen_scores
from samovar.train.view import view

Again = Callable[[RunDir], Config]
"""Returns the config of a run that was begun, changed by the flags that were given."""


def train(
    config: Config,
    resumed: Path | None = None,
    *,
    shorten: Shorten | None = None,
    again: Again | None = None,
    wait: bool = False,
    origin: tuple[Path, str] | None = None,
    why: Sequence[str] = (),
    plan: bool = False,
) -> RunDir:
    """Train a config in a new run folder, or the run in folder `resumed` to its end.

    Args:
        shorten: applied to a new run.
        again: continue the run of `config.name` with the config this returns, if it was begun.
        wait: for another process that trains the run.
        origin: a run folder, and a step or `last`: the new run is a branch from that checkpoint.
        why: lines to print first.
        plan: print what a new run will do and its cost here before it starts.

    Returns:
        The run.

    Raises:
        ValueError: settings, data and machine do not fit each other; another process trains the
            run.
        SystemExit: 128 + signal after an interruption, 1 after a divergence, a full disk or a full
            memory; each prints the command that continues the run."""
    check_loggers(config.run.loggers)
    # module:function may name a file in the working folder, which python -m would find as well
    if ":" in config.model.name:
        sys.path.insert(0, str(Path.cwd()))
    with started(config.run) as runtime:
        if again:
            begin, finished = begun(config, runtime)
            if begin and finished:
                _print(runtime, finished_line(begin))
                return begin
            if begin:
                config, resumed = again(begin), begin.path
        for line in why:
            _print(runtime, line)
        found = branch.find(*origin) if origin else None
        return _train(
            config,
            resumed,
            runtime,
            shorten,
            found,
            take_over=again is not None,
            wait=wait,
            plan=plan,
        )


def _train(
    config: Config,
    resumed: Path | None,
    runtime: Runtime,
    shorten: Shorten | None,
    origin: branch.Branch | None,
    *,
    take_over: bool,
    wait: bool,
    plan: bool,
) -> RunDir:
    # a run with a checkpoint no longer needs the weights it started from, which may be gone
    has_steps = resumed is not None and any(RunDir(resumed).checkpoints.glob("step-*"))
    saved = has_steps or origin is not None
    if not saved:
        with heartbeat.doing(f"looking for {config.init or config.model.name}"):
            config = resolve(config)
    configs.validate_layout(config, runtime.world_size)
    source = open_source(config.data)
    notes: tuple[str, ...] = ()
    if shorten and not resumed:
        config, notes = shorten(config, len(source.train))
    if origin:
        config = branch.settings(origin, config, len(source.train))
        start = branch.load(origin)
    # its checkpoint also says how its steps are divided
    fresh = replace(config, init="", run=replace(config.run, memory=0.0)) if saved else config
    source, state = prepare(fresh, runtime, source)
    others: tuple[str, ...] = ()
    if resumed:
        run = RunDir.open(resumed)
        check_resume(configs.load(run.config_path), config)
    else:
        for line in notes:
            _print(runtime, line)
        # the folder is made last, so that what is refused or interrupted until here leaves none
        if plan and runtime.is_main:
            _print(runtime, "\n".join(plan_lines(config, source, runtime)))
        others = tuple(path.name for path in (config.output / config.name).glob("*") if take_over)
        run, note = new_run(config, runtime, take_over=take_over)
        if note:
            _print(runtime, note)
    is_new = runtime.is_main and not resumed
    refusable = removed_if_refused(run, others=others) if is_new else nullcontext()
    with refusable, _continuable(run, runtime), _lock(run, runtime, wait=wait):
        if origin:
            branch.place(origin, start, run, config, runtime)
        if config.init and config.grid.lr and not saved:
            _print(runtime, frozen_line(frozen_scores(config, run, runtime)))
        chosen = choose_lr(config, run, runtime, partial(_print, runtime))
        # the trials' rate is part of the optimizer, which is built anew
        if chosen != config:
            source, state = prepare(chosen, runtime, source)
        with view(chosen, runtime) as show:
            for event in fit(chosen, run, runtime, source, state):
                show(event)
    _print(runtime, f"run: {run.path}")
    return run


_STOPS = (
    Interrupted, Diverged, OSError, KeyboardInterrupt, OutOfMemory, torch.OutOfMemoryError,
)  # fmt: skip
"""What ends a run that can be continued."""


@contextmanager
def _continuable(run: RunDir, runtime: Runtime) -> Iterator[None]:
    """Say how a run that stops can be continued, and end the process."""
    try:
        yield
    except _STOPS as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        code = 128 + signum if isinstance(error, (Interrupted, KeyboardInterrupt)) else 1
        if runtime.is_main:
            reason = next(iter(str(error).splitlines()), "interrupted")
            print(f"samovar: {reason}", file=sys.stderr)
            # the run's own code is in its config by now, where a name alone is not imported
            own_code = ":" in configs.load(run.config_path).model.name
            trusted = f" {trust.FLAG}" if own_code else ""
            print(f"continue with: samovar train --resume {run.path}{trusted}", file=sys.stderr)
        raise SystemExit(code) from None


def _lock(run: RunDir, runtime: Runtime, *, wait: bool) -> AbstractContextManager[None]:
    return locked(run.path, wait=wait) if runtime.is_main else nullcontext()


def _print(runtime: Runtime, message: str) -> None:
    if runtime.is_main:
        print(message, flush=True)
        heartbeat.said()
