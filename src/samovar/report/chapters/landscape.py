"""The loss around the weights: surfaces and contours of all runs on one scale of height and
colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from samovar.report.chapters.landscape_grid import Grid, Scale, read_grids, remarks, scale
from samovar.report.drawing import palette
from samovar.report.drawing.plots import MODEBAR, finite, layout, legend, style
from samovar.report.drawing.relief import poster
from samovar.report.parts import Data, Figure, Group, Section, columns_of, lacking
from samovar.report.protocol import mismatch
from samovar.report.read import RunData
from samovar.report.text import number, plain, short, slug

_PLANES = {
    "random": "Along two random directions, scaled filter by filter",
    "eigenvectors": "Along the two top eigenvectors of the Hessian",
}
_LINES = {
    "random": (
        "Along a random direction, scaled filter by filter",
        "distance, in norms of the filters",
    ),
    "eigenvectors": ("Along the top eigenvector of the Hessian", "distance"),
    "between": ("On the line to another run or step", "0: this run, 1: the other"),
}

_COLORS = [[k / (len(palette.HEIGHT) - 1), color] for k, color in enumerate(palette.HEIGHT)]


def landscape(runs: Sequence[RunData]) -> Section:
    """Surfaces, contours and lines of the loss."""
    planes, lines, notes = read_grids(runs)
    parts: list[Group | Figure] = []
    for kind in dict.fromkeys(grid.kind for grid in planes):
        same = [grid for grid in planes if grid.kind == kind]
        parts += _planes(kind, same)
        notes += mismatch("Landscapes", {grid.run.label: (grid.record, grid.run) for grid in same})
    for kind in dict.fromkeys(grid.kind for grid in lines):
        same = [grid for grid in lines if grid.kind == kind]
        parts.append(line_figure(kind, same))
        notes += (
            mismatch("Landscapes", {grid.run.label: (grid.record, grid.run) for grid in same})
            if kind != "between"
            else []
        )
    having = {grid.run.label for grid in (*planes, *lines)}
    lead = "The loss as the weights move away from the trained ones." if having else ""
    missing = lacking(
        (run for run in runs if run.label not in having), "loss landscape", "landscape"
    )
    return Section("landscape", "Loss landscape", lead, parts, missing, notes)


def _planes(kind: str, found: Sequence[Grid]) -> list[Group | Figure]:
    shared = scale(found)
    ends = f"{short(shared.low)} to {short(shared.high)} nats"
    said = [
        f"All runs share one scale, {ends}; turn one and all turn."
        if len(found) > 1
        else f"Scale {ends}."
    ]
    if shared.cut_share:
        said.append(
            f"Higher points, {100 * shared.cut_share:.0f} % of all, are cut off at its top."
        )
    notes = [note for grid in found for note in remarks(grid)]
    bar = (short(shared.low), short(shared.high), "loss, nats")
    height = {2: 340, 3: 280, 4: 220}[columns_of(len(found))]
    surfaces = [
        replace(surface_figure(kind, grid, shared, height // 2), height=height) for grid in found
    ]
    contours = [replace(contour_figure(kind, grid, shared), height=height) for grid in found]
    title = _PLANES.get(kind, kind)
    return [
        Group(
            f"surfaces-{slug(kind)}",
            title,
            surfaces,
            " ".join(said),
            tiles=True,
            scale=bar,
            notes=tuple(notes),
        ),
        Group(f"contours-{slug(kind)}", "The same from above", contours, tiles=True, scale=bar),
    ]


def _clipped(grid: Grid, shared: Scale) -> list[list[float | None]]:
    return [
        [finite(min(v, shared.high)) if np.isfinite(v) else None for v in row]
        for row in grid.loss.tolist()
    ]


def _plane_data(grid: Grid) -> Data:
    assert grid.y is not None
    rows = [
        (finite(x), finite(y), finite(value))
        for y, row in zip(grid.y.tolist(), grid.loss.tolist(), strict=True)
        for x, value in zip(grid.x.tolist(), row, strict=True)
    ]
    return Data(("x", "y", "loss_nats"), rows)


def surface_figure(kind: str, grid: Grid, shared: Scale, dpi: int = 170) -> Figure:
    """A 3-D surface that can be turned, the trained point marked."""
    assert grid.y is not None
    hover = "x %{x:.3g}, y %{y:.3g}<br>loss %{customdata:.4g}<extra></extra>"
    surface = {
        "type": "surface",
        "x": [finite(v) for v in grid.x.tolist()],
        "y": [finite(v) for v in grid.y.tolist()],
        "z": _clipped(grid, shared),
        "customdata": [[finite(v) for v in row] for row in grid.loss.tolist()]
        if shared.cut_share
        else None,
        "cmin": finite(shared.low),
        "cmax": finite(shared.high),
        "colorscale": _COLORS,
        "showscale": False,
        "hovertemplate": hover if shared.cut_share else hover.replace("customdata", "z"),
        "lighting": {"ambient": 0.75, "diffuse": 0.6, "specular": 0.08, "roughness": 0.9},
    }
    point = {
        "type": "scatter3d",
        "x": [0],
        "y": [0],
        "z": [
            finite(grid.center + 0.02 * (shared.high - shared.low))
        ],  # above the surface, not half inside
        "mode": "markers",
        "marker": {
            "size": 5,
            "color": palette.POINT,
            "line": {"color": "var(--surface)", "width": 1},
        },
        "hovertemplate": f"trained weights<br>loss {number(grid.center)}<extra></extra>",
    }
    plot = {"data": [surface, *([point] if kind != "between" else [])], "layout": _scene(shared)}
    return Figure(
        f"surface-{slug(kind)}-{grid.run.index}", grid.run.label, plot, _plane_data(grid), run=grid.run,
        keys=legend([grid.run]), poster=poster(grid, shared, dpi),
    )  # fmt: skip


def _scene(shared: Scale) -> dict[str, Any]:
    axis = {
        "gridcolor": "var(--grid)", "linecolor": "var(--axis)", "zerolinecolor": "var(--grid)", "showbackground": False,
        "color": "var(--muted)", "nticks": 5, "showspikes": False, "tickfont": {"size": 10},
    }  # fmt: skip
    room = 0.02 * (shared.high - shared.low)
    heights = [finite(shared.low - room), finite(shared.high + room)]
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 11, "color": "var(--muted)"},
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "showlegend": False,
        "modebar": MODEBAR,
        "scene": {
            "xaxis": axis | {"title": {"text": "x"}},
            "yaxis": axis | {"title": {"text": "y"}},
            "zaxis": axis | {"title": {"text": "loss"}, "range": heights},
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.75},
            "camera": {
                "eye": {"x": 1.5, "y": -1.6, "z": 0.95},
                "center": {"x": 0, "y": 0, "z": -0.14},
            },
        },
    }


def contour_figure(kind: str, grid: Grid, shared: Scale) -> Figure:
    """Lines of equal loss."""
    assert grid.y is not None
    trace = {
        "type": "contour",
        "x": [finite(v) for v in grid.x.tolist()],
        "y": [finite(v) for v in grid.y.tolist()],
        "z": [[finite(v) for v in row] for row in grid.loss.tolist()],
        "zmin": finite(shared.low),
        "zmax": finite(shared.high),
        "colorscale": _COLORS,
        "showscale": False,
        "connectgaps": False,
        "contours": {
            "start": finite(shared.low),
            "end": finite(shared.high),
            "size": finite((shared.high - shared.low) / 14),
        },
        "line": {"width": 0.6, "color": "rgba(255,255,255,0.55)"},
        "hovertemplate": "x %{x:.3g}, y %{y:.3g}<br>loss %{z:.4g}<extra></extra>",
    }
    point = {
        "type": "scatter", "x": [0], "y": [0], "mode": "markers", "hoverinfo": "skip",
        "marker": {"symbol": "cross-thin", "size": 11, "line": {"width": 2, "color": "#ffffff"}},
    }  # fmt: skip
    square = {"scaleanchor": "x", "constrain": "domain"} if len(grid.x) > 1 else {}
    plane = layout(xaxis={"constrain": "domain", "nticks": 5, "tickangle": 0}, yaxis=square)
    return Figure(
        f"contour-{slug(kind)}-{grid.run.index}", grid.run.label, {"data": [trace, point], "layout": plane},
        _plane_data(grid), run=grid.run, keys=legend([grid.run]),
    )  # fmt: skip


def line_figure(kind: str, found: Sequence[Grid]) -> Figure:
    """The loss along one direction, all runs in one figure."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [finite(v) for v in grid.x.tolist()],
            "y": [finite(v) for v in grid.loss.tolist()],
            "name": plain(grid.run.label),
            "meta": grid.run.color,
            "line": style(grid.run.color),
            "connectgaps": False,
            "hovertemplate": "%{fullData.name}<br>x %{x:.3g}: %{y:.4g}<extra></extra>",
        }
        for grid in found
    ]
    title, axis = _LINES.get(kind, (kind, "distance"))
    rows = [
        (grid.run.label, finite(x), finite(value))
        for grid in found
        for x, value in zip(grid.x.tolist(), grid.loss.tolist(), strict=True)
    ]
    return Figure(
        f"line-{slug(kind)}", f"{title}, nats",
        {"data": traces, "layout": layout(axis)}, Data(("run", "x", "loss_nats"), rows),
        keys=legend([grid.run for grid in found]), notes=tuple(note for grid in found for note in remarks(grid)),
    )  # fmt: skip
