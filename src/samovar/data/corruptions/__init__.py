"""Corruptions of ImageNet-C: 19 ways to degrade an image, each in 5 severities.

The fifteen of `MAIN` are the benchmark, the four of `EXTRA` were meant for validation; the paper
counts all. They are rewritten from their definitions, for any image size. Images whose shorter side
is below 64 px get CIFAR-10-C's constants, others ImageNet-C's. Frost, originally taken from
photographs, is synthetic here.

The result is a function of (image, name, severity, seed, constants) alone: the same bits with any
number of workers and threads, and with any instruction set (tested on x86 with and without AVX).
Pillow computes jpeg_compression and pixelate, whose pixels are thus fixed for one version of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.random import Generator

from samovar.data.corruptions.blur import (
    defocus_blur,
    gaussian_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
)
from samovar.data.corruptions.border import ImageLike, opened
from samovar.data.corruptions.colour import brightness, contrast, saturate
from samovar.data.corruptions.constants import CIFAR, IMAGENET, SMALL, Level
from samovar.data.corruptions.digital import elastic_transform, jpeg_compression, pixelate
from samovar.data.corruptions.drops import spatter
from samovar.data.corruptions.filters import Bytes
from samovar.data.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from samovar.data.corruptions.randomness import generator, image_seed
from samovar.data.corruptions.weather import fog, frost, snow
from samovar.words import suggest

__all__ = ["CORRUPTIONS", "EXTRA", "MAIN", "SEVERITIES", "corrupt", "image_seed"]

CORRUPTIONS: dict[str, Callable[[Bytes, Level, Generator], Bytes]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "spatter": spatter,
    "saturate": saturate,
}
"""Function of (image [H, W, C] uint8, constants of the severity, generator) by name."""

MAIN = tuple(CORRUPTIONS)[:15]
EXTRA = tuple(CORRUPTIONS)[15:]
SEVERITIES = (1, 2, 3, 4, 5)

_SETS = {"imagenet": IMAGENET, "cifar": CIFAR}


def corrupt(
    image: ImageLike,
    name: str,
    *,
    severity: int,
    seed: int = 0,
    constants: Literal["auto", "imagenet", "cifar"] = "auto",
) -> ImageLike:
    """Return a corrupted copy of an image, of the same type, shape and mode.

    Args:
        image: 8 bits, colour or grey: array [H, W, 3] or [H, W], Pillow's RGB or L, tensor [3, H,
            W] or [1, H, W].
        name: one of CORRUPTIONS.
        severity: 1 to 5.
        seed: seed of the draws; use `image_seed(seed, index)` for the images of a data set, so that
            they do not share their noise.
        constants: constants of the severities: ImageNet-C's or CIFAR-10-C's; "auto" takes
            CIFAR-10-C's below 64 px.

    Raises:
        ValueError: an image of another kind, an unknown name, severity or set of constants.

    Source: Hendrycks & Dietterich, arXiv:1903.12261."""
    _check(name, severity, constants)
    pixels, give_back = opened(image)
    fitting = "cifar" if min(pixels.shape[:2]) < SMALL else "imagenet"
    chosen = fitting if constants == "auto" else constants
    level = _SETS[chosen][name][severity - 1]
    spoilt = CORRUPTIONS[name](pixels, level, generator(seed, name, severity))
    result: ImageLike = give_back(np.ascontiguousarray(spoilt))
    return result


def _check(name: str, severity: int, constants: str) -> None:
    if name not in CORRUPTIONS:
        known = f"known: {', '.join(CORRUPTIONS)}"
        raise ValueError(
            f"unknown corruption {name!r}; {suggest(str(name), CORRUPTIONS, instead=known)}"
        )
    if severity not in SEVERITIES or not hasattr(severity, "__index__"):
        raise ValueError(
            f"severity={severity!r} is not one of 1, 2, 3, 4, 5; give 1 (mild) to 5 (strong)"
        )
    if constants != "auto" and constants not in _SETS:
        raise ValueError(
            f'constants={constants!r} are not known; give "auto", "imagenet" or "cifar"'
        )
