"""Make tables of facts about runs: those that differ, and those that all runs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samovar.report.parts import Cell, Column, Data, Group, Part, Row, Table
from samovar.report.read import RunData

MOST_COLUMNS = 5
"""With more runs, a table has a row for each run instead of a column."""

Facts = Mapping[str, Sequence[str]]
"""The values of each fact, one for each run."""


def fact_tables(
    id: str, head: str, runs: Sequence[RunData], found: Sequence[Mapping[str, str]]
) -> list[Part]:
    """Return a table of the facts that differ, and one of the shared facts, folded away.

    Args:
        id: of the chapter.
        head: what a row is.
        runs: the runs.
        found: the facts about each run, by name."""
    names = dict.fromkeys(name for facts in found for name in facts)
    values = {name: [facts.get(name, "–") for facts in found] for name in names}
    differ = {name: row for name, row in values.items() if len(set(row)) > 1}
    same = {name: row[:1] for name, row in values.items() if name not in differ}
    if len(runs) == 1:
        return [_by_fact(id, f"All {id}", head, ["value"], same)]
    parts: list[Part] = []
    if differ:
        parts.append(
            _differing(f"{id}-differ", "What differs between the runs", head, runs, differ)
        )
    if same:
        shared = _by_fact(f"{id}-shared", "The same for all runs", head, ["value"], same)
        parts.append(Group(f"{id}-same", "The same for all runs", [shared], folded=True))
    return parts


def _differing(id: str, title: str, head: str, runs: Sequence[RunData], values: Facts) -> Table:
    # A column for each run reads well for few runs, a row for each run fits any number.
    if len(runs) <= MOST_COLUMNS:
        return _by_fact(id, title, head, [run.label for run in runs], values)
    by_run = [(run, [row[i] for row in values.values()]) for i, run in enumerate(runs)]
    rows = [Row(run.label, [Cell(text) for text in texts], run) for run, texts in by_run]
    data = Data(("run", *values), [(run.label, *texts) for run, texts in by_run])
    return Table(id, title, "run", [Column(name) for name in values], rows, data, numeric=False)


def _by_fact(id: str, title: str, head: str, columns: Sequence[str], values: Facts) -> Table:
    rows = [Row(name, [Cell(value) for value in row]) for name, row in values.items()]
    data = Data((head, *columns), [(name, *row) for name, row in values.items()])
    return Table(id, title, head, [Column(column) for column in columns], rows, data, numeric=False)
