"""Show the largest eigenvalue of the Hessian for each block of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samovar.report.chapters.saddles import saddle_details, saddle_notes
from samovar.report.drawing.plots import error_of, finite, layout, legend, style
from samovar.report.parts import Cell, Chapter, Column, Data, Figure, Part, Row, Table, lacking
from samovar.report.protocol import mismatch
from samovar.report.read import RunData
from samovar.report.text import clean, plain, with_error
from samovar.runs.records import Record

BLOCK_LAMBDA_MAX = "hessian/block_lambda_max"

_LEAD = (
    "Largest eigenvalue of the Hessian with respect to the weights of one block alone. It never "
    "exceeds that of the whole network."
)

Blocks = tuple[RunData, Mapping[str, Record]]
"""A run and its records by block."""


def blocks(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: bars side by side and a table."""
    found = [(run, by_block) for run in runs if (by_block := records_by_block(run))]
    having = [run for run, _ in found]
    missing = lacking(
        (run for run in runs if run not in having), "eigenvalue of each block", "blocks"
    )
    if not found:
        return Chapter("blocks", "Curvature by block", "", [], missing)
    # All blocks of a run are measured by one command, so one record states the protocol.
    first = {run.label: (next(iter(by_block.values())), run) for run, by_block in found}
    parts: list[Part] = [_figure(found), _table(found)]
    notes = mismatch("Blocks", first)
    notes += saddle_notes((run, record) for run, of in found for record in of.values())
    return Chapter("blocks", "Curvature by block", _LEAD, parts, missing, notes)


def records_by_block(run: RunData) -> dict[str, Record]:
    """Return the largest eigenvalue of each block."""
    return {block_of(record): record for record in run.batch(BLOCK_LAMBDA_MAX)}


def block_of(record: Record) -> str:
    """Return the name of the block that a record is about."""
    return clean(record.where.get("block", "?"), 40)


def block_names(found: Sequence[Blocks]) -> list[str]:
    """Return the blocks of all runs, in order of appearance."""
    return list(dict.fromkeys(name for _, by_block in found for name in by_block))


def _figure(found: Sequence[Blocks]) -> Figure:
    names = block_names(found)
    records = [(run, name, by_block[name]) for run, by_block in found for name in names
               if name in by_block]  # fmt: skip
    stopped = any(not record.converged for _, _, record in records)
    axes = layout(barmode="group", bargap=0.28, bargroupgap=0.08, xaxis={"type": "category"})
    return Figure(
        "blocks-figure",
        "λ_max by block",
        {"data": [_bars(run, by_block, names) for run, by_block in found], "layout": axes},
        Data(
            ("run", "block", "lambda_max", "residual", "converged"),
            [(run.label, name, r.value, r.residual, r.converged) for run, name, r in records],
        ),
        "Outlined bars: not converged." if stopped else "",
        legend(run for run, _ in found),
        wide=True,
        sense="lower is flatter",
    )


def _bars(run: RunData, by_block: Mapping[str, Record], names: Sequence[str]) -> dict[str, Any]:
    """Return the bars of a run; they are outlined where an iteration stopped early."""
    color = style(run.color)["color"]
    records = [by_block.get(name) for name in names]
    clear = "rgba(0,0,0,0)"
    return {
        "type": "bar",
        "x": [plain(name) for name in names],
        "y": [finite(r.value) if r else None for r in records],
        "name": plain(run.label),
        "meta": run.color,
        "marker": {
            "color": [clear if r and not r.converged else color for r in records],
            "line": {"color": color, "width": 1.5},
        },
        "error_y": {
            "type": "data",
            "array": [error_of(r) if r else None for r in records],
            "color": "var(--muted)",
            "thickness": 1,
            "width": 2,
        },
        "hovertemplate": "%{fullData.name}<br>%{x}: %{y:.4g}<extra></extra>",
    }


def _table(found: Sequence[Blocks]) -> Table:
    names = block_names(found)
    rows = [Row(run.label, [_cell(run, of.get(name)) for name in names], run) for run, of in found]
    columns = [Column(name) for name in names]
    return Table("blocks-table", "λ_max by block, ± residual", "run", columns, rows)


def _cell(run: RunData, record: Record | None) -> Cell:
    if record is None:
        return Cell("–")
    value, error = with_error(record.value, error_of(record))
    return Cell(value, error, saddle_details(run, record), hollow=not record.converged)
