"""Blurs: out of focus, through glass, by motion, by zooming."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from samovar.data.corruptions.constants import Level
from samovar.data.corruptions.filters import Bytes, add_shifts, smooth, streak, to_bytes
from samovar.data.corruptions.randomness import uniform, words
from samovar.data.corruptions.sampling import zoomed

_DISK_BITS = 15  # bits of the weights: with 8 of the pixels and a sum of up to 1.013, below 24


def gaussian_blur(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Smooth; level: (sigma in pixels,)."""
    return to_bytes(smooth(image, (level[0], level[0])))


def defocus_blur(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Average over a disk with a soft rim; level: (radius in pixels, sigma of the rim)."""
    kernel = _disk(*level)
    reach, (height, width, channels) = len(kernel) // 2, image.shape
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), "reflect").astype(np.float32)
    total = np.zeros((height, width * channels), np.float32)
    for row, weights in enumerate(kernel[reach:]):
        rows = padded[reach + row : reach + row + height]
        if row:  # the disk is symmetric: the rows above and below share their weights
            rows = rows + padded[reach - row : reach - row + height]
        add_shifts(total, rows, [(0, col, weight) for col, weight in enumerate(weights)])
    return to_bytes(
        np.multiply(total, np.float32(2.0**-_DISK_BITS), out=total).reshape(image.shape)
    )


def motion_blur(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Streak at a random angle of up to 45 degrees; level: (radius, sigma)."""
    return to_bytes(streak(image, int(level[0]), level[1], uniform(rng, -45, 45)))


def zoom_blur(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Average the image with its enlargements.

    Level: (step between enlargements, their number including the first, which is 1). As published,
    the enlarged part is a whole number of pixels: at 8 px the first severity does nothing."""
    step, count = level
    channels = image.shape[2]
    # four channels in place of three: numpy gathers 16 bytes faster than 12
    wide = np.zeros((*image.shape[:2], 4 if channels == 3 else 1), np.float32)
    wide[..., :channels] = image
    total = 2 * wide  # as published: the image itself, and the enlargement by 1
    for i in range(1, int(count)):
        total += zoomed(wide, 1 + step * i)
    total /= count + 1
    return to_bytes(total)[..., :channels]


def glass_blur(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Smooth, shuffle pixels within a small square, smooth again.

    Level: (sigma, reach of the shuffle, number of shuffles)."""
    sigma, reach, times = level
    sigmas = (sigma, sigma)
    pixels = to_bytes(smooth(image, sigmas))
    height, width, channels = pixels.shape
    sources = np.arange(height * width)
    for _ in range(int(times)):
        sources = sources.take(_shuffle(height, width, int(reach), rng))
    shuffled = pixels.reshape(-1, channels).take(sources, axis=0)
    return to_bytes(smooth(shuffled.reshape(pixels.shape), sigmas))


@functools.cache
def _disk(radius: float, sigma: float) -> list[list[int]]:
    """Return the published kernel in units of 2^-15.

    It is a disk in a window of at least 17 x 17, smoothed with the window mirrored. At radius 8 and
    10 the disk touches the window, and the mirror adds 1 % to its sum: such images are
    brighter."""
    reach = max(8, int(radius))
    half = 1 if radius <= 8 else 2
    squares = np.arange(-reach, reach + 1) ** 2
    disk = (squares[:, None] + squares <= radius**2).astype(np.float64)
    rim = np.exp(-0.5 * np.arange(-half, half + 1) ** 2 / sigma**2)
    soft = sum(
        rim[half + i]
        * rim[half + j]
        * np.pad(disk, half, "reflect")[half + i :, half + j :][: len(disk), : len(disk)]
        for i in range(-half, half + 1)
        for j in range(-half, half + 1)
    )
    exact = soft / (disk.sum() * rim.sum() ** 2) * 2**_DISK_BITS
    kernel = np.rint(exact).astype(int)
    kernel[reach, reach] += round(exact.sum()) - kernel.sum()
    return kernel.tolist()  # type: ignore[no-any-return]


def _shuffle(height: int, width: int, reach: int, rng: Generator) -> npt.NDArray[np.int64]:
    """Return for each pixel, [H * W], the index of the one whose colour it takes.

    The published loop visits pixels from the bottom right; each takes the colour that a random
    neighbour has by then. (It reads as a swap, but its arrays are views: nothing goes the other
    way.) A neighbour visited before has taken another's colour, and so on; these chains are
    short and are followed for all pixels at once."""
    own = np.arange(height * width)
    grid = np.zeros((height, width), bool)
    grid[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    visited = grid.ravel()
    side = 2 * reach
    steps = ((np.arange(side)[:, None] - reach) * width + np.arange(side) - reach).ravel()
    draws = words(rng, height * width).astype(np.int64) * side**2 >> 16
    taken = np.where(visited, own + steps.take(draws), own)
    chained = (taken > own) & visited & visited.take(taken)
    ends = own.copy()
    moving = np.flatnonzero(chained)
    while len(moving):
        ends[moving] = taken.take(ends.take(moving))
        moving = moving[chained.take(ends.take(moving))]
    return taken.take(ends)
