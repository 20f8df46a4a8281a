"""Make what the figures of a paper share: panels, lines of runs, legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from samovar.report.drawing.palette import LIGHT
from samovar.report.read import RunData
from samovar.report.run_names import MANY, Recipe

ONE, TWO = 3.25, 6.75  # widths of one and of two columns, in inches

_DASHES = ("-", "--", ":", "-.")


def escaped(label: str) -> str:
    """Escape dollar signs, between which matplotlib reads mathematics."""
    return label.replace("$", r"\$")


def ink(color: int) -> str:
    """Return the colour of a colour index."""
    return LIGHT[color % MANY]


def run_line(color: int) -> dict[str, Any]:
    """Return the line of a run; after `MANY` runs colours repeat with another dash."""
    return {"color": ink(color), "linestyle": _DASHES[color // MANY % len(_DASHES)]}


def panels(width: float, height: float, columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure, in inches, and its panels row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).ravel())


def name_runs(figure: Figure, found: Sequence[RunData | Recipe]) -> None:
    """Add one legend above all panels; one run needs none, and dozens have no room for one."""
    by_label = {item.label: item for item in found}
    if not 1 < len(by_label) <= 2 * MANY:
        return
    handles = [
        Line2D([], [], **run_line(item.color), label=escaped(item.label))
        for item in by_label.values()
    ]
    # An inch holds some 15 letters; 1.6 leaves room for the sample of the line.
    room = int(figure.get_figwidth() * 15 / max(map(len, by_label)) / 1.6)
    columns = max(1, min(len(handles), room))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=1.6)


def log_if_wide(ax: Axes) -> None:
    """Make the y axis logarithmic if all values are positive and span a factor of 20."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        ax.set_yscale("log")
