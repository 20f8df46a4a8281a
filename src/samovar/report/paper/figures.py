"""The figures of a paper, each a function of the runs; None where they lack the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from samovar.report.chapters import training
from samovar.report.chapters.attention import Looks, looks
from samovar.report.chapters.landscape_grid import Grid, grids, scale
from samovar.report.chapters.spectrum import densities, density_range
from samovar.report.drawing import pictures
from samovar.report.drawing.palette import LIGHT
from samovar.report.drawing.relief import HEIGHTS, draw
from samovar.report.paper.comparison import pareto
from samovar.report.read import RunData, place
from samovar.report.run_names import MANY, Recipe, recipes
from samovar.runs.records import Record

ONE, TWO = 3.25, 6.75  # inches, the widths of one and of two columns

_DASHES = ("-", "--", ":", "-.")


def _text(label: str) -> str:
    return label.replace("$", r"\$")


def _line(color: int) -> dict[str, Any]:
    return {"color": LIGHT[color % MANY], "linestyle": _DASHES[color // MANY % len(_DASHES)]}


def _panels(width: float, height: float, columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).ravel())


def _name_runs(figure: Figure, found: Sequence[RunData | Recipe]) -> None:
    """One legend above all panels; dozens of runs have none."""
    by_label = {item.label: item for item in found}
    if not 1 < len(by_label) <= 2 * MANY:
        return
    handles = [
        Line2D([], [], **_line(item.color), label=_text(item.label)) for item in by_label.values()
    ]
    columns = max(
        1, min(len(handles), int(figure.get_figwidth() * 15 / max(map(len, by_label)) / 1.6))
    )
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=1.6)


def _shown(runs: Sequence[RunData]) -> Sequence[RunData | Recipe]:
    return runs if len(runs) <= MANY else recipes(runs)


def _curves(runs: Sequence[RunData], names: Mapping[str, str]) -> Figure | None:
    names = {name: title for name, title in names.items() if any(run.series(name) for run in runs)}
    if not names:
        return None
    figure, axes = _panels(TWO if len(names) > 1 else ONE, 2.1, len(names))
    for ax, (name, title) in zip(axes, names.items(), strict=True):
        for curve in training.curves(runs, name):
            values, low, high = (
                np.array(column, dtype=float) for column in (curve.values, curve.low, curve.high)
            )
            ax.plot(curve.steps, values, **_line(curve.key.color))
            if len(low):
                ax.fill_between(
                    curve.steps,
                    low,
                    high,
                    color=LIGHT[curve.key.color % MANY],
                    alpha=0.18,
                    linewidth=0,
                )
            hollow = np.array(curve.hollow)
            ax.plot(np.array(curve.steps)[hollow], values[hollow], "o", color=LIGHT[curve.key.color % MANY],
                    markerfacecolor="white", markersize=4)  # fmt: skip
        ax.set(xlabel="step", title=title)
        _log_if_wide(ax)
    _name_runs(figure, _shown([run for run in runs if any(name in run.records for name in names)]))
    return figure


def _log_if_wide(ax: Axes) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        ax.set_yscale("log")


def _training(runs: Sequence[RunData]) -> Figure | None:
    return _curves(
        runs,
        {
            "train/loss": "training loss",
            "val/loss": "held-out loss",
            "val/accuracy": "held-out accuracy",
        },
    )


def _watch(runs: Sequence[RunData]) -> Figure | None:
    return _curves(runs, {"watch/lambda_max": r"$\lambda_{\max}$ while training"})


def _landscape(runs: Sequence[RunData]) -> Figure | None:
    found = _first_kind(grids(runs)[0])
    if not found:
        return None
    shared, columns = scale(found), min(len(found), 4)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(TWO if len(found) > 1 else ONE, 0.3 + rows * min(TWO / columns, 2.9)))
    for k, grid in enumerate(found):
        ax = figure.add_subplot(rows, columns, k + 1, projection="3d")
        draw(ax, grid, shared)
        ax.set_title(_text(grid.run.label), y=0.98)
    figure.subplots_adjust(0.0, 0.02, 0.96, 0.95, 0.06, 0.1)
    return figure


def _contours(runs: Sequence[RunData]) -> Figure | None:
    found = _first_kind(grids(runs)[0])
    if not found:
        return None
    shared, columns = scale(found), min(len(found), 4)
    rows = -(-len(found) // columns)
    figure, axes = _panels(
        TWO if len(found) > 1 else ONE, rows * min(TWO / columns, 2.6), columns, rows
    )
    levels = np.linspace(shared.low, shared.high, 15)
    beyond = "max" if shared.cut_share else "neither"
    for ax in axes[len(found) :]:
        ax.set_visible(False)
    for ax, grid in zip(axes, found, strict=False):
        filled = ax.contourf(
            grid.x, grid.y, np.ma.masked_invalid(grid.loss), levels, cmap=HEIGHTS, extend=beyond
        )
        ax.plot(0, 0, "+", color="white", markersize=6)
        ax.set(title=_text(grid.run.label), aspect="equal")
    figure.colorbar(
        filled, ax=axes, label="loss (nats)", ticks=MaxNLocator(5), shrink=0.85, pad=0.01
    )
    return figure


def _first_kind(found: Sequence[Grid]) -> list[Grid]:
    return [grid for grid in found if grid.kind == found[0].kind]


def _spectrum(runs: Sequence[RunData]) -> Figure | None:
    found, _ = densities(runs)
    if not found:
        return None
    figure, (ax,) = _panels(ONE, 2.2, 1)
    for run, _, arrays in found:
        ax.plot(arrays["grid"], arrays["density"], **_line(run.color))
    ax.set(
        yscale="log",
        ylim=density_range([arrays for *_, arrays in found]),
        xlabel="eigenvalue",
        ylabel="density",
    )
    _name_runs(figure, [run for run, *_ in found])
    return figure


def _blocks(runs: Sequence[RunData]) -> Figure | None:
    batches = [(run, run.batch("hessian/block_lambda_max")) for run in runs]
    found = [
        (run, {str(r.where.get("block")): r for r in records})
        for run, records in batches
        if records
    ]
    if not found:
        return None
    names = list(dict.fromkeys(name for _, records in found for name in records))
    figure, (ax,) = _panels(ONE if len(found) <= 3 else TWO, 2.2, 1)
    width = 0.8 / len(found)
    for k, (run, records) in enumerate(found):
        color = LIGHT[run.color % MANY]
        shift = (k - (len(found) - 1) / 2) * width
        for name, record in records.items():
            face = color if record.converged else "none"
            ax.bar(
                names.index(name) + shift,
                record.value,
                0.92 * width,
                color=face,
                edgecolor=color,
                linewidth=0.8,
            )
    ax.set_xticks(range(len(names)), [_text(name) for name in names], rotation=30, ha="right")
    ax.set(ylabel=r"$\lambda_{\max}$")
    _name_runs(figure, [run for run, _ in found])
    return figure


def _activations(runs: Sequence[RunData]) -> Figure | None:
    return _by_block(runs, "inside/active_fraction", "share of active units")


def _distance(runs: Sequence[RunData]) -> Figure | None:
    return _by_block(runs, "attention/distance", "mean distance (pixels)")


def _by_block(runs: Sequence[RunData], name: str, title: str) -> Figure | None:
    found = [(run, run.batch(name)) for run in runs if run.batch(name)]
    layers = list(
        dict.fromkeys(str(r.where.get("layer", "")) for _, records in found for r in records)
    )
    if not found:
        return None
    figure, axes = _panels(ONE if len(layers) == 1 else TWO, 2.1, len(layers))
    for ax, layer in zip(axes, layers, strict=True):
        for run, records in found:
            _blockwise(ax, run, [r for r in records if str(r.where.get("layer", "")) == layer])
        ax.set(xlabel="block", title=_text(layer) if len(layers) > 1 else "", ylim=(0, None))
    axes[0].set_ylabel(title)
    _name_runs(figure, [run for run, _ in found])
    return figure


def _blockwise(ax: Axes, run: RunData, records: Sequence[Record]) -> None:
    ordered = sorted(records, key=lambda r: place(r, "index"))
    ax.plot(
        range(1, len(ordered) + 1),
        [r.value for r in ordered],
        marker="o",
        markersize=3,
        **_line(run.color),
    )


def _attention(runs: Sequence[RunData]) -> Figure | None:
    found = [look for look in looks(runs)[0] if look.kind == "attention"][:4]
    if not found:
        return None
    columns = min(6, *(len(look.images) for look in found))
    names = [
        "",
        *(label for look in found for label in (f"{look.run.label}\nlast block", "rollout")),
    ]
    figure, axes = _panels(TWO, 0.1 + len(names) * TWO / 6.6, columns, len(names))
    for k, (name, ax) in enumerate(zip(names, axes[::columns], strict=True)):
        ax.set_ylabel(_text(name), rotation=0, ha="right", va="center")
        for i, cell in enumerate(axes[k * columns : (k + 1) * columns]):
            _overlay(
                cell,
                found[max(k - 1, 0) // 2],
                i,
                (None, "maps", "rollout")[0 if not k else 1 + (k - 1) % 2],
            )
    return figure


def _overlay(ax: Axes, look: Looks, i: int, what: str | None) -> None:
    height, width = look.images.shape[1:3]
    ax.imshow(
        look.images[i],
        interpolation="nearest" if max(height, width) <= pictures.COARSE else "antialiased",
    )
    if what:
        values = look.arrays[what][i, -1] if what == "maps" else look.arrays[what][i]
        ax.imshow(
            pictures.heat(values),
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="bilinear",
        )
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
}
