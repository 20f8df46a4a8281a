"""What `samovar reproduce` tells: the plan with its cost, how runs end, numbers beside the paper's,
verdicts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from samovar.studies.reproduce.claims import Outcome
from samovar.studies.reproduce.columns import COLUMNS
from samovar.studies.reproduce.plan import Asked, Task, command_of
from samovar.studies.reproduce.results import Number, Results
from samovar.studies.reproduce.runs import Done, records_of
from samovar.studies.reproduce.scales import SCALES
from samovar.studies.reproduce.studies import STUDIES, title_of


def plan_lines(
    asked: Asked, tasks: Sequence[Task], left: Sequence[Task], all_commands: bool
) -> list[str]:
    """What is about to be trained and measured.

    Args:
        left: tasks that are not done.
        all_commands: whether to name the command of each run."""
    names = ", ".join(f"{name} ({STUDIES[name].where})" for name in asked.names)
    lines = [f"{names} at scale {asked.scale}: {SCALES[asked.scale].summary}"]
    done = len(tasks) - len(left)
    lines.append(
        f"{len(tasks)} runs, {asked.seeds} of each setting"
        + (f"; {done} are there already" if done else "")
    )
    if all_commands:
        lines += [shlex.join(command_of(task)) for task in left]
    return lines


def duration(seconds: float) -> str:
    """Seconds as `40 s`, `12 min`, `3.5 h`, `12 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 86_400:,.0f} days"


@contextmanager
def progress(total: int) -> Iterator[Callable[[Done], None]]:
    """A line per run as it ends, and on a terminal a bar below them."""
    console = Console()
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("runs", total=total)

        def show(done: Done) -> None:
            if done.fresh:
                console.print(_line(done), highlight=False, soft_wrap=True)
            bar.advance(task)

        yield show


def _line(done: Done) -> str:
    if done.diverged:
        return f"{done.task.title}: {done.diverged}"
    records = records_of(done.task)
    found = [
        (column, COLUMNS[column].value(records))
        for column in ("top1", "lambda_max", "corruption", "pgd")
    ]
    said = [
        f"{COLUMNS[column].title} {_short(value)}"
        for column, value in found
        if math.isfinite(value)
    ]
    return f"{done.task.title}: {', '.join(said)}; {duration(done.seconds)}"


def _short(value: float) -> str:
    return f"{value:.4g}"


def numbers_table(found: Results, seeds: int) -> Table:
    """Our means with their standard errors, the paper's numbers below them in brackets."""
    columns = list(dict.fromkeys(number.column for number in found.numbers))
    study = STUDIES[found.name]
    title = f"{study.where}: {study.title}; mean of {seeds} seeds ± standard error [paper]"
    table = Table("", *(COLUMNS[column].title for column in columns), title=title)
    rows: dict[str, list[str]] = {}
    for number in found.numbers:
        rows.setdefault(title_of(number.row), []).append(_cell(number))
    for head, cells in rows.items():
        table.add_row(head, *cells)
    return table


def _cell(number: Number) -> str:
    error = "" if number.stderr is None else f" ± {number.stderr:.2g}"
    ours = f"{_short(number.mean)}{error}" if number.values else "–"
    return (
        ours
        + _few(number)
        + (f"\n\\[{number.paper:g}{star(number)}]" if math.isfinite(number.paper) else "")
    )


def _few(number: Number) -> str:
    n = len(number.values)
    return f" ({n} of {number.asked} seeds)" if 0 < n < number.asked else ""


def star(found: Number | Outcome) -> str:
    """A mark of numbers that only later versions of the paper have."""
    return "*" if found.unverified else ""


def seeds_of(outcome: Outcome) -> str:
    """`3`, or `2 of 3` where one has not all of a claim's numbers."""
    return (
        str(outcome.seeds)
        if outcome.seeds == outcome.asked
        else f"{outcome.seeds} of {outcome.asked}"
    )


def claims_table(outcomes: Sequence[Outcome]) -> Table:
    """Every claim with its verdict, strength and interval."""
    table = Table("claim", "verdict", "here", "90 % interval", "seeds", "paper", title="Claims")
    for o in outcomes:
        unit = f" {o.claim.unit}" if o.claim.unit else ""
        ends = f"{_short(o.low)} to {_short(o.high)}" if o.seeds > 1 else ""
        here = f"{_short(o.value)}{unit}" if o.seeds else "–"
        paper = f"{_short(o.paper)}{unit}{star(o)}" if math.isfinite(o.paper) else ""
        table.add_row(o.claim.text, o.verdict, here, ends, seeds_of(o), paper)
    return table
