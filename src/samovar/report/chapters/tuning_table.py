"""List every setting that a search tried."""

from __future__ import annotations

import math
from collections.abc import Sequence

from samovar.report.chapters.tuning_settings import Tried
from samovar.report.parts import Cell, Column, Data, Row, Table
from samovar.report.read import RunData, number
from samovar.report.text import clean, count, percent, setting, with_error
from samovar.runs.records import Record
from samovar.words import duration


def table(run: RunData, found: Sequence[Tried]) -> Table:
    """Return a table of every setting at every length of run, the best first."""
    names = [name for name, _ in found[0].setting]
    columns = [
        Column("Steps", "optimizer steps of a run"),
        Column("Accuracy", _protocol(found[0].accuracy)),
        Column("Loss, nats", "of the same evaluation"),
        Column("Time", "processor time of the runs of all seeds"),
    ]
    rows = [Row(each.said(names), _cells(each)) for each in found]
    data = Data(
        (*names, "steps", "accuracy", "stderr", "loss", "seeds", "seconds"),
        [
            (*(each.values.get(name) for name in names), each.steps, each.accuracy.value,
             each.accuracy.stderr, each.loss.value if each.loss else None, each.accuracy.n,
             each.accuracy.cost.get("seconds"))
            for each in found
        ],
    )  # fmt: skip
    title = f"{run.label}: every setting"
    return Table(f"tuning-table-{run.index}", title, "setting", columns, rows, data)


def _cells(each: Tried) -> list[Cell]:
    r, loss = each.accuracy, each.loss
    value, error = percent(r.value, r.stderr)
    seconds = number(r.cost.get("seconds"))
    return [
        Cell(f"{each.steps:.0f}"),
        Cell(value if math.isfinite(r.value) else "not finite", error, [count(r.n or 1, "seed")]),
        Cell(*with_error(loss.value, loss.stderr))
        if loss and math.isfinite(loss.value)
        else Cell("–"),
        Cell("–" if seconds is None else duration(seconds)),
    ]


def _protocol(record: Record) -> str:
    """Return how the accuracy was measured."""
    words = {
        key: clean(setting(record.settings[key]))
        for key in ("images", "source", "held_out")
        if key in record.settings
    }
    images = f"{words.get('images', 'some')} images of {words.get('source', 'the source')}"
    held_out = words.get("held_out", "the search")
    return f"of the last evaluation, at the final step, on {images}, held out by {held_out}"
