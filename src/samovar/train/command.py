"""Train from the shell: open the run folder, train, show progress, print how it ended."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from samovar import config as configs
from samovar.config import Config
from samovar.config.derived import Shorten
from samovar.data.sources import open_source
from samovar.models.load import resolve
from samovar.runs.loggers import check_loggers
from samovar.runs.records import RunDir
from samovar.runtime import Runtime, heartbeat, started
from samovar.runtime.lock import locked
from samovar.train import branch
from samovar.train.estimate import plan_lines
from samovar.train.fit import Diverged, Interrupted, fit, prepare
from samovar.train.fit import Progress as Event
from samovar.train.memory import OutOfMemory
from samovar.train.open_run import begun, finished_line, new_run
from samovar.train.pace import Pace
from samovar.train.resume import check_resume
from samovar.train.transfer import choose_lr, frozen_line, frozen_scores

Again = Callable[[RunDir], Config]
"""Returns the config of a run that was begun, changed by the flags that were given."""


class View(Protocol):
    """Display of a run's events."""

    def __call__(self, event: Event) -> None:
        """Show one event."""


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
    source, state = prepare(replace(config, init="") if saved else config, runtime, source)
    if resumed:
        run = RunDir.open(resumed)
        check_resume(configs.load(run.config_path), config)
    else:
        run, note = new_run(config, runtime, take_over=take_over)
        for line in filter(None, (note, *notes)):
            _print(runtime, line)
        if plan and runtime.is_main:
            _print(runtime, "\n".join(plan_lines(config, source, runtime)))
    if origin:
        branch.place(origin, start, run, config, runtime)
    try:
        with locked(run.path, wait=wait) if runtime.is_main else nullcontext():
            if config.init and config.grid.lr and not saved:
                _print(runtime, frozen_line(frozen_scores(config, run, runtime)))
            chosen = choose_lr(config, run, runtime, partial(_print, runtime))
            # the trials' rate is part of the optimizer, which is built anew
            if chosen != config:
                source, state = prepare(chosen, runtime, source)
            with view(chosen, runtime) as show:
                for event in fit(chosen, run, runtime, source, state):
                    show(event)
    except _STOPS as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        code = 128 + signum if isinstance(error, (Interrupted, KeyboardInterrupt)) else 1
        if runtime.is_main:
            reason = next(iter(str(error).splitlines()), "interrupted")
            print(f"samovar: {reason}", file=sys.stderr)
            print(f"continue with: samovar train --resume {run.path}", file=sys.stderr)
        raise SystemExit(code) from None
    _print(runtime, f"run: {run.path}")
    return run


_STOPS = (
    Interrupted, Diverged, OSError, KeyboardInterrupt, OutOfMemory, torch.OutOfMemoryError,
)  # fmt: skip
"""What ends a run that can be continued."""


def _print(runtime: Runtime, message: str) -> None:
    if runtime.is_main:
        print(message, flush=True)
        heartbeat.said()


@contextmanager
def view(config: Config, runtime: Runtime) -> Iterator[View]:
    """Yield a progress bar on a terminal, plain lines elsewhere; only the main rank shows any."""
    console = Console()
    if not runtime.is_main:
        yield lambda event: None
    elif not console.is_terminal:
        yield PlainView(config)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            yield RichView(config, progress, console)


class RichView:
    """Progress bar with a line per evaluation above it."""

    def __init__(self, config: Config, progress: Progress, console: Console) -> None:
        self.config, self.progress, self.console = config, progress, console
        self.task: TaskID | None = None
        self.pace: Pace | None = None

    def __call__(self, event: Event) -> None:
        """Move the bar, or print a line or the final table."""
        heartbeat.said()
        if event.kind == "start":
            self.pace = Pace(self.config, event)
            for line in start_lines(self.config, event):
                self.console.print(line, highlight=False)
            self.task = self.progress.add_task(
                "training", total=event.total, completed=event.step, facts=""
            )
        elif event.kind == "train" and self.task is not None and self.pace:
            facts = f"{self.pace(event).partition('  ')[2]}  {train_facts(event)}"
            self.progress.update(self.task, completed=event.step, facts=facts)
        elif event.kind == "val" and self.pace:
            text = f"{self.pace(event)}  {val_facts(event)}  {self.pace.eta(event)}"
            self.console.print(text, highlight=False)
        elif event.kind == "note":
            self.console.print(*event.notes, sep="\n", highlight=False)
        elif event.kind == "done":
            self.progress.stop()
            self.console.print(final_table(event))
            for line in event.notes:
                self.console.print(line, highlight=False)


class PlainView:
    """Plain lines for logs and pipes: one per evaluation, and one every 10 s between them."""

    def __init__(self, config: Config) -> None:
        self.config, self.facts = config, ""
        self.pace: Pace | None = None
        self.first = True

    def __call__(self, event: Event) -> None:
        """Print the event; of the training events the first, and others after a silence."""
        lines: list[str] = []
        if event.kind == "start":
            self.pace = Pace(self.config, event)
            lines = start_lines(self.config, event)
        elif event.kind == "train" and self.pace:
            self.facts = train_facts(event)
            # a little earlier than the heartbeat, which knows less
            if self.first or heartbeat.silence() > 0.8 * (heartbeat.period() or heartbeat.PERIOD):
                lines = [f"{self.pace(event)}  {self.facts}  {self.pace.eta(event)}"]
            self.first = False
        elif event.kind == "val" and self.pace:
            facts = f"{self.facts}  {val_facts(event)}"
            lines = [f"{self.pace(event)}  {facts}  {self.pace.eta(event)}"]
        elif event.kind == "note":
            lines = list(event.notes)
        elif event.kind == "done":
            lines = [*event.notes, final_line(event)]
        if lines:
            print("\n".join(lines), flush=True)
            heartbeat.said()


def start_lines(config: Config, event: Event) -> list[str]:
    """Return the title of a training run, and the notes on how it started or resumed."""
    words = configs.sam_words(config.sam)
    variant = f" ({words})" if words else ""
    sam = f"SAM rho {config.sam.rho:g}{variant}" if config.sam.rho else "plain"
    train, val = (int(event.values[f"{split}_images"]) for split in ("train", "val"))
    lengths = [configs.num_steps(each, train) for each in configs.stages(config)]
    counts = " + ".join(map(str, lengths))
    epochs = " + ".join(f"{each * config.data.batch_size / train:.3g}" for each in lengths)
    title = (
        f"{config.recipe}: {config.model.name}, {config.optim.name}, {sam}, "
        f"{train} + {val} images of {config.data.source}, "
        f"{epochs} epochs, {counts} steps"
    )
    return [title, *event.notes]


def train_facts(event: Event) -> str:
    """Format loss, learning rate and speed."""
    v = event.values
    skipped = f"  skipped {v['train/skipped']:.0f}" if v["train/skipped"] else ""
    loss = v["train/loss"] if "train/loss" in v else v["train/contrastive_loss"]
    speed = f"{v['train/images_per_second']:.0f} images/s"
    return f"loss {loss:.4f}  lr {v['train/lr']:.2e}  {speed}{skipped}"


def val_facts(event: Event) -> str:
    """Format validation loss and accuracy, or the k-NN accuracy of features."""
    v = event.values
    if "val/knn_accuracy" in v:
        return f"val k-NN accuracy {100 * v['val/knn_accuracy']:.2f} %"
    return f"val loss {v['val/loss']:.4f}  val accuracy {100 * v['val/accuracy']:.2f} %"


def final_table(event: Event) -> Table:
    """Return a table of the best and the last evaluation of a finished run."""
    table = Table("", "step", "val loss", "val accuracy")
    v = event.values
    for row in ("best", "last"):
        loss, accuracy = v[f"{row}/val/loss"], v[f"{row}/val/accuracy"]
        table.add_row(row, f"{v[f'{row}/step']:.0f}", f"{loss:.4f}", f"{100 * accuracy:.2f} %")
    return table


def final_line(event: Event) -> str:
    """Format the final table as one line, for logs."""
    v = event.values
    best = f"best val accuracy {100 * v['best/val/accuracy']:.2f} % at step {v['best/step']:.0f}"
    return (
        f"done: {best}, last {100 * v['last/val/accuracy']:.2f} %, {v['skipped']:.0f} steps skipped"
    )
