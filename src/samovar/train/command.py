"""Train from the shell: open the run folder, train, show progress, print how it ended."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch.distributed as dist
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
from samovar.models.load import resolve
from samovar.runs.loggers import check_loggers
from samovar.runs.records import RunDir, timestamp
from samovar.runtime import Runtime, started
from samovar.train.fit import Diverged, Interrupted, fit, prepare
from samovar.train.fit import Progress as Event
from samovar.train.resume import check_resume
from samovar.train.transfer import choose_lr, frozen_line, frozen_scores


class View(Protocol):
    """Display of a run's events."""

    def __call__(self, event: Event) -> None:
        """Show one event."""


def train(config: Config, resumed: Path | None = None) -> RunDir:
    """Train a config in a new run folder, or the run in folder `resumed` to its end.

    Returns:
        The run.

    Raises:
        ValueError: settings, data and machine do not fit each other.
        SystemExit: 128 + signal after an interruption, 1 after a divergence or a full disk; each
            prints the command that continues the run."""
    check_loggers(config.run.loggers)
    # module:function may name a file in the working folder, which python -m would find as well
    if ":" in config.model.name:
        sys.path.insert(0, str(Path.cwd()))
    with started(config.run) as runtime:
        # a run with a checkpoint no longer needs the weights it started from, which may be gone
        begun = resumed is not None and any(RunDir(resumed).checkpoints.glob("step-*"))
        config = config if begun else resolve(config)
        source, state = prepare(replace(config, init="") if begun else config, runtime)
        run = _open_run(config, resumed, runtime)
        try:
            if config.init and config.grid.lr and not begun:
                _print(runtime, frozen_line(frozen_scores(config, run, runtime)))
            chosen = choose_lr(config, run, runtime, partial(_print, runtime))
            # the trials' rate is part of the optimizer, which is built anew
            if chosen != config:
                source, state = prepare(chosen, runtime)
            with view(chosen, runtime) as show:
                for event in fit(chosen, run, runtime, source, state):
                    show(event)
        except (Interrupted, Diverged, OSError, KeyboardInterrupt) as error:
            signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
            code = 128 + signum if isinstance(error, (Interrupted, KeyboardInterrupt)) else 1
            if runtime.is_main:
                print(f"samovar: {str(error) or 'interrupted'}", file=sys.stderr)
                print(f"continue with: samovar train --resume {run.path}", file=sys.stderr)
            raise SystemExit(code) from None
        _print(runtime, f"run: {run.path}")
    return run


def _open_run(config: Config, resumed: Path | None, runtime: Runtime) -> RunDir:
    """Return the run folder, the same on all ranks; the main rank makes it and saves the config."""
    if resumed:
        run = RunDir.open(resumed)
        check_resume(configs.load(run.config_path), config)
        return run
    paths: list[Path | None] = [None]
    if runtime.is_main:
        name = config.name or f"{config.recipe}-seed{config.seed}-{timestamp()}"
        run = RunDir.create(config.output, name)
        configs.save(config, run.config_path)
        paths[0] = run.path
    if runtime.world_size > 1:
        dist.broadcast_object_list(paths, src=0)
    assert paths[0] is not None
    return RunDir(paths[0])


def _print(runtime: Runtime, message: str) -> None:
    if runtime.is_main:
        print(message, flush=True)


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

    def __call__(self, event: Event) -> None:
        """Move the bar, or print a line or the final table."""
        if event.kind == "start":
            for line in start_lines(self.config, event):
                self.console.print(line, highlight=False)
            self.task = self.progress.add_task(
                "training", total=event.total, completed=event.step, facts=""
            )
        elif event.kind == "train" and self.task is not None:
            self.progress.update(self.task, completed=event.step, facts=train_facts(event))
        elif event.kind == "val":
            self.console.print(
                f"step {event.step}/{event.total}  {val_facts(event)}", highlight=False
            )
        elif event.kind == "done":
            self.progress.stop()
            self.console.print(final_table(event))
            for line in event.notes:
                self.console.print(line, highlight=False)


class PlainView:
    """Plain lines for logs and pipes: one per evaluation, and one every 10 s between them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.last, self.facts = time.monotonic(), ""

    def __call__(self, event: Event) -> None:
        """Print the event; a training event only 10 s or more after the last line."""
        if event.kind == "start":
            print("\n".join(start_lines(self.config, event)), flush=True)
        elif event.kind == "train":
            self.facts = train_facts(event)
            if time.monotonic() - self.last > 10:
                self.last = time.monotonic()
                print(f"step {event.step}/{event.total}  {self.facts}", flush=True)
        elif event.kind == "val":
            self.last = time.monotonic()
            print(f"step {event.step}/{event.total}  {self.facts}  {val_facts(event)}", flush=True)
        elif event.kind == "done":
            print("\n".join([*event.notes, final_line(event)]), flush=True)


def start_lines(config: Config, event: Event) -> list[str]:
    """Return the title of a training run, and the notes on how it started or resumed."""
    words = configs.sam_words(config.sam)
    variant = f" ({words})" if words else ""
    sam = f"SAM rho {config.sam.rho:g}{variant}" if config.sam.rho else "plain"
    train, val = (int(event.values[f"{split}_images"]) for split in ("train", "val"))
    counts = " + ".join(str(configs.num_steps(each, train)) for each in configs.stages(config))
    title = (
        f"{config.recipe}: {config.model.name}, {config.optim.name}, {sam}, "
        f"{train} + {val} images of {config.data.source}, {counts} steps"
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
