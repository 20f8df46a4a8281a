"""Show a training run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

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
from samovar.runtime import Runtime, heartbeat
from samovar.runtime.terminal import console
from samovar.train.fit import Progress as Event
from samovar.train.pace import Pace
from samovar.words import visible


class View(Protocol):
    """Display of a run's events."""

    def __call__(self, event: Event) -> None:
        """Show one event."""


@contextmanager
def view(config: Config, runtime: Runtime) -> Iterator[View]:
    """Yield a progress bar on a terminal, plain lines elsewhere; only the main rank shows any."""
    shown = console()
    if not runtime.is_main:
        yield lambda event: None
    elif not shown.is_terminal:
        yield PlainView(config)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=shown) as progress:
            yield RichView(config, progress, shown)


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
            self.console.print(*map(visible, event.notes), sep="\n", highlight=False)
        elif event.kind == "done":
            self.progress.stop()
            self.console.print(final_table(event))
            for line in event.notes:
                self.console.print(visible(line), highlight=False)


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
            lines = [visible(note) for note in event.notes]
        elif event.kind == "done":
            lines = [*map(visible, event.notes), final_line(event)]
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
    return [visible(line) for line in (title, *event.notes)]


def train_facts(event: Event) -> str:
    """Format loss, learning rate and speed."""
    v = event.values
    skipped = f"  skipped {v['train/skipped']:.0f}" if v["train/skipped"] else ""
    loss = v["train/loss"] if "train/loss" in v else v["train/contrastive_loss"]
    speed = f"{v['train/images_per_second']:.0f} images/s"
    speed += f"  MFU {100 * v['train/mfu']:.0f} %" if "train/mfu" in v else ""
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
