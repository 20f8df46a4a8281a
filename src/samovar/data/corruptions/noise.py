"""Noise, independent for each channel of each pixel."""

from __future__ import annotations

import functools

import numpy as np
from numpy.random import Generator
from scipy.special import pdtr

from samovar.data.corruptions.constants import Level
from samovar.data.corruptions.filters import Bytes, Floats, to_bytes
from samovar.data.corruptions.randomness import normal_quantiles, words

# 1 MiB in all, which fits in a core's cache
_DRAWS = 4096
"""Outcomes per grey level in the table of shot noise."""


def gaussian_noise(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Add normal noise; level: (sigma in the range 0 to 1,)."""
    return to_bytes(_scaled_normals(level[0] * 255, 0.0).take(words(rng, *image.shape)) + image)


def speckle_noise(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Add normal noise in proportion to the brightness; level: (sigma,)."""
    return to_bytes(_scaled_normals(level[0], 1.0).take(words(rng, *image.shape)) * image)


def shot_noise(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Replace each channel by a Poisson count of photons; level: (photons of white,)."""
    places = image.astype(np.int64)
    places *= _DRAWS
    places += words(rng, *image.shape) // (65536 // _DRAWS)
    return _shots(level[0]).take(places)


def impulse_noise(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Set a share of the channels to black or white, half each; level: (share,)."""
    draws = words(rng, *image.shape)
    each = round(level[0] / 2 * 65536)
    out = np.where(draws < each, np.uint8(0), image)
    return np.where(draws >= 65536 - each, np.uint8(255), out)


@functools.lru_cache(maxsize=16)
def _scaled_normals(sigma: float, mean: float) -> Floats:
    return mean + np.float32(sigma) * normal_quantiles()


@functools.lru_cache(maxsize=8)
def _shots(photons: float) -> Bytes:
    """Return quantiles of Poisson(photons * grey / 255), as grey levels, [256 * 4096].

    There are 4096 for each grey level of the image."""
    rates = np.arange(256) / 255 * photons
    counts = np.arange(int(photons) + 1)  # every larger count is white, as `photons` itself is
    probabilities = (np.arange(_DRAWS) + 0.5) / _DRAWS
    greys = np.floor(counts / photons * 255).astype(np.uint8)
    rows = [greys[np.searchsorted(pdtr(counts[:-1], rate), probabilities)] for rate in rates]
    return np.concatenate(rows)
