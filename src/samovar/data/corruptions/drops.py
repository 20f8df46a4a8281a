"""Drops on the lens: water at low severities, mud at high ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from scipy import ndimage

from samovar.data.corruptions.colour import tint
from samovar.data.corruptions.constants import Level
from samovar.data.corruptions.filters import Bytes, Floats, smooth, spread, sum_of_shifts, to_bytes
from samovar.data.corruptions.randomness import normals

_WATER = (175, 238, 238)
_MUD = (63, 42, 20)
_STEPS = 59  # per sigma: smooth() takes whole numbers up to 255, and the normals go up to 4.3 sigma
_RIM = 20  # pixels from a drop's edge at which its shading ends


def spatter(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Cover the image with drops where smooth noise is high.

    Level: (mean and sigma of the noise, sigma of its smoothing, threshold, strength of water or
    softness of mud, 0 for water and 1 for mud)."""
    mean, sigma, smoothing, threshold, strength, mud = level
    height, width, channels = image.shape
    steps = np.rint(normals(rng, height, width, 1) * np.float32(_STEPS))
    noise = smooth(steps, (smoothing, smoothing)) * np.float32(sigma / _STEPS) + np.float32(mean)
    if mud:
        return _with_mud(image, noise > threshold, strength)
    drops = np.where(noise[..., 0] < threshold, np.float32(0), noise[..., 0] * np.float32(255))
    shading = _water(to_bytes(drops)) * np.float32(strength)
    out = image.astype(np.float32)
    for channel, part in enumerate(tint(_WATER, channels)):
        out[..., channel] += shading * np.float32(part)
    return to_bytes(out)


def _with_mud(image: Bytes, where: npt.NDArray[np.bool_], softness: float) -> Bytes:
    cover = smooth(where, (softness, softness))[..., 0]
    cover[cover < 0.8] = 0
    out = image * spread(1 - cover, image.shape[2])
    for channel, part in enumerate(tint(_MUD, image.shape[2])):
        out[..., channel] += cover * np.float32(part)
    return to_bytes(out)


def _water(drops: Bytes) -> Floats:
    """Return drops shaded as if lit from one side, [H, W], 0 to 1.

    The shading is the distance from their edges, equalized, then embossed."""
    near = (_box(_distance(_edges(drops))) / np.float32(9)).astype(np.uint8)
    lit = np.clip(_emboss(_equalized(near)), 0, 255)
    shaded = np.rint(_box(lit) / np.float32(9)) * drops
    water: Floats = shaded / max(shaded.max(), np.float32(1))
    return water


def _edges(drops: Bytes) -> npt.NDArray[np.bool_]:
    """Return Canny's edges with thresholds 50 and 150.

    They are the strong ridges of the gradient, and the weak ones connected to them.

    Source: Canny, A computational approach to edge detection (1986)."""
    pixels = drops[..., None]
    across = sum_of_shifts(pixels, [(i, j, j * (2 - abs(i))) for i in (-1, 0, 1) for j in (-1, 1)])[
        ..., 0
    ]
    down = sum_of_shifts(pixels, [(i, j, i * (2 - abs(j))) for i in (-1, 1) for j in (-1, 0, 1)])[
        ..., 0
    ]
    size = np.abs(across) + np.abs(down)
    weak = _ridges(across, down, size) & (size > 50)
    labels, count = ndimage.label(weak, np.ones((3, 3)))
    strong = np.zeros(count + 1, bool)
    strong[labels[weak & (size > 150)]] = True
    edges: npt.NDArray[np.bool_] = strong.take(labels)
    return edges


def _ridges(across: Floats, down: Floats, size: Floats) -> npt.NDArray[np.bool_]:
    """Return where the gradient is larger than at the neighbours it points to and from."""
    framed, (height, width) = np.pad(size, 1), size.shape

    def at(i: int, j: int) -> Floats:
        return framed[1 + i : 1 + i + height, 1 + j : 1 + j + width]

    steepness = np.abs(down) - np.float32(0.41421357) * np.abs(across)  # tan 22.5 degrees
    level, steep = steepness < 0, np.abs(down) > np.float32(2.4142137) * np.abs(across)
    choices = [level, steep, across * down >= 0]
    before = np.select(choices, [at(0, -1), at(-1, 0), at(-1, -1)], at(-1, 1))
    after = np.select(choices, [at(0, 1), at(1, 0), at(1, 1)], at(1, -1))
    return (size > before) & np.where(level | steep, size >= after, size > after)


def _distance(edges: npt.NDArray[np.bool_]) -> Floats:
    """Return the distance in pixels to the nearest edge, at most 20."""
    # first within the column, then over the columns
    along = np.where(edges, np.int16(0), np.int16(_RIM))
    for step in (1, 2, 4, 8, 16):
        np.minimum(along[step:], along[:-step] + np.int16(step), out=along[step:])
        np.minimum(along[:-step], along[step:] + np.int16(step), out=along[:-step])
    squares = along**2
    nearest = squares.copy()
    for step in range(1, min(_RIM, squares.shape[1])):
        square = np.int16(step * step)
        np.minimum(nearest[:, step:], squares[:, :-step] + square, out=nearest[:, step:])
        np.minimum(nearest[:, :-step], squares[:, step:] + square, out=nearest[:, :-step])
    return np.sqrt(nearest.astype(np.float32))


def _box(layer: npt.NDArray[np.generic]) -> Floats:
    """Return the sum over 3 x 3 pixels, [H, W]."""
    taps = [(i, j, 1) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return sum_of_shifts(layer[..., None], taps, "reflect")[..., 0]


def _emboss(layer: npt.NDArray[np.generic]) -> Floats:
    taps = [(-1, -1, -2), (-1, 0, -1), (0, -1, -1), (0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 2)]
    return sum_of_shifts(layer[..., None], taps, "reflect")[..., 0]


def _equalized(layer: npt.NDArray[np.uint8]) -> Floats:
    """Spread the values over 0 to 255 so that all are equally frequent."""
    counts = np.bincount(layer.ravel(), minlength=256)
    first = int(np.flatnonzero(counts)[0])
    below = np.cumsum(counts) - counts[first]
    rest = layer.size - int(counts[first])
    if not rest:
        return layer.astype(np.float32)
    table: Floats = np.rint(below * (255 / rest)).clip(0).astype(np.float32)
    return table.take(layer)
