"""Where numbers come from: settings and provenance."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from samovar.report.parts import Cell, Column, Data, Group, Row, Section, Table
from samovar.report.read import RunData
from samovar.report.text import clean, setting

MOST_COLUMNS = 5
"""With more runs than this, a table has a row a run instead of a column."""


def settings(runs: Sequence[RunData]) -> Section:
    """Settings that differ between runs, and those they share folded away."""
    found = [{name: setting(value) for name, value in run.config.items()} for run in runs]
    lead, parts = _tables("settings", "setting", runs, found)
    return Section("settings", "Settings", lead, parts)


def provenance(runs: Sequence[RunData]) -> Section:
    """Versions, hardware, commands and the state of the source tree."""
    found = [
        {"folder": clean(run.path, 400), "records": str(sum(map(len, run.records.values())))}
        | _flat(run.provenance)
        for run in runs
    ]
    notes = [
        f"{run.label}: provenance.json is missing or damaged; versions and hardware are not known"
        for run in runs
        if not run.provenance and run.trained
    ]
    _, parts = _tables("provenance", "fact", runs, found)
    return Section("provenance", "Provenance", "", parts, (), notes)


def _tables(
    id: str, head: str, runs: Sequence[RunData], found: Sequence[Mapping[str, str]]
) -> tuple[str, list[Table | Group]]:
    names = list(dict.fromkeys(name for values in found for name in values))
    values = {name: [column.get(name, "–") for column in found] for name in names}
    differ = {name: row for name, row in values.items() if len(set(row)) > 1}
    same = {name: row[:1] for name, row in values.items() if name not in differ}
    if len(runs) == 1:
        return "", [_table(id, f"All {id}", head, ["value"], same)]
    parts: list[Table | Group] = []
    if differ:
        parts.append(_by_run(f"{id}-differ", "What differs between the runs", head, runs, differ))
    if same:
        shared = _table(f"{id}-shared", "The same for all runs", head, ["value"], same)
        parts.append(Group(f"{id}-same", "The same for all runs", [shared], folded=True))
    return "" if differ else f"No {head} differs between these runs.", parts


def _by_run(
    id: str, title: str, head: str, runs: Sequence[RunData], values: Mapping[str, Sequence[str]]
) -> Table:
    if len(runs) <= MOST_COLUMNS:
        return _table(id, title, head, [run.label for run in runs], values)
    rows = [
        Row(run.label, [Cell(row[i]) for row in values.values()], run) for i, run in enumerate(runs)
    ]
    data = Data(
        ("run", *values),
        [(run.label, *(row[i] for row in values.values())) for i, run in enumerate(runs)],
    )
    return Table(id, title, "run", [Column(name) for name in values], rows, data, numeric=False)


def _table(
    id: str, title: str, head: str, columns: Sequence[str], values: Mapping[str, Sequence[str]]
) -> Table:
    rows = [Row(name, [Cell(value) for value in row]) for name, row in values.items()]
    data = Data((head, *columns), [(name, *row) for name, row in values.items()])
    return Table(id, title, head, [Column(column) for column in columns], rows, data, numeric=False)


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        if name == "command" and isinstance(value, list):
            found[name] = clean(shlex.join(map(str, value)), 1000)
        elif isinstance(value, dict):
            found |= {str(key): setting(item) for key, item in value.items()}
        else:
            found[name] = setting(value)
    return found
