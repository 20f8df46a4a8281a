"""Show the loss around the weights: surfaces and contours of all runs on one scale, and lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from samovar.report.drawing import palette
from samovar.report.drawing.landscape_grid import (
    LandscapeGrid,
    LandscapeScale,
    read_grids,
    remarks,
    scale,
)
from samovar.report.drawing.plots import MODEBAR, TOOLBAR_WIDTH, finite, layout, legend, style
from samovar.report.drawing.relief import poster
from samovar.report.parts import Chapter, Data, Figure, Group, Part, columns_of, lacking
from samovar.report.protocol import mismatch
from samovar.report.read import RunData
from samovar.report.text import number, plain, short, slug

_PLANES = {
    "random": "Along two random filter-normalized directions",
    "eigenvectors": "Along the top two eigenvectors of the Hessian",
}
_LINES = {
    "random": (
        "Along a random filter-normalized direction",
        "distance, in filter norms",
    ),
    "eigenvectors": ("Along the top eigenvector of the Hessian", "distance"),
    "between": ("On the line to another run or step", "0: this run, 1: the other one"),
}


def landscape(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: surfaces and contours of planes, and lines."""
    planes, lines, notes = read_grids(runs)
    parts: list[Part] = []
    for kind, grids in _by_kind(planes).items():
        parts += _planes(kind, grids)
        notes += mismatch("Landscapes", {grid.run.label: (grid.record, grid.run) for grid in grids})
    for kind, grids in _by_kind(lines).items():
        parts.append(line_figure(kind, grids))
        # Lines to other runs differ in their ends: that is what they show.
        if kind != "between":
            notes += mismatch(
                "Landscapes", {grid.run.label: (grid.record, grid.run) for grid in grids}
            )
    having = {grid.run.label for grid in (*planes, *lines)}
    lead = "The loss as the weights move away from the trained ones." if having else ""
    missing = lacking(
        (run for run in runs if run.label not in having), "loss landscape", "landscape"
    )
    return Chapter("landscape", "Loss landscape", lead, parts, missing, notes)


def _by_kind(grids: Sequence[LandscapeGrid]) -> dict[str, list[LandscapeGrid]]:
    groups: dict[str, list[LandscapeGrid]] = {}
    for grid in grids:
        groups.setdefault(grid.kind, []).append(grid)
    return groups


def _planes(kind: str, found: Sequence[LandscapeGrid]) -> list[Group]:
    """Return a group of surfaces and one of contours, all on one scale."""
    shared = scale(found)
    bar = (short(shared.low), short(shared.high), "loss, nats")
    height = {2: 340, 3: 280, 4: 220}[columns_of(len(found))]
    surfaces = [
        replace(surface_figure(kind, grid, shared, height // 2), height=height) for grid in found
    ]
    contours = [replace(contour_figure(kind, grid, shared), height=height) for grid in found]
    return [
        Group(
            f"surfaces-{slug(kind)}",
            _PLANES.get(kind, kind),
            surfaces,
            _scale_caption(shared, len(found)),
            tiles=True,
            scale=bar,
            notes=tuple(note for grid in found for note in remarks(grid)),
        ),
        Group(f"contours-{slug(kind)}", "The same from above", contours, tiles=True, scale=bar),
    ]


def _scale_caption(shared: LandscapeScale, surfaces: int) -> str:
    ends = f"{short(shared.low)} to {short(shared.high)} nats"
    said = f"Scale {ends}."
    if surfaces > 1:
        said = f"All runs share one scale, {ends}, and their surfaces turn together."
    if shared.cut_share:
        share = f"{100 * shared.cut_share:.0f} % of all"
        said += f" Higher points, {share}, are cut off at its top."
    return said


def _clipped(grid: LandscapeGrid, shared: LandscapeScale) -> list[list[float | None]]:
    return [
        [finite(min(v, shared.high)) if np.isfinite(v) else None for v in row]
        for row in grid.loss.tolist()
    ]


def _plane_data(grid: LandscapeGrid) -> Data:
    assert grid.y is not None
    rows = [
        (finite(x), finite(y), finite(value))
        for y, row in zip(grid.y.tolist(), grid.loss.tolist(), strict=True)
        for x, value in zip(grid.x.tolist(), row, strict=True)
    ]
    return Data(("x", "y", "loss_nats"), rows)


def surface_figure(
    kind: str, grid: LandscapeGrid, shared: LandscapeScale, dpi: int = 170
) -> Figure:
    """Draw a 3-D surface that can be turned, with the trained weights marked.

    Args:
        kind: of the directions.
        grid: a plane.
        shared: the scale of all surfaces.
        dpi: resolution of the still image."""
    assert grid.y is not None
    hover = "x %{x:.3g}, y %{y:.3g}<br>loss %{customdata:.4g}<extra></extra>"
    surface = {
        "type": "surface",
        "x": [finite(v) for v in grid.x.tolist()],
        "y": [finite(v) for v in grid.y.tolist()],
        "z": _clipped(grid, shared),
        # Where the surface is cut off, hovering shows the true loss.
        "customdata": [[finite(v) for v in row] for row in grid.loss.tolist()]
        if shared.cut_share
        else None,
        "cmin": finite(shared.low),
        "cmax": finite(shared.high),
        "colorscale": palette.HEIGHT_SCALE,
        "showscale": False,
        "hovertemplate": hover if shared.cut_share else hover.replace("customdata", "z"),
        "lighting": {"ambient": 0.75, "diffuse": 0.6, "specular": 0.08, "roughness": 0.9},
    }
    point = {
        "type": "scatter3d",
        "x": [0],
        "y": [0],
        # A little above the surface, which would hide half of the marker.
        "z": [finite(grid.center + 0.02 * (shared.high - shared.low))],
        "mode": "markers",
        "marker": {
            "size": 5,
            "color": palette.POINT,
            "line": {"color": "var(--surface)", "width": 1},
        },
        "hovertemplate": f"trained weights<br>loss {number(grid.center)}<extra></extra>",
    }
    # Between two networks, 0 is not the only trained point: there is no marker.
    surface_image, labels = poster(grid, shared, dpi)
    plot = {"data": [surface, *([point] if kind != "between" else [])], "layout": _scene(shared)}
    return Figure(
        f"surface-{slug(kind)}-{grid.run.index}",
        grid.run.label,
        plot,
        _plane_data(grid),
        run=grid.run,
        keys=legend([grid.run]),
        poster=surface_image,
        poster_labels=labels,
    )


def _scene(shared: LandscapeScale) -> dict[str, Any]:
    axis = {
        "gridcolor": "var(--grid)",
        "linecolor": "var(--axis)",
        "zerolinecolor": "var(--grid)",
        "showbackground": False,
        "color": "var(--ink)",
        "nticks": 5,
        "showspikes": False,
        "tickfont": {"size": 12},
    }
    # A little room, so that the lowest and highest points are not on the walls.
    room = 0.02 * (shared.high - shared.low)
    heights = [finite(shared.low - room), finite(shared.high + room)]
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 11, "color": "var(--muted)"},
        "margin": {"l": 0, "r": TOOLBAR_WIDTH, "t": 0, "b": 0},
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


def contour_figure(kind: str, grid: LandscapeGrid, shared: LandscapeScale) -> Figure:
    """Draw lines of equal loss over a plane."""
    assert grid.y is not None
    trace = {
        "type": "contour",
        "x": [finite(v) for v in grid.x.tolist()],
        "y": [finite(v) for v in grid.y.tolist()],
        "z": [[finite(v) for v in row] for row in grid.loss.tolist()],
        "zmin": finite(shared.low),
        "zmax": finite(shared.high),
        "colorscale": palette.HEIGHT_SCALE,
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
    # Plotly cannot fix the aspect of an axis with a single value.
    square = {"scaleanchor": "x", "constrain": "domain"} if len(grid.x) > 1 else {}
    plane = layout(xaxis={"constrain": "domain", "nticks": 5, "tickangle": 0}, yaxis=square)
    return Figure(
        f"contour-{slug(kind)}-{grid.run.index}",
        grid.run.label,
        {"data": [trace, point], "layout": plane},
        _plane_data(grid),
        run=grid.run,
        keys=legend([grid.run]),
    )


def line_figure(kind: str, found: Sequence[LandscapeGrid]) -> Figure:
    """Draw the loss of all runs along one direction."""
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
        f"line-{slug(kind)}",
        f"{title}, nats",
        {"data": traces, "layout": layout(axis)},
        Data(("run", "x", "loss_nats"), rows),
        keys=legend([grid.run for grid in found]),
        notes=tuple(note for grid in found for note in remarks(grid)),
    )
