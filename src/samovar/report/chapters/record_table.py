"""List every measurement with its protocol and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samovar.report.drawing.plots import raw_error
from samovar.report.parts import Cell, Column, Data, Group, Row, Table
from samovar.report.protocol import protocol, sentence
from samovar.report.read import RunData
from samovar.report.text import count, setting, with_error
from samovar.runs.records import Record

MOST_ROWS = 300
"""The most records shown in the page; the CSV has all of them."""

_COLUMNS = ("record", "value", "unit", "n", "protocol", "cost", "source")


def record_table(runs: Sequence[RunData]) -> list[Group]:
    """Return a folded table of all records but those of training; nothing if there are none."""
    found = [
        (run, record)
        for run in runs
        for name, records in run.records.items()
        if not name.startswith(("train/", "val/", "watch/"))
        for record in records
    ]
    if not found:
        return []
    # Thousands of rows, though folded away, would slow the page down.
    cut = len(found) > MOST_ROWS
    table = Table(
        "records-table",
        "Every measurement",
        "run",
        [Column(name) for name in _COLUMNS],
        [_row(run, record) for run, record in found[:MOST_ROWS]],
        _data(found),
        f"The first {MOST_ROWS} records; the CSV has all of them." if cut else "",
        numeric=False,
    )
    title = f"Every measurement, {count(len(found), 'record')}"
    return [Group("all-records", title, [table], folded=True)]


def _row(run: RunData, r: Record) -> Row:
    value, error = with_error(r.value, raw_error(r))
    # Split, step and index are in the protocol or follow from the block.
    where = {key: v for key, v in r.where.items() if key not in ("split", "step", "index")}
    places = ", ".join(f"{key} {setting(v)}" for key, v in where.items())
    cost = ", ".join(f"{setting(v)} {key}" for key, v in r.cost.items())
    cells = [
        Cell(f"{r.name}, {places}" if places else r.name),
        Cell(value, error, hollow=not r.converged),
        Cell(r.unit),
        Cell("" if r.n is None else str(r.n)),
        Cell("", details=[sentence(protocol(r, run))]),
        Cell("", details=[cost]),
        Cell("", details=[r.source]),
    ]
    return Row(run.label, cells, run)


def _data(found: Sequence[tuple[RunData, Record]]) -> Data:
    return Data(
        ("run", "name", "value", "unit", "stderr", "residual", "n", "converged", "where",
         "protocol", "cost"),
        [
            (run.label, r.name, r.value, r.unit, r.stderr, r.residual, r.n, r.converged,
             _joined(r.where), sentence(protocol(r, run)), _joined(r.cost))
            for run, r in found
        ],
    )  # fmt: skip


def _joined(values: Mapping[str, object]) -> str:
    return sentence({key: setting(value) for key, value in values.items()})
