"""Read the loss over planes and lines for drawing: check it, thin it, and find a shared scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samovar.report.read import Array, RunData, UnreadableArrays
from samovar.report.text import count
from samovar.runs.records import Record

MOST_POINTS = 61
"""The most points per axis that are drawn; larger grids are thinned."""

CUT_QUANTILE = 0.9
"""The scale ends at this quantile of the losses where a few points are far above the rest."""


@dataclass(frozen=True)
class LandscapeGrid:
    """The loss over a plane or a line, thinned for drawing; NaN where it was not finite."""

    run: RunData
    record: Record
    x: Array
    y: Array | None
    """None for a line."""
    loss: Array
    """Losses [Y, X] of a plane or [X] of a line."""
    center: float
    """Loss of the trained weights."""
    stride: int
    """Every so many points of an axis are drawn."""
    gaps: int
    """Number of points of the measured grid without a finite loss."""

    @property
    def kind(self) -> str:
        """Return the kind of directions: random, eigenvectors or between."""
        return _form(self.record)[0]


@dataclass(frozen=True)
class LandscapeScale:
    """The range of heights and colours that all surfaces share."""

    low: float
    high: float
    cut_share: float
    """Share of the points above `high`; they are drawn at `high`."""


def grids(runs: Sequence[RunData]) -> tuple[list[LandscapeGrid], list[LandscapeGrid]]:
    """Return the newest readable plane and line of each kind and run."""
    planes, lines, _ = read_grids(runs)
    return planes, lines


def read_grids(
    runs: Sequence[RunData],
) -> tuple[list[LandscapeGrid], list[LandscapeGrid], list[str]]:
    """Return the planes, the lines, and a note on each one that cannot be read."""
    planes: list[LandscapeGrid] = []
    lines: list[LandscapeGrid] = []
    notes: list[str] = []
    for run in runs:
        newest = {_form(record): record for record in run.records.get("landscape/height", [])}
        for record in newest.values():
            try:
                grid = _grid(run, record, run.arrays(record))
            except UnreadableArrays as error:
                notes.append(f"{run.label}: {error}; measure its landscape again")
            else:
                (lines if grid.y is None else planes).append(grid)
    return planes, lines, notes


def _form(record: Record) -> tuple[str, str]:
    return str(record.settings.get("kind", "random")), str(record.settings.get("dims", 2))


def _grid(run: RunData, record: Record, arrays: Mapping[str, Array]) -> LandscapeGrid:
    try:
        x = np.asarray(arrays["x"], dtype=np.float64)
        y = np.asarray(arrays["y"], dtype=np.float64) if "y" in arrays else None
        loss = np.asarray(arrays["loss"], dtype=np.float64)
        center = float(np.asarray(arrays["center_loss"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableArrays(
            f"{record.arrays} lacks a valid array of a landscape ({error})"
        ) from None
    if loss.shape != ((len(x),) if y is None else (len(y), len(x))) or loss.size == 0:
        raise UnreadableArrays(
            f"{record.arrays} holds a grid of shape {loss.shape}, which does not fit its axes"
        )
    gaps = int((~np.isfinite(loss)).sum())
    loss = np.where(np.isfinite(loss), loss, np.nan)
    longest = max(loss.shape)
    stride = -(-(longest - 1) // (MOST_POINTS - 1)) if longest > MOST_POINTS else 1
    # The kept points include the middle one: there are the trained weights.
    every = slice(longest // 2 % stride, None, stride)
    if y is None:
        return LandscapeGrid(run, record, x[every], None, loss[every], center, stride, gaps)
    return LandscapeGrid(run, record, x[every], y[every], loss[every, every], center, stride, gaps)


def scale(found: Sequence[LandscapeGrid]) -> LandscapeScale:
    """Return the scale from the lowest loss to the highest.

    Where a few points would hide the differences of all others, it ends at a quantile."""
    values = np.concatenate([grid.loss[np.isfinite(grid.loss)] for grid in found] or [np.zeros(0)])
    if values.size == 0:
        return LandscapeScale(0.0, 1.0, 0.0)
    low, top = float(values.min()), float(values.max())
    high = float(np.quantile(values, CUT_QUANTILE))
    if top - low <= 2.5 * (high - low) or high <= low:
        # A flat landscape needs a range too: a scale of width 0 has no colours.
        high = top if top > low else low + 1e-6 + abs(low) * 1e-6
    return LandscapeScale(low, high, float((values > high).mean()))


def remarks(grid: LandscapeGrid) -> list[str]:
    """Return notes on how the drawing differs from the data."""
    notes = []
    if grid.gaps:
        points = count(grid.gaps, "point")
        notes.append(f"{grid.run.label}: {points} without a finite loss, left blank.")
    if grid.stride > 1:
        notes.append(
            f"{grid.run.label}: drawn with every {grid.stride}th point per axis of "
            f"{grid.record.arrays}."
        )
    return notes
