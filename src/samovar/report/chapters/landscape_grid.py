"""The loss over planes and lines as the report draws it: checked, thinned, on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samovar.report.read import Array, RunData, UnreadableArrays
from samovar.report.text import count
from samovar.runs.records import Record

MOST_POINTS = 61
"""Points per axis that are drawn; larger grids are thinned."""

CUT_QUANTILE = 0.9


@dataclass(frozen=True)
class Grid:
    """The loss over a plane or a line, thinned to what is drawn; NaN where it was not finite."""

    run: RunData
    record: Record
    x: Array
    y: Array | None
    loss: Array
    """[Y, X] or [X]."""
    center: float
    stride: int
    gaps: int
    """Points of the whole grid without a finite loss."""

    @property
    def kind(self) -> str:
        """Which directions: random, eigenvectors or between."""
        return _form(self.record)[0]


@dataclass(frozen=True)
class Scale:
    """Heights and colours that all surfaces share."""

    low: float
    high: float
    cut_share: float
    """Share of the points above `high`, which are drawn at it."""


def grids(runs: Sequence[RunData]) -> tuple[list[Grid], list[Grid]]:
    """The newest plane and line of each kind and run that can be read."""
    planes, lines, _ = read_grids(runs)
    return planes, lines


def read_grids(runs: Sequence[RunData]) -> tuple[list[Grid], list[Grid], list[str]]:
    """The planes, the lines, and why others cannot be drawn."""
    planes: list[Grid] = []
    lines: list[Grid] = []
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


def _grid(run: RunData, record: Record, arrays: Mapping[str, Array]) -> Grid:
    try:
        x = np.asarray(arrays["x"], dtype=np.float64)
        y = np.asarray(arrays["y"], dtype=np.float64) if "y" in arrays else None
        loss = np.asarray(arrays["loss"], dtype=np.float64)
        center = float(np.asarray(arrays["center_loss"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableArrays(f"{record.arrays} lacks what a landscape needs ({error})") from None
    if loss.shape != ((len(x),) if y is None else (len(y), len(x))) or loss.size == 0:
        raise UnreadableArrays(
            f"{record.arrays} holds a grid of shape {loss.shape}, which does not fit its axes"
        )
    gaps = int((~np.isfinite(loss)).sum())
    loss = np.where(np.isfinite(loss), loss, np.nan)
    stride = -(-(max(loss.shape) - 1) // (MOST_POINTS - 1)) if max(loss.shape) > MOST_POINTS else 1
    every = slice(
        max(loss.shape) // 2 % stride, None, stride
    )  # through the middle, where the trained weights are
    if y is None:
        return Grid(run, record, x[every], None, loss[every], center, stride, gaps)
    return Grid(run, record, x[every], y[every], loss[every, every], center, stride, gaps)


def scale(found: Sequence[Grid]) -> Scale:
    """From the lowest loss to the highest, or to a quantile where a few points would hide all
    others."""
    values = np.concatenate([grid.loss[np.isfinite(grid.loss)] for grid in found] or [np.zeros(0)])
    if values.size == 0:
        return Scale(0.0, 1.0, 0.0)
    low, high, top = (
        float(values.min()),
        float(np.quantile(values, CUT_QUANTILE)),
        float(values.max()),
    )
    if top - low <= 2.5 * (high - low) or high <= low:
        high = top if top > low else low + 1e-6 + abs(low) * 1e-6
    return Scale(low, high, float((values > high).mean()))


def remarks(grid: Grid) -> list[str]:
    """What is not as it was measured."""
    notes = []
    if grid.gaps:
        notes.append(
            f"{grid.run.label}: {count(grid.gaps, 'point')} without a finite loss, left open."
        )
    if grid.stride > 1:
        notes.append(
            f"{grid.run.label}: drawn with every {grid.stride}th point per axis of {grid.record.arrays}."
        )
    return notes
