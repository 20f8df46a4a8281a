"""Names beside the points of a figure, none over another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

WIDTH, HEIGHT = (
    430.0,
    290.0,
)  # pixels of the plot area of a figure in two columns; on a wider page there is more room

LETTER, LINE = 6.2, 13.0  # pixels of 11 px letters

_DISTANCES = (13.0, 22.0, 34.0, 48.0, 64.0, 82.0)
_ANGLES = (
    0,
    180,
    45,
    135,
    -45,
    -135,
    90,
    -90,
    20,
    160,
    -20,
    -160,
)  # degrees, in the order of taste


@dataclass(frozen=True)
class Box:
    """A name and the point it belongs to."""

    text: str
    x: float
    y: float
    """As the axes count: logarithms on a logarithmic one."""
    across: float
    up: float
    """Place in the plot area, 0 to 1."""


Spot = tuple[float, float]
"""Right of and below the upper left corner, in pixels."""

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Place:
    """Where the middle of a name goes, in pixels right of and below its point."""

    dx: float
    dy: float
    far: bool
    """So far, or so near to another point, that a line should lead to it."""


def beside(boxes: Sequence[Box]) -> list[dict[str, Any]]:
    """Plotly's annotations at the `places` of names, with a line to those that are far."""
    return [_annotation(box, place) for box, place in zip(boxes, places(boxes), strict=True)]


def places(boxes: Sequence[Box], width: float = WIDTH, height: float = HEIGHT) -> list[Place]:
    """Each name as near its point as no other name or point is in the way, on a plot of so many
    pixels.

    One that could be taken for another point's is farther off, and has a line that leads past the
    others."""
    points = [(box.across * width, (1 - box.up) * height) for box in boxes]
    names: list[Rectangle] = []
    found = []
    for own, box in enumerate(boxes):
        others = [point for k, point in enumerate(points) if k != own]
        taken = [*names, *((x - 6, y - 6, x + 6, y + 6) for x, y in others)]
        best: tuple[tuple[float, bool], Place, Rectangle] | None = None
        for place, rectangle in _candidates(points[own], LETTER * len(box.text)):
            over = math.fsum(_overlap(rectangle, other) for other in taken) + _outside(
                rectangle, (0, 0, width, height)
            )
            astray = (
                _crosses(points[own], place, others)
                if place.far
                else _nears(points[own], rectangle, others)
            )
            if best is None or (over, astray) < best[0]:
                best = (over, astray), place, rectangle
            if best[0] == (0, False):
                break
        assert best is not None
        (_, astray), place, rectangle = best
        found.append(replace(place, far=place.far or astray))
        names.append(rectangle)
    return found


def _candidates(point: Spot, width: float) -> Iterator[tuple[Place, Rectangle]]:
    """Where a name could go, the best first, and what it would cover."""
    for distance in _DISTANCES:
        for angle in _ANGLES:
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            dx = distance * cos + width / 2 * (cos if abs(cos) < 0.5 else math.copysign(1.0, cos))
            dy = -distance * sin
            left, top = point[0] + dx - width / 2, point[1] + dy - LINE / 2
            far = math.hypot(max(0.0, abs(dx) - width / 2), dy) > _DISTANCES[1]
            yield Place(dx, dy, far), (left, top, left + width, top + LINE)


def _nears(own: Spot, name: Rectangle, others: Sequence[Spot]) -> bool:
    """Whether a name could be another point's: one is less than twice as far off as its own."""
    return any(_gap(name, other) < 2 * _gap(name, own) for other in others)


def _crosses(own: Spot, place: Place, others: Sequence[Spot]) -> bool:
    """Whether the line to a name runs over another point."""
    length = math.hypot(place.dx, place.dy)
    cos, sin = place.dx / length, place.dy / length
    for x, y in others:
        along = (x - own[0]) * cos + (y - own[1]) * sin
        across = abs((y - own[1]) * cos - (x - own[0]) * sin)
        if 0 < along < length and across < 5:
            return True
    return False


def _gap(a: Rectangle, point: Spot) -> float:
    """From a rectangle to a point, in pixels."""
    x, y = point
    return math.hypot(max(a[0] - x, 0.0, x - a[2]), max(a[1] - y, 0.0, y - a[3]))


def _overlap(a: Rectangle, b: Rectangle) -> float:
    """Area in which two rectangles overlap, in square pixels."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(a: Rectangle, plot: Rectangle) -> float:
    """Area beyond the plot, in square pixels."""
    inside = _overlap(a, plot)
    return max(0.0, (a[2] - a[0]) * (a[3] - a[1]) - inside)


def _annotation(box: Box, place: Place) -> dict[str, Any]:
    return {
        "x": box.x,
        "y": box.y,
        "text": box.text,
        "ax": round(place.dx, 1),
        "ay": round(place.dy, 1),
        "showarrow": True,
        "arrowhead": 0,
        "arrowwidth": 0.75,
        "arrowcolor": "var(--axis)" if place.far else "rgba(0,0,0,0)",
        "standoff": 5,
        "font": {"size": 11, "color": "var(--ink)"},
    }
