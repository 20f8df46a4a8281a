"""Show the eigenvalues of the Hessian: their density, and the largest of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samovar.report.chapters.saddles import saddle_notes
from samovar.report.drawing.plots import finite, layout, legend, record_trace, style
from samovar.report.parts import Chapter, Data, Figure, lacking
from samovar.report.protocol import mismatch
from samovar.report.read import Array, RunData, UnreadableArrays, place
from samovar.report.text import plain
from samovar.runs.records import Record

_LEAD = "Eigenvalues of the Hessian of the loss, by stochastic Lanczos quadrature."


@dataclass(frozen=True, eq=False)
class EigenvalueDensity:
    """The density of the eigenvalues of a run's Hessian; all arrays are float64 [G]."""

    run: RunData
    record: Record
    grid: Array
    """Eigenvalues."""
    density: Array
    stderr: Array


def spectrum(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: densities, and the largest eigenvalues if a run has several."""
    found, notes = densities(runs)
    figures = [density_figure(found)] if found else []
    tops = [(run, records) for run in runs if (records := eigenvalues(run))]
    if any(len(records) > 1 for _, records in tops):
        figures.append(eigenvalue_figure(tops))
        notes += saddle_notes((run, records[0]) for run, records in tops)
    having = {item.run.label for item in found}
    # Each density has a Gaussian width of its own, which follows from its range.
    notes += mismatch(
        "Densities", {item.run.label: (item.record, item.run) for item in found}, ("sigma",)
    )
    return Chapter(
        "spectrum",
        "Spectrum of the Hessian",
        _LEAD if found else "",
        figures,
        lacking(
            (run for run in runs if run.label not in having), "density of eigenvalues", "density"
        ),
        notes,
    )


def densities(runs: Sequence[RunData]) -> tuple[list[EigenvalueDensity], list[str]]:
    """Return the readable densities, and a note on each one that is not."""
    found: list[EigenvalueDensity] = []
    notes: list[str] = []
    for run in runs:
        record = run.latest("hessian/mean_eigenvalue")
        if record is None:
            continue
        try:
            found.append(_density(run, record, run.arrays(record)))
        except UnreadableArrays as error:
            notes.append(f"{run.label}: {error}; measure its density again")
    return found, notes


def _density(run: RunData, record: Record, arrays: Mapping[str, Array]) -> EigenvalueDensity:
    """Return a density if its arrays fit each other.

    Raises:
        UnreadableArrays: an array is missing, of another shape, or nowhere finite."""
    try:
        grid, density, stderr = (
            np.asarray(arrays[key], dtype=np.float64) for key in ("grid", "density", "stderr")
        )
    except (KeyError, TypeError, ValueError):
        raise UnreadableArrays(f"{record.arrays} lacks a valid array of a density") from None
    if not grid.shape == density.shape == stderr.shape or grid.ndim != 1 or grid.size == 0:
        raise UnreadableArrays(f"{record.arrays} holds a grid that does not fit its density")
    if not (np.isfinite(grid).all() and np.isfinite(density).any()):
        raise UnreadableArrays(f"{record.arrays} holds no finite density")
    return EigenvalueDensity(run, record, grid, density, stderr)


def density_figure(found: Sequence[EigenvalueDensity]) -> Figure:
    """Draw a line for each run, on a logarithmic axis that reaches down to a single eigenvalue."""
    traces, rows = [], []
    for item in found:
        points = [
            (finite(x), finite(y), finite(error))
            for x, y, error in zip(
                item.grid.tolist(), item.density.tolist(), item.stderr.tolist(), strict=True
            )
        ]
        rows += [(item.run.label, *point) for point in points]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [x for x, _, _ in points],
                # A logarithmic axis has no place for 0.
                "y": [y if y is not None and y > 0 else None for _, y, _ in points],
                "name": plain(item.run.label),
                "meta": item.run.color,
                "line": style(item.run.color) | {"width": 1.5},
                "hovertemplate": "%{fullData.name}<br>λ %{x:.4g}: density %{y:.3g}<extra></extra>",
            }
        )
    low, high = density_range(found)
    axis = {"range": [float(np.log10(low)), float(np.log10(high))], "autorange": False}
    return Figure(
        "density",
        "Density of eigenvalues",
        {"data": traces, "layout": layout("eigenvalue", log_y=(low, high), yaxis=axis)},
        Data(("run", "eigenvalue", "density", "stderr"), rows),
        "Each eigenvalue is drawn as a Gaussian whose width grows with the range of the spectrum; "
        "the area under a curve is 1.",
        legend(item.run for item in found),
        wide=True,
    )


def density_range(found: Sequence[EigenvalueDensity]) -> tuple[float, float]:
    """Return the ends of the density axis.

    It reaches from a third of the lowest peak of a largest eigenvalue to above the highest peak."""
    tops, ends = [1e-12], []
    for item in found:
        tops.append(float(np.nanmax(item.density)))
        # The largest eigenvalue lies in the last tenth of the grid.
        last = item.grid >= item.grid[0] + 0.9 * (item.grid[-1] - item.grid[0])
        ends.append(float(np.nanmax(item.density[last])))
    high = max(v for v in tops if np.isfinite(v))
    low = min((v for v in ends if np.isfinite(v) and v > 0), default=high * 1e-6)
    return max(low / 3, high * 1e-12), high * 3


def eigenvalues(run: RunData) -> list[Record]:
    """Return the largest eigenvalues of the newest measurement, by rank."""
    top = run.batch("hessian/lambda_max")
    return [*top, *sorted(run.batch("hessian/eigenvalue"), key=lambda r: place(r, "rank"))]


def eigenvalue_figure(found: Sequence[tuple[RunData, Sequence[Record]]]) -> Figure:
    """Draw the largest eigenvalues by rank, with their residuals."""
    traces, rows = [], []
    for run, records in found:
        ranked = list(enumerate(records, 1))
        traces.append(record_trace(run, ranked))
        rows += [(run.label, rank, r.value, r.residual, r.converged) for rank, r in ranked]
    return Figure(
        "eigenvalues",
        "Largest eigenvalues",
        {"data": traces, "layout": layout("rank", xaxis={"dtick": 1})},
        Data(("run", "rank", "eigenvalue", "residual", "converged"), rows),
        "Hollow markers: not converged.",
        legend(run for run, _ in found),
    )
