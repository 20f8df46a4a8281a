"""Draw the figures of a paper, each from runs; None where they lack the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samovar.report.chapters.activations import by_layer
from samovar.report.chapters.attention_maps import AttentionMaps, attention_maps
from samovar.report.chapters.blocks import block_names, records_by_block
from samovar.report.chapters.curves import Curve, curves
from samovar.report.chapters.spectrum import densities, density_range
from samovar.report.drawing import pictures
from samovar.report.drawing.landscape_grid import LandscapeGrid, grids, scale
from samovar.report.drawing.relief import HEIGHTS, draw
from samovar.report.paper.claims import claims
from samovar.report.paper.comparison import pareto
from samovar.report.paper.panels import (
    ONE,
    TWO,
    escaped,
    ink,
    log_if_wide,
    name_runs,
    panels,
    run_line,
)
from samovar.report.read import RunData
from samovar.report.run_names import MANY, recipes
from samovar.runs.records import Record


def _curves(runs: Sequence[RunData], names: Mapping[str, str]) -> Figure | None:
    """Draw a panel for each record, by name and title, that some run has."""
    names = {name: title for name, title in names.items() if any(run.series(name) for run in runs)}
    if not names:
        return None
    figure, axes = panels(TWO if len(names) > 1 else ONE, 2.1, len(names))
    for ax, (name, title) in zip(axes, names.items(), strict=True):
        for curve in curves(runs, name):
            _draw_curve(ax, curve)
        ax.set(xlabel="step", title=title)
        log_if_wide(ax)
    shown = [run for run in runs if any(name in run.records for name in names)]
    name_runs(figure, shown if len(shown) <= MANY else recipes(shown))
    return figure


def _draw_curve(ax: Axes, curve: Curve) -> None:
    """Draw a curve with its band; values that did not converge get a hollow marker."""
    steps = [point.step for point in curve.points]
    values, low, high = (
        np.array(column, dtype=float)
        for column in zip(*((p.value, p.low, p.high) for p in curve.points), strict=True)
    )
    color = ink(curve.key.color)
    ax.plot(steps, values, **run_line(curve.key.color))
    if curve.banded:
        ax.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    stopped = [p for p in curve.points if not p.converged]
    ax.plot(
        [p.step for p in stopped],
        np.array([p.value for p in stopped], dtype=float),
        "o",
        color=color,
        markerfacecolor="white",
        markersize=4,
    )


def _training(runs: Sequence[RunData]) -> Figure | None:
    names = {
        "train/loss": "training loss",
        "val/loss": "held-out loss",
        "val/accuracy": "held-out accuracy",
    }
    return _curves(runs, names)


def _watch(runs: Sequence[RunData]) -> Figure | None:
    return _curves(runs, {"watch/lambda_max": r"$\lambda_{\max}$ while training"})


def _landscape(runs: Sequence[RunData]) -> Figure | None:
    found = _first_kind(grids(runs)[0])
    if not found:
        return None
    shared, columns = scale(found), min(len(found), 4)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(TWO if len(found) > 1 else ONE, 0.3 + rows * min(TWO / columns, 2.9)))
    for k, grid in enumerate(found, 1):
        ax = figure.add_subplot(rows, columns, k, projection="3d")
        draw(ax, grid, shared)
        ax.set_title(escaped(grid.run.label), y=0.98)
    # A constrained layout does not see the labels of 3-D axes and cuts them off.
    figure.subplots_adjust(0.0, 0.02, 0.96, 0.95, 0.06, 0.1)
    return figure


def _contours(runs: Sequence[RunData]) -> Figure | None:
    found = _first_kind(grids(runs)[0])
    if not found:
        return None
    shared, columns = scale(found), min(len(found), 4)
    rows = -(-len(found) // columns)
    width, height = TWO if len(found) > 1 else ONE, rows * min(TWO / columns, 2.6)
    figure, axes = panels(width, height, columns, rows)
    levels = np.linspace(shared.low, shared.high, 15)
    beyond = "max" if shared.cut_share else "neither"
    # The last row may have panels to spare.
    for ax in axes[len(found) :]:
        ax.set_visible(False)
    for ax, grid in zip(axes, found, strict=False):
        loss = np.ma.masked_invalid(grid.loss)
        filled = ax.contourf(grid.x, grid.y, loss, levels, cmap=HEIGHTS, extend=beyond)
        ax.plot(0, 0, "+", color="white", markersize=6)
        ax.set(title=escaped(grid.run.label), aspect="equal")
    ticks = MaxNLocator(5)
    figure.colorbar(filled, ax=axes, label="loss (nats)", ticks=ticks, shrink=0.85, pad=0.01)
    return figure


def _first_kind(found: Sequence[LandscapeGrid]) -> list[LandscapeGrid]:
    return [grid for grid in found if grid.kind == found[0].kind]


def _spectrum(runs: Sequence[RunData]) -> Figure | None:
    found, _ = densities(runs)
    if not found:
        return None
    figure, (ax,) = panels(ONE, 2.2, 1)
    for item in found:
        ax.plot(item.grid, item.density, **run_line(item.run.color))
    ax.set(yscale="log", ylim=density_range(found), xlabel="eigenvalue", ylabel="density")
    name_runs(figure, [item.run for item in found])
    return figure


def _blocks(runs: Sequence[RunData]) -> Figure | None:
    found = [(run, by_block) for run in runs if (by_block := records_by_block(run))]
    if not found:
        return None
    names = block_names(found)
    figure, (ax,) = panels(ONE if len(found) <= 3 else TWO, 2.2, 1)
    for k, (run, by_block) in enumerate(found):
        # The bars of all runs share 0.8 of the space of a block, centred on its name.
        middle = (k + 0.5) / len(found) - 0.5
        places = {names.index(name) + 0.8 * middle: r for name, r in by_block.items()}
        _bars(ax, ink(run.color), 0.8 / len(found), places)
    ax.set_xticks(range(len(names)), [escaped(name) for name in names], rotation=30, ha="right")
    ax.set(ylabel=r"$\lambda_{\max}$")
    name_runs(figure, [run for run, _ in found])
    return figure


def _bars(ax: Axes, color: str, width: float, records: Mapping[float, Record]) -> None:
    """Draw bars at some places; those that did not converge are outlines."""
    ax.bar(
        list(records),
        [record.value for record in records.values()],
        0.92 * width,
        color=[color if record.converged else "none" for record in records.values()],
        edgecolor=color,
        linewidth=0.8,
    )


def _activations(runs: Sequence[RunData]) -> Figure | None:
    return _by_block(runs, "inside/active_fraction", "share of active units")


def _distance(runs: Sequence[RunData]) -> Figure | None:
    return _by_block(runs, "attention/distance", "mean distance (pixels)")


def _by_block(runs: Sequence[RunData], name: str, title: str) -> Figure | None:
    """Draw a record from the first block to the last, a panel for each kind of layer."""
    found = by_layer(runs, name)
    if not found:
        return None
    figure, axes = panels(ONE if len(found) == 1 else TWO, 2.1, len(found))
    for ax, (layer, by_run) in zip(axes, found.items(), strict=True):
        for run, records in by_run:
            values = [record.value for record in records]
            blocks = range(1, len(values) + 1)
            ax.plot(blocks, values, marker="o", markersize=3, **run_line(run.color))
        ax.set(xlabel="block", title=escaped(layer) if len(found) > 1 else "", ylim=(0, None))
    axes[0].set_ylabel(title)
    name_runs(figure, [run for by_run in found.values() for run, _ in by_run])
    return figure


def _attention(runs: Sequence[RunData]) -> Figure | None:
    """Draw images in a row, and below them the last block and the rollout of up to four runs."""
    found = [maps for maps in attention_maps(runs)[0] if maps.kind == "attention"][:4]
    if not found:
        return None
    columns = min(6, *(len(maps.images) for maps in found))
    # All runs show the same images, so those of the first stand for all.
    rows = [("", found[0], "")]
    for maps in found:
        rows += [(f"{maps.run.label}\nlast block", maps, "maps"), ("rollout", maps, "rollout")]
    figure, axes = panels(TWO, 0.1 + len(rows) * TWO / 6.6, columns, len(rows))
    for k, (name, maps, what) in enumerate(rows):
        cells = axes[k * columns : (k + 1) * columns]
        cells[0].set_ylabel(escaped(name), rotation=0, ha="right", va="center")
        for i, cell in enumerate(cells):
            _overlay(cell, maps, i, what)
    return figure


def _overlay(ax: Axes, maps: AttentionMaps, i: int, what: str) -> None:
    """Draw image `i`, and over it the map of an array if `what` names one."""
    height, width = maps.images.shape[1:3]
    coarse = max(height, width) <= pictures.COARSE
    ax.imshow(maps.images[i], interpolation="nearest" if coarse else "antialiased")
    if what:
        values = maps.arrays[what][i, -1] if what == "maps" else maps.arrays[what][i]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        ax.imshow(pictures.heat(values), extent=extent, interpolation="bilinear")
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)


FIGURES: dict[str, Callable[[Sequence[RunData]], Figure | None]] = {
    "training": _training,
    "watch": _watch,
    "landscape": _landscape,
    "contours": _contours,
    "spectrum": _spectrum,
    "blocks": _blocks,
    "active-fractions": _activations,
    "attention-distance": _distance,
    "attention": _attention,
    "pareto": pareto,
    "claims": claims,
}
"""All figures by the name of their file."""
