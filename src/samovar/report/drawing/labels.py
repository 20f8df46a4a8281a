"""Place names beside the points of a figure so that they do not overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

# Pixels of the plot area of a figure in two columns; on a wider page there is more room.
WIDTH, HEIGHT = 430.0, 290.0

LETTER, LINE = 6.2, 13.0  # width and height of 11 px letters, in pixels

# Where a name is tried, best first: at these distances in pixels, in these directions in degrees.
_DISTANCES = (13.0, 22.0, 34.0, 48.0, 64.0, 82.0)
_ANGLES = (0, 180, 45, 135, -45, -135, 90, -90, 20, 160, -20, -160)


@dataclass(frozen=True)
class Box:
    """A name and the point it belongs to."""

    text: str
    x: float
    y: float
    """Place of the point on the axes; a logarithm on a logarithmic axis."""
    across: float
    up: float
    """The same place as a share of the plot area, 0 to 1."""


Spot = tuple[float, float]
"""A place right of and below the upper left corner, in pixels."""

Rectangle = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels."""


@dataclass(frozen=True)
class Place:
    """The middle of a name, in pixels right of and below its point."""

    dx: float
    dy: float
    far: bool
    """True if a line must lead to it: it is far off, or near to another point."""


def beside(boxes: Sequence[Box]) -> list[dict[str, Any]]:
    """Return annotations of Plotly at the `places` of names, with a line to those that are far."""
    return [_annotation(box, place) for box, place in zip(boxes, places(boxes), strict=True)]


def places(boxes: Sequence[Box], width: float = WIDTH, height: float = HEIGHT) -> list[Place]:
    """Place each name as near its point as other names and points allow.

    A name that could be read as another point's name is moved further off, with a line to its point
    that does not cross other points.

    Args:
        boxes: the names and their points.
        width: of the plot, in pixels.
        height: of the plot, in pixels."""
    plot = (0.0, 0.0, width, height)
    points = [(box.across * width, (1 - box.up) * height) for box in boxes]
    names: list[Rectangle] = []
    found = []
    for own, box in enumerate(boxes):
        others = [point for k, point in enumerate(points) if k != own]
        # A name may cover neither the names before it nor any other point, 12 pixels wide.
        taken = [*names, *((x - 6, y - 6, x + 6, y + 6) for x, y in others)]
        place, name = _best(points[own], LETTER * len(box.text), others, taken, plot)
        found.append(place)
        names.append(name)
    return found


def _best(
    own: Spot, width: float, others: Sequence[Spot], taken: Sequence[Rectangle], plot: Rectangle
) -> tuple[Place, Rectangle]:
    """Return the first candidate with the least overlap, and of those one that is unambiguous."""
    best: tuple[tuple[float, bool], Place, Rectangle] | None = None
    for place, name in _candidates(own, width):
        over = math.fsum(_overlap(name, other) for other in taken) + _outside(name, plot)
        astray = _crosses(own, place, others) if place.far else _nears(own, name, others)
        if best is None or (over, astray) < best[0]:
            best = (over, astray), replace(place, far=place.far or astray), name
        if best[0] == (0, False):
            break
    assert best is not None
    return best[1:]


def _candidates(point: Spot, width: float) -> Iterator[tuple[Place, Rectangle]]:
    """Yield where a name could go, best first, and the rectangle it would cover."""
    for distance in _DISTANCES:
        for angle in _ANGLES:
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            # Beside the point a name starts or ends there; above and below it is centred.
            dx = distance * cos + width / 2 * (cos if abs(cos) < 0.5 else math.copysign(1.0, cos))
            dy = -distance * sin
            left, top = point[0] + dx - width / 2, point[1] + dy - LINE / 2
            far = math.hypot(max(0.0, abs(dx) - width / 2), dy) > _DISTANCES[1]
            yield Place(dx, dy, far), (left, top, left + width, top + LINE)


def _nears(own: Spot, name: Rectangle, others: Sequence[Spot]) -> bool:
    """Return whether another point is less than twice as far from a name as its own point."""
    return any(_gap(name, other) < 2 * _gap(name, own) for other in others)


def _crosses(own: Spot, place: Place, others: Sequence[Spot]) -> bool:
    """Return whether the line to a name crosses another point."""
    length = math.hypot(place.dx, place.dy)
    cos, sin = place.dx / length, place.dy / length
    for x, y in others:
        along = (x - own[0]) * cos + (y - own[1]) * sin
        across = abs((y - own[1]) * cos - (x - own[0]) * sin)
        if 0 < along < length and across < 5:
            return True
    return False


def _gap(a: Rectangle, point: Spot) -> float:
    """Return the distance from a rectangle to a point, in pixels."""
    x, y = point
    return math.hypot(max(a[0] - x, 0.0, x - a[2]), max(a[1] - y, 0.0, y - a[3]))


def _overlap(a: Rectangle, b: Rectangle) -> float:
    """Return the area in which two rectangles overlap, in square pixels."""
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, across) * max(0.0, down)


def _outside(a: Rectangle, plot: Rectangle) -> float:
    """Return the area of a rectangle beyond the plot, in square pixels."""
    return max(0.0, (a[2] - a[0]) * (a[3] - a[1]) - _overlap(a, plot))


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
