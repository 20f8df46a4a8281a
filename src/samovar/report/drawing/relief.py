"""The loss over a plane as a still image, for print and for browsers without WebGL."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from matplotlib import cm, rc_context
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from samovar.report.chapters.landscape_grid import Grid, Scale
from samovar.report.drawing import palette

HEIGHTS = LinearSegmentedColormap.from_list("heights", palette.HEIGHT)

GREY = "#7d858d"  # readable on white and on black


def poster(grid: Grid, shared: Scale, dpi: int) -> str:
    """A PNG of 3.8 x 3.1 inches with a clear background, as a data URI."""
    with rc_context({"font.size": 8, "text.color": GREY, "axes.labelcolor": GREY, "xtick.color": GREY,
                     "ytick.color": GREY, "axes.edgecolor": GREY, "grid.color": GREY}):  # fmt: skip
        figure = Figure(figsize=(3.8, 3.1), dpi=dpi)
        draw(figure.add_axes((0.0, 0.03, 0.95, 1.0), projection="3d"), grid, shared)
        drawn, file = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", transparent=True)
    Image.open(drawn).quantize(128, method=Image.Quantize.FASTOCTREE).save(
        file, "PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def draw(axes: Any, grid: Grid, shared: Scale) -> None:
    """Draw a surface on 3-D axes, the trained weights marked; what is too high is cut off, gaps are
    left open."""
    assert grid.y is not None
    across, along = np.meshgrid(grid.x, grid.y)
    height = np.minimum(grid.loss, shared.high)
    paint = cm.ScalarMappable(Normalize(shared.low, shared.high), HEIGHTS).to_rgba(
        np.nan_to_num(height)
    )
    paint[~np.isfinite(height)] = 0
    axes.computed_zorder = False
    axes.plot_surface(
        across,
        along,
        height,
        facecolors=paint,
        rstride=1,
        cstride=1,
        linewidth=0.1,
        antialiased=True,
        shade=False,
    )
    axes.plot([0], [0], [grid.center], "o", color=palette.POINT, markersize=2.5, zorder=5)
    axes.set(xlabel="x", ylabel="y", zlabel="loss", zlim=(shared.low, shared.high))
    axes.set_box_aspect((1, 1, 0.75), zoom=0.94)  # more, and the title of the z axis is cut off
    axes.view_init(elev=28, azim=-48)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((0, 0, 0, 0))
        axis._axinfo["grid"].update(color=(0.5, 0.5, 0.5, 0.25), linewidth=0.5)
        axis.set_major_locator(MaxNLocator(4))
        axis.labelpad = -6
    axes.tick_params(pad=-2)
