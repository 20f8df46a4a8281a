"""Terminal output that the studies share: plan, progress, wide tables, the line after a stop."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from samovar.runtime.terminal import console
from samovar.runtime.workers import Stopped
from samovar.studies.columns import COLUMNS
from samovar.studies.estimate import seconds_left
from samovar.studies.jobs import Job, command_of
from samovar.studies.running import Done, records_of
from samovar.words import duration

Ended = TypeVar("Ended")


def print_plan(
    head: str,
    jobs: Sequence[Job],
    left: Sequence[Job],
    *,
    of_each: str,
    at_a_time: int,
    commands: bool,
) -> None:
    """Print what a study is about to do and how long that takes here.

    Args:
        left: jobs that are not done.
        of_each: number of runs of each kind, such as `3 of each relative`.
        at_a_time: jobs done at a time.
        commands: print the command of each run that is left."""
    done = len(jobs) - len(left)
    print(head)
    print(f"{len(jobs)} runs, {of_each}" + (f"; {done} are there already" if done else ""))
    for job in left if commands else ():
        print(shlex.join(command_of(job)))
    sys.stdout.flush()  # the estimate below takes seconds
    if left:
        seconds = duration(seconds_left(left))
        print(f"about {seconds} of one core or GPU here, {at_a_time} at a time", flush=True)


@contextmanager
def progress(total: int, line: Callable[[Ended], str | None]) -> Iterator[Callable[[Ended], None]]:
    """Yield a function to call with each run that ended; it prints a line and advances a bar.

    Args:
        total: runs in all.
        line: text for a run that ended; None prints nothing."""
    shown = console()
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn())
    # in a file or a pipe every refresh of the bar would be a line
    with Progress(*columns, console=shown, disable=not shown.is_terminal) as bar:
        task = bar.add_task("runs", total=total)

        def show(ended: Ended) -> None:
            text = line(ended)
            if text is not None:
                shown.print(text, highlight=False, soft_wrap=True)
            bar.advance(task)

        yield show


def job_line(done: Done) -> str | None:
    """Return one line on how a job ended; None where it was done before."""
    if not done.fresh:
        return None
    if done.diverged:
        return f"{done.job.title}: {done.diverged}"
    records = records_of(done.job)
    # a job has those of these numbers that its study measures
    columns = [COLUMNS[name] for name in ("top1", "lambda_max", "corruption", "pgd")]
    numbers = [
        f"{column.title} {value:.4g}"
        for column in columns
        if math.isfinite(value := column.value(records))
    ]
    return f"{done.job.title}: {', '.join(numbers)}; {duration(done.seconds)}"


@contextmanager
def resumable(words: Sequence[str]) -> Iterator[None]:
    """Turn a stop inside into one line that gives the command to go on with.

    Args:
        words: that command.

    Raises:
        SystemExit: 128 + signal after an interruption, 1 after a full disk or a lost process."""
    try:
        yield
    except (Stopped, OSError) as error:  # a lost process is an OSError too
        again = shlex.join(words)
        print(f"samovar: {error}; the same command goes on from here: {again}", file=sys.stderr)
        raise SystemExit(128 + error.signum if isinstance(error, Stopped) else 1) from None


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
