"""Eigenvalues of the Hessian: their density, and the largest of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from samovar.report.drawing.plots import finite, layout, legend, points, style
from samovar.report.parts import Data, Figure, Section, lacking
from samovar.report.protocol import mismatch
from samovar.report.read import Array, RunData, UnreadableArrays, place
from samovar.report.text import plain
from samovar.runs.records import Record

Density = tuple[RunData, Record, Mapping[str, Array]]
"""A run, the record of its density, and the columns grid, density, stderr."""


def spectrum(runs: Sequence[RunData]) -> Section:
    """Density of the Hessian's eigenvalues, and the largest of them."""
    figures: list[Figure] = []
    found, notes = densities(runs)
    if found:
        figures.append(density_figure(found))
    tops = {run.label: (run, eigenvalues(run)) for run in runs}
    if any(len(values) > 1 for _, values in tops.values()):
        figures.append(eigenvalue_figure([pair for pair in tops.values() if pair[1]]))
    having = {run.label for run, *_ in found}
    notes += mismatch(
        "Densities", {run.label: (record, run) for run, record, _ in found}, ("sigma",)
    )
    missing = lacking(
        (run for run in runs if run.label not in having), "density of eigenvalues", "density"
    )
    lead = "Eigenvalues of the loss’s Hessian, by stochastic Lanczos quadrature." if found else ""
    return Section("spectrum", "Spectrum of the Hessian", lead, figures, missing, notes)


def densities(runs: Sequence[RunData]) -> tuple[list[Density], list[str]]:
    """Runs with a density that can be read, and why others cannot."""
    found: list[Density] = []
    notes: list[str] = []
    for run in runs:
        record = run.latest("hessian/mean_eigenvalue")
        if record is None:
            continue
        try:
            arrays = run.arrays(record)
            columns = [
                np.asarray(arrays[key], dtype=np.float64) for key in ("grid", "density", "stderr")
            ]
            if (
                len({column.shape for column in columns}) > 1
                or columns[0].ndim != 1
                or columns[0].size == 0
            ):
                raise UnreadableArrays(
                    f"{record.arrays} holds a grid that does not fit its density"
                )
            if not (np.isfinite(columns[0]).all() and np.isfinite(columns[1]).any()):
                raise UnreadableArrays(f"{record.arrays} holds no finite density")
        except (UnreadableArrays, KeyError, TypeError, ValueError) as error:
            notes.append(f"{run.label}: {_why(error, record)}; measure its density again")
        else:
            found.append(
                (run, record, dict(zip(("grid", "density", "stderr"), columns, strict=True)))
            )
    return found, notes


def _why(error: Exception, record: Record) -> str:
    return (
        str(error)
        if isinstance(error, UnreadableArrays)
        else f"{record.arrays} lacks what a density needs"
    )


def density_figure(found: Sequence[Density]) -> Figure:
    """One line a run, on a logarithmic axis that just reaches down to a single eigenvalue."""
    traces, rows = [], []
    for run, _, arrays in found:
        columns = [
            [finite(v) for v in arrays[key].tolist()] for key in ("grid", "density", "stderr")
        ]
        rows += [(run.label, *values) for values in zip(*columns, strict=True)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": columns[0],
                "y": [v if v is not None and v > 0 else None for v in columns[1]],
                "name": plain(run.label),
                "meta": run.color,
                "line": style(run.color) | {"width": 1.5},
                "hovertemplate": "%{fullData.name}<br>λ %{x:.4g}: density %{y:.3g}<extra></extra>",
            }
        )
    low, high = density_range([arrays for *_, arrays in found])
    axis = {"range": [float(np.log10(low)), float(np.log10(high))], "autorange": False}
    plot = {"data": traces, "layout": layout("eigenvalue", log_y=(low, high), yaxis=axis)}
    data = Data(("run", "eigenvalue", "density", "stderr"), rows)
    caption = "Each eigenvalue is drawn as a Gaussian, wider for a wider spectrum; the area is one."
    keys = legend(run for run, *_ in found)
    return Figure("density", "Density of eigenvalues", plot, data, caption, keys, wide=True)


def density_range(found: Sequence[Mapping[str, Array]]) -> tuple[float, float]:
    """From a third of the peak of each run's largest eigenvalue to above the highest peak."""
    tops, ends = [1e-12], []
    for arrays in found:
        grid, density = arrays["grid"], arrays["density"]
        tops.append(float(np.nanmax(density)))
        end = density[grid >= grid[0] + 0.9 * (grid[-1] - grid[0])]
        ends.append(float(np.nanmax(end)))
    high = max(v for v in tops if np.isfinite(v))
    low = min((v for v in ends if np.isfinite(v) and v > 0), default=high * 1e-6)
    return max(low / 3, high * 1e-12), high * 3


def eigenvalues(run: RunData) -> list[Record]:
    """The largest eigenvalues of the newest measurement that has several."""
    top = run.batch("hessian/lambda_max")
    return [*top, *sorted(run.batch("hessian/eigenvalue"), key=lambda r: place(r, "rank"))]


def eigenvalue_figure(found: Sequence[tuple[RunData, Sequence[Record]]]) -> Figure:
    """The largest eigenvalues by rank, with residuals."""
    traces, rows = [], []
    for run, records in found:
        ranks = list(range(1, len(records) + 1))
        traces.append(points(run, ranks, records) | {"mode": "lines+markers"})
        rows += [
            (run.label, k, r.value, r.residual, r.converged)
            for k, r in zip(ranks, records, strict=True)
        ]
    plot = {"data": traces, "layout": layout("rank", xaxis={"dtick": 1})}
    data = Data(("run", "rank", "eigenvalue", "residual", "converged"), rows)
    keys = legend(run for run, _ in found)
    return Figure("eigenvalues", "Largest eigenvalues", plot, data, "Hollow: not converged.", keys)
