"""Bilinear sampling between pixels: enlarge about the centre, or read at any place."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from samovar.data.corruptions.filters import Bytes, Floats, spread, to_bytes

Ints = npt.NDArray[np.int64]


def zoomed(pixels: Floats, factor: float) -> Floats:
    """Return the centre of an image [H, W, C], enlarged `factor` times to the image's size."""
    above, below, down = _sources(pixels.shape[0], factor)
    rows = _between(pixels.take(above, axis=0), pixels.take(below, axis=0), down[:, None, None])
    left, right, along = _sources(pixels.shape[1], factor)
    # repeated here, since numpy is slow at broadcasting over C numbers
    along = np.repeat(along, pixels.shape[2]).reshape(len(along), -1)
    return _between(rows.take(left, axis=1), rows.take(right, axis=1), along)


@functools.lru_cache(maxsize=64)
def _sources(size: int, factor: float) -> tuple[Ints, Ints, Floats]:
    """Return for each pixel of an enlarged axis its two neighbours and the weight of the second."""
    crop = math.ceil(size / factor)
    enlarged = max(round(crop * factor), size)
    # as published: the crop's first and last pixels stay first and last
    scale = (crop - 1) / max(enlarged - 1, 1)
    places = (np.arange(size) + (enlarged - size) // 2) * scale
    first = places.astype(np.int64)
    second = np.minimum(first + 1, crop - 1)
    start = (size - crop) // 2
    return first + start, second + start, (places - first).astype(np.float32)


def sampled(image: Bytes, rows: Floats, cols: Floats) -> Bytes:
    """Return the image at real-valued places, rounded; outside, it is mirrored about its edge.

    Args:
        image: [H, W, C], C at most 4.
        rows: [H, W] places to read, in pixels from the first row's centre.
        cols: the same along the rows.

    Returns:
        [H, W, C]."""
    height, width, channels = image.shape
    # a pixel as one number: four gathers, not twelve
    packed = np.zeros((height, width, 4), np.uint8)
    packed[..., :channels] = image
    numbers = packed.view(np.uint32).ravel()
    top, left = np.floor(rows), np.floor(cols)
    upper, lower = (_mirrored(top, i, height) * width for i in (0, 1))
    first, second = (_mirrored(left, i, width) for i in (0, 1))
    along = spread(cols - left, 4)
    above = _between(_unpacked(numbers, upper + first), _unpacked(numbers, upper + second), along)
    below = _between(_unpacked(numbers, lower + first), _unpacked(numbers, lower + second), along)
    between = _between(above, below, spread(rows - top, 4))
    return to_bytes(np.add(between, np.float32(0.5), out=between))[..., :channels]


def _mirrored(places: Floats, step: int, size: int) -> Ints:
    """Return the index of the pixel `step` after each place, on an axis mirrored at both ends."""
    there = np.arange(size)
    return np.concatenate([there, there[::-1]]).take(places.astype(np.int64) + step, mode="wrap")


def _unpacked(numbers: npt.NDArray[np.uint32], index: Ints) -> Floats:
    return numbers.take(index)[..., None].view(np.uint8).astype(np.float32)


def _between(a: Floats, b: Floats, share: Floats) -> Floats:
    """Return (1 - share) a + share b, written into b."""
    b -= a
    b *= share
    b += a
    return b
