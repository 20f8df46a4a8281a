"""Run a config from the shell: make or reopen the run folder, train, show what happens, say how it
ended."""

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
from samovar.runs.loggers import check_sinks
from samovar.runs.records import RunDir, timestamp
from samovar.runtime import Runtime, started
from samovar.train.fit import Diverged, Interrupted, check_resume, fit, prepare
from samovar.train.fit import Progress as Event
from samovar.train.transfer import choose_lr, frozen_line, frozen_scores


class View(Protocol):
    """What shows a run's events to a person."""

    def __call__(self, event: Event) -> None:
        """Show one event."""


def train(config: Config, resumed: Path | None = None) -> RunDir:
    """Train `config` in a new run folder, or `resumed` to its end, showing progress; returns the
    run.

    Raises:
        ValueError: settings, data and machine do not fit each other.
        SystemExit: 128 + signal after an interruption, 1 after a divergence or a full disk; all say
            how to go on."""
    check_sinks(config.run.loggers)
    if ":" in config.model.name:  # module:function may lie in the working folder, as with python -m
        sys.path.insert(0, str(Path.cwd()))
    with started(config.run) as runtime:
        # a run that has begun no longer needs the weights it began from
        begun = resumed is not None and any(RunDir(resumed).checkpoints.glob("step-*"))
        config = config if begun else resolve(config)
        source, state = prepare(replace(config, init="") if begun else config, runtime)
        run = _open_run(config, resumed, runtime)
        try:
            if config.init and config.grid.lr and not begun:
                _tell(runtime, frozen_line(frozen_scores(config, run, runtime)))
            chosen = choose_lr(config, run, runtime, partial(_tell, runtime))
            if chosen != config:
                source, state = prepare(chosen, runtime)
            with view(chosen, runtime) as show:
                for event in fit(chosen, run, runtime, source, state):
                    show(event)
        except (Interrupted, Diverged, OSError, KeyboardInterrupt) as error:
            signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
            code = 128 + signum if isinstance(error, (Interrupted, KeyboardInterrupt)) else 1
            _say(
                runtime,
                f"{str(error) or 'interrupted'}\ncontinue with: samovar train --resume {run.path}",
            )
            raise SystemExit(code) from None
        _tell(runtime, f"run: {run.path}")
    return run


def _open_run(config: Config, resumed: Path | None, runtime: Runtime) -> RunDir:
    """The run folder, the same on every rank; the main rank makes it and saves the config in it."""
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


def _tell(runtime: Runtime, message: str) -> None:
    if runtime.is_main:
        print(message, flush=True)


def _say(runtime: Runtime, message: str) -> None:
    if runtime.is_main:
        print(f"samovar: {message}", file=sys.stderr)


@contextmanager
def view(config: Config, runtime: Runtime) -> Iterator[View]:
    """A progress bar on a terminal, plain lines elsewhere, nothing on ranks other than the main
    one."""
    console = Console()
    if not runtime.is_main:
        yield lambda event: None
    elif not console.is_terminal:
        yield PlainView(config)
    else:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as progress:
            yield RichView(config, progress, console)


class RichView:
    """A bar that moves, and a line per evaluation above it."""

    def __init__(self, config: Config, progress: Progress, console: Console) -> None:
        self.config, self.progress, self.console = config, progress, console
        self.task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Move the bar, print the line or the final table."""
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


class PlainView:
    """Lines for logs and pipes: one per evaluation, and one every ten seconds between them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.last, self.facts = time.monotonic(), ""

    def __call__(self, event: Event) -> None:
        """Print the event unless it is too soon after the last."""
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
            print(final_line(event), flush=True)


def start_lines(config: Config, event: Event) -> list[str]:
    """What is about to be trained, and what happened on resuming."""
    words = configs.sam_words(config.sam)
    sam = (
        f"SAM rho {config.sam.rho:g}{f' ({words})' if words else ''}" if config.sam.rho else "plain"
    )
    images = f"{event.values['train_images']:.0f} + {event.values['val_images']:.0f} images of {config.data.source}"
    parts = [
        configs.num_steps(stage, int(event.values["train_images"]))
        for stage in configs.stages(config)
    ]
    counted = " + ".join(map(str, parts))
    title = f"{config.recipe}: {config.model.name}, {config.optim.name}, {sam}, {images}, {counted} steps"
    return [title, *event.notes]


def train_facts(event: Event) -> str:
    """Loss, learning rate and speed in a few words."""
    v = event.values
    skipped = f"  skipped {v['train/skipped']:.0f}" if v["train/skipped"] else ""
    loss = v["train/loss"] if "train/loss" in v else v["train/contrastive_loss"]
    return f"loss {loss:.4f}  lr {v['train/lr']:.2e}  {v['train/images_per_second']:.0f} images/s{skipped}"


def val_facts(event: Event) -> str:
    """Validation loss and accuracy, or what near neighbours say of the features, in a few words."""
    if "val/knn_accuracy" in event.values:
        return f"val k-NN accuracy {100 * event.values['val/knn_accuracy']:.2f} %"
    return f"val loss {event.values['val/loss']:.4f}  val accuracy {100 * event.values['val/accuracy']:.2f} %"


def final_table(event: Event) -> Table:
    """Best and last evaluation of a finished run."""
    table = Table("", "step", "val loss", "val accuracy")
    for row, prefix in (("best", "best/"), ("last", "last/")):
        v = {
            k.removeprefix(prefix): value
            for k, value in event.values.items()
            if k.startswith(prefix)
        }
        table.add_row(
            row, f"{v['step']:.0f}", f"{v['val/loss']:.4f}", f"{100 * v['val/accuracy']:.2f} %"
        )
    return table


def final_line(event: Event) -> str:
    """The final table as one line, for logs."""
    v = event.values
    best = f"best val accuracy {100 * v['best/val/accuracy']:.2f} % at step {v['best/step']:.0f}"
    return (
        f"done: {best}, last {100 * v['last/val/accuracy']:.2f} %, {v['skipped']:.0f} steps skipped"
    )
