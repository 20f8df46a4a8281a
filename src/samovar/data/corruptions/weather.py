"""Snow, frost and fog."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from samovar.data.corruptions.colour import grey, tint
from samovar.data.corruptions.constants import Level
from samovar.data.corruptions.filters import Bytes, Floats, spread, streak, to_bytes
from samovar.data.corruptions.randomness import normals, uniform, words
from samovar.data.corruptions.sampling import zoomed

_PHOTOGRAPHS = (
    ((78, 149, 166), (27, 17, 15)),
    ((201, 205, 215), (21, 22, 23)),
    ((201, 205, 215), (21, 22, 23)),
    ((138, 153, 165), (29, 29, 30)),
    ((112, 123, 135), (44, 43, 42)),
    ((71, 95, 105), (35, 43, 47)),
)
"""Mean and standard deviation of red, green and blue in the six photographs of ice from which
ImageNet-C's frost was made."""
_SEEDS = 7000  # of 65536 pixels start a needle


def snow(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Whiten the image and add falling flakes.

    Level: (mean and sigma of the noise that becomes flakes, their size, threshold, radius and sigma
    of their streaks, share of the image's own colours)."""
    mean, sigma, size, threshold, radius, streak_sigma, own = level
    height, width, channels = image.shape
    flakes = zoomed(normals(rng, height, width, 1) * np.float32(sigma) + np.float32(mean), size)
    flakes[flakes < threshold] = 0
    flakes = np.rint(
        streak(to_bytes(flakes * 255), int(radius), streak_sigma, uniform(rng, -135, -45))
    )[..., 0]
    whiter = grey(image) * np.float32(1.5) + np.float32(127.5)
    white = np.maximum(spread(whiter, channels), image)
    white *= np.float32(1 - own)
    white += image * np.float32(own)
    white += spread(flakes + flakes[::-1, ::-1], channels)
    return to_bytes(white)


def frost(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Cover the image with ice.

    Level: (share of the image, share of the ice, size of the ice, 1 being for 224 px). The ice is
    synthetic: needles in random directions on a rough ground, with the mean colour and contrast of
    a random one of the photographs from which ImageNet-C's frost was made. No photograph is
    used."""
    own, ice, size = level
    height, width, channels = image.shape
    means, deviations = _PHOTOGRAPHS[int(words(rng, 1)[0]) * len(_PHOTOGRAPHS) >> 16]
    texture = _ice(height, width, size, rng)
    out = image * np.float32(own)
    for channel, (mean, deviation) in enumerate(
        zip(tint(means, channels), tint(deviations, channels), strict=True)
    ):
        colour = np.clip(texture * np.float32(deviation) + np.float32(mean), 0, 255)
        out[..., channel] += colour * np.float32(ice)
    return to_bytes(out)


def fog(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Mix in clouds; level: (amount, decay of their roughness with scale)."""
    amount, decay = level
    height, width, channels = image.shape
    brightest = np.float32(int(image.max()) / 255)
    clouds = plasma(height, width, decay, rng) * np.float32(255 * amount)
    thick = spread(clouds, channels) + image
    thick *= brightest / (brightest + np.float32(amount))
    return to_bytes(thick)


def plasma(height: int, width: int, decay: float, rng: Generator) -> Floats:
    """Return fractal clouds from 0 to 1 by the diamond-square algorithm on a torus, [H, W].

    Source: Fournier, Fussell & Carpenter, Computer rendering of stochastic models (1982)."""
    size = 1 << (max(height, width) - 1).bit_length()
    noise = words(rng, size * size).astype(np.float32) * np.float32(2 / 65535) - np.float32(1)
    heights = np.zeros((1, 1), np.float32)
    amplitude, used = 1.0, 0
    while len(heights) < size:
        count = heights.size
        fresh = noise[used : used + 3 * count].reshape(3, *heights.shape) * np.float32(amplitude)
        heights = _twice_as_fine(heights, fresh)
        used, amplitude = used + 3 * count, amplitude / decay**2
    heights -= heights.min()
    clouds: Floats = heights[:height, :width] / max(heights.max(), np.float32(1e-30))
    return clouds


def _twice_as_fine(corners: Floats, noise: Floats) -> Floats:
    """Return the heights [2 n, 2 n] after one step of the algorithm.

    The middle of each square of corners, then of each edge, is the mean around it plus noise
    [3, n, n]."""
    right = _next(corners, 1)
    middles = (corners + right + _next(corners, 0) + _next(right, 0)) * np.float32(0.25) + noise[0]
    on_rows = (corners + right + middles + np.roll(middles, 1, 0)) * np.float32(0.25) + noise[1]
    on_columns = (corners + _next(corners, 0) + middles + np.roll(middles, 1, 1)) * np.float32(
        0.25
    ) + noise[2]
    finer = np.empty((2 * len(corners), 2 * len(corners)), np.float32)
    finer[::2, ::2], finer[1::2, 1::2] = corners, middles
    finer[::2, 1::2], finer[1::2, ::2] = on_rows, on_columns
    return finer


def _next(array: Floats, axis: int) -> Floats:
    return np.roll(array, -1, axis)


def _ice(height: int, width: int, size: float, rng: Generator) -> Floats:
    """Return ice with mean about 0 and deviation about 1, [H, W].

    It consists of needles over a rough ground, parallel within a field."""
    fields = plasma(height, width, 1.7, rng)
    layers = []
    for _ in range(3):
        draws = words(rng, height, width, 1)
        seeds = np.where(draws < _SEEDS, draws & 255, np.uint16(0))
        radius, angle = max(1, round(12 * size)), uniform(rng, 0, 360)
        layers.append(streak(seeds, radius, 9 * size, angle, "reflect")[..., 0])
    fields_of_three = (fields * np.float32(4.99)).astype(int) % 3
    needles = np.choose(fields_of_three, layers) - np.float32(127.5 * _SEEDS / 65536)
    ground = plasma(height, width, 1.4, rng) - np.float32(0.5)
    # weights found by trial, for a deviation of 1
    return ground * np.float32(2.6) + needles * np.float32(0.075 * math.sqrt(size))
