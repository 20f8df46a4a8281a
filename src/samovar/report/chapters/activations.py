"""Show the share of active units and the norms of activations and weights, block by block."""

from __future__ import annotations

from collections.abc import Sequence

from samovar.report.chapters.blocks import block_of
from samovar.report.drawing.plots import layout, legend, record_trace
from samovar.report.parts import Chapter, Data, Figure, balanced, lacking
from samovar.report.protocol import mismatch
from samovar.report.read import RunData, place
from samovar.report.text import clean, plain, slug
from samovar.runs.records import Record

# Title of the figure and format of its ticks, by record.
_FIGURES = {
    "inside/active_fraction": ("Active units", ".0%"),
    "inside/activation_norm": ("Norm of activations", ""),
    "inside/weight_norm": ("Norm of weights", ""),
}


def activations(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: a figure for each number and kind of layer."""
    figures = [
        _figure(name, layer, having)
        for name in _FIGURES
        for layer, having in by_layer(runs, name).items()
    ]
    without = [run for run in runs if not any(name in run.records for name in _FIGURES)]
    records = {run.label: (r, run) for run in runs if (r := run.latest("inside/active_fraction"))}
    return Chapter(
        "activations",
        "Activations",
        "From the first block to the last, on images without augmentation." if figures else "",
        balanced(figures),
        lacking(without, "active fractions per block", "activations"),
        mismatch("Activations", records),
    )


def by_layer(runs: Sequence[RunData], name: str) -> dict[str, list[tuple[RunData, list[Record]]]]:
    """Return the records of each kind of layer by run, in the order of the forward pass."""
    # Records may be written in any order; `index` is the place in the forward pass.
    found: dict[str, dict[int, tuple[RunData, list[Record]]]] = {}
    for run in runs:
        for record in sorted(run.batch(name), key=lambda r: place(r, "index")):
            layer = found.setdefault(str(record.where.get("layer", "")), {})
            layer.setdefault(run.index, (run, []))[1].append(record)
    return {layer: list(of_runs.values()) for layer, of_runs in found.items()}


def _figure(name: str, layer: str, found: Sequence[tuple[RunData, Sequence[Record]]]) -> Figure:
    title, ticks = _FIGURES[name]
    traces, rows = [], []
    for run, records in found:
        marks = [(plain(record.where.get("block", "?")), record) for record in records]
        traces.append(record_trace(run, marks))
        rows += [(run.label, block_of(r), r.value, r.stderr, r.n) for r in records]
    axes = layout(xaxis={"type": "category"}, yaxis={"rangemode": "tozero", "tickformat": ticks})
    return Figure(
        slug(f"{name}-{layer}"),
        f"{title}, {clean(layer, 30)} layers" if layer else title,
        {"data": traces, "layout": axes},
        Data(("run", "block", "value", "stderr", "n"), rows),
        keys=legend(run for run, _ in found),
    )
