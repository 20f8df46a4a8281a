"""Draw the loss over a plane as a still image, for print and for browsers without WebGL."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from matplotlib import cm, rc_context
from matplotlib.collections import Collection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

from samovar.report.drawing import palette
from samovar.report.drawing.landscape_grid import LandscapeGrid, LandscapeScale

HEIGHTS = LinearSegmentedColormap.from_list("heights", palette.HEIGHT)

GREY = "#7d858d"  # visible on white and on black

# The settings of matplotlib whose colour stands on the page's background.
_LINES: tuple[Any, ...] = ("axes.edgecolor", "grid.color")
_TEXTS: tuple[Any, ...] = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")

_CLEAR = (0, 0, 0, 0)


def poster(grid: LandscapeGrid, shared: LandscapeScale, dpi: int) -> tuple[str, str]:
    """Return two PNGs of 3.8 x 3.1 inches, as data URIs: the surface, and its labels.

    Both have a clear background. The labels are a mask: the page gives them its own ink, since no
    grey is readable both on white and on near-black."""
    with rc_context({"font.size": 9, **dict.fromkeys(_LINES, GREY), **dict.fromkeys(_TEXTS, "k")}):
        figure = Figure(figsize=(3.8, 3.1), dpi=dpi)
        axes: Any = figure.add_axes((0.0, 0.03, 0.95, 1.0), projection="3d")
        draw(axes, grid, shared)
        texts = axes.findobj(Text)
        for text in texts:
            text.set_alpha(0)
        surface = _png(figure, Image.Quantize.FASTOCTREE, 128)
        for part in axes.findobj(lambda each: isinstance(each, Line2D | Collection)):
            part.set_visible(False)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.line.set_visible(False)
            axis._axinfo["grid"].update(color=_CLEAR)
        for text in texts:
            text.set_alpha(1)
        labels = _png(figure, Image.Quantize.FASTOCTREE, 16)
    return surface, labels


def _png(figure: Figure, method: Image.Quantize, colors: int) -> str:
    """Return a figure as a PNG of few colours, which look the same and take far fewer bytes."""
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", transparent=True)
    Image.open(drawn).quantize(colors, method=method).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def draw(axes: Any, grid: LandscapeGrid, shared: LandscapeScale) -> None:
    """Draw a surface on 3-D axes and mark the trained weights.

    The surface is cut off at the top of the scale and open where the loss is not finite."""
    assert grid.y is not None
    across, along = np.meshgrid(grid.x, grid.y)
    height = np.minimum(grid.loss, shared.high)
    paint = cm.ScalarMappable(Normalize(shared.low, shared.high), HEIGHTS).to_rgba(
        np.nan_to_num(height)
    )
    paint[~np.isfinite(height)] = 0  # a gap is clear
    # Matplotlib would hide the point behind the surface: it sorts by mean distance to the eye.
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
    axes.set_box_aspect((1, 1, 0.75), zoom=0.94)  # a larger zoom cuts off the title of the z axis
    axes.view_init(elev=28, azim=-48)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color(_CLEAR)
        axis._axinfo["grid"].update(color=(0.5, 0.5, 0.5, 0.25), linewidth=0.5)
        axis.set_major_locator(MaxNLocator(4))
        axis.labelpad = -6 if axis is axes.zaxis else -4
    axes.tick_params(pad=-2)
