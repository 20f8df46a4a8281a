"""Curvature and activity inside a network, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samovar.report.drawing.plots import error_of, finite, layout, legend, points, style
from samovar.report.parts import (
    Cell,
    Column,
    Data,
    Figure,
    Part,
    Row,
    Section,
    Table,
    balanced,
    lacking,
)
from samovar.report.protocol import mismatch
from samovar.report.read import RunData, place
from samovar.report.text import clean, plain, slug, with_error
from samovar.runs.records import Record


def blocks(runs: Sequence[RunData]) -> Section:
    """lambda_max of each block of the network."""
    having = [run for run in runs if run.batch("hessian/block_lambda_max")]
    missing = lacking(
        (run for run in runs if run not in having), "eigenvalue of each block", "blocks"
    )
    if not having:
        return Section("blocks", "Curvature by block", "", [], missing)
    found = {
        run.label: (run, {_block(r): r for r in run.batch("hessian/block_lambda_max")})
        for run in having
    }
    parts: list[Part] = [block_figure(list(found.values())), _block_table(list(found.values()))]
    first = {label: (next(iter(records.values())), run) for label, (run, records) in found.items()}
    lead = "Largest eigenvalue of the Hessian with respect to one part’s weights alone; none exceeds the whole’s."
    return Section("blocks", "Curvature by block", lead, parts, missing, mismatch("Blocks", first))


def _block(record: Record) -> str:
    return clean(record.where.get("block", "?"), 40)


def block_figure(found: Sequence[tuple[RunData, Mapping[str, Record]]]) -> Figure:
    """Bars side by side; an outline alone where an iteration stopped early."""
    names = list(dict.fromkeys(name for _, records in found for name in records))
    traces, rows = [], []
    for run, records in found:
        color = style(run.color)["color"]
        here = [records.get(name) for name in names]
        traces.append(
            {
                "type": "bar",
                "x": [plain(name) for name in names],
                "y": [finite(r.value) if r else None for r in here],
                "name": plain(run.label),
                "meta": run.color,
                "marker": {
                    "color": [color if r is None or r.converged else "rgba(0,0,0,0)" for r in here],
                    "line": {"color": color, "width": 1.5},
                },
                "error_y": {
                    "type": "data",
                    "array": [error_of(r) if r else None for r in here],
                    "color": "var(--muted)",
                    "thickness": 1,
                    "width": 2,
                },
                "hovertemplate": "%{fullData.name}<br>%{x}: %{y:.4g}<extra></extra>",
            }
        )
        rows += [
            (run.label, n, r.value, r.residual, r.converged)
            for n, r in zip(names, here, strict=True)
            if r
        ]
    axes = layout(barmode="group", bargap=0.28, bargroupgap=0.08, xaxis={"type": "category"})
    hollow = any(not r.converged for _, records in found for r in records.values())
    caption = "Outlined bars: not converged." if hollow else ""
    data = Data(("run", "block", "lambda_max", "residual", "converged"), rows)
    keys = legend(run for run, _ in found)
    return Figure("blocks-figure", "λ_max by block", {"data": traces, "layout": axes}, data, caption, keys,
                  wide=True)  # fmt: skip


def _block_table(found: Sequence[tuple[RunData, Mapping[str, Record]]]) -> Table:
    names = list(dict.fromkeys(name for _, records in found for name in records))
    rows = []
    for run, records in found:
        cells = [_value(records.get(name)) for name in names]
        rows.append(Row(run.label, cells, run))
    return Table(
        "blocks-table", "λ_max by block, ± residual", "run", [Column(name) for name in names], rows
    )


def _value(record: Record | None) -> Cell:
    if record is None:
        return Cell("–")
    value, error = with_error(record.value, error_of(record))
    return Cell(value, error, hollow=not record.converged)


_INSIDE = {
    "inside/active_fraction": ("Active units", ".0%"),
    "inside/activation_norm": ("Norm of activations", ""),
    "inside/weight_norm": ("Norm of weights", ""),
}


def activations(runs: Sequence[RunData]) -> Section:
    """Share of active units and norms, block by block."""
    figures: list[Figure] = []
    for name, (title, ticks) in _INSIDE.items():
        found = [(run, run.batch(name)) for run in runs if run.batch(name)]
        layers = dict.fromkeys(
            str(r.where.get("layer", "")) for _, records in found for r in records
        )
        for layer in layers:
            of_layer = [
                (run, [r for r in rs if str(r.where.get("layer", "")) == layer])
                for run, rs in found
            ]
            full = f"{title}, {clean(layer, 30)} layers" if layer else title
            figures.append(inside_figure(slug(f"{name}-{layer}"), full, ticks, of_layer))
    without = [run for run in runs if not any(name in run.records for name in _INSIDE)]
    missing = lacking(without, "active fractions per block", "activations")
    records = {run.label: (r, run) for run in runs if (r := run.latest("inside/active_fraction"))}
    lead = "From the first block to the last, over images without augmentation." if figures else ""
    return Section(
        "activations",
        "Activations",
        lead,
        balanced(figures),
        missing,
        mismatch("Activations", records),
    )


def inside_figure(
    id: str, title: str, ticks: str, found: Sequence[tuple[RunData, Sequence[Record]]]
) -> Figure:
    """A value by block, in the order of the forward pass."""
    traces, rows = [], []
    for run, records in found:
        ordered = sorted(records, key=lambda r: place(r, "index"))
        if ordered:
            x = [plain(r.where.get("block", "?")) for r in ordered]
            traces.append(points(run, x, ordered) | {"mode": "lines+markers"})
            rows += [(run.label, _block(r), r.value, r.stderr, r.n) for r in ordered]
    axes = layout(xaxis={"type": "category"}, yaxis={"rangemode": "tozero", "tickformat": ticks})
    keys = legend(run for run, records in found if records)
    return Figure(id, title, {"data": traces, "layout": axes}, Data(("run", "block", "value", "stderr", "n"), rows),
                  keys=keys)  # fmt: skip
