"""Weighted sums of shifted pixels that are the same in any order of addition.

Pixels have 8 to 12 bits and weights are multiples of 2^-12 to 2^-16, so that every partial sum fits
in the 24 bits of a float32 and is exact. No instruction set, thread count or fused multiply-add can
then change a bit."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Tap = tuple[int, int, int]
"""Row and column offset of a neighbour, and its weight."""
Mode = Literal["edge", "reflect"]
"""Padding outside the image, in numpy's words: the border pixel repeated, or the image mirrored
about it."""


def fixed_point(weights: Sequence[float], bits: int) -> list[int]:
    """Return weights in units of 2^-bits that sum to exactly 1.

    The largest weight takes the rest that rounding leaves."""
    scaled = np.rint(np.array(weights) / math.fsum(weights) * 2**bits).astype(int)
    scaled[scaled.argmax()] += 2**bits - scaled.sum()
    return scaled.tolist()  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=256)
def gaussian(sigma: float, radius: int, bits: int) -> list[int]:
    """Return a Gaussian's weights at -radius to radius, in units of 2^-bits."""
    return fixed_point(
        [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)], bits
    )


def sum_of_shifts(pixels: npt.NDArray[Any], taps: Iterable[Tap], mode: Mode = "edge") -> Floats:
    """Return the sum over `taps` of weight times the neighbour at that offset.

    Args:
        pixels: [H, W, C] whole numbers, or multiples of a power of two.
        taps: offsets and weights; pixel times weight, summed over taps, must stay within 24 bits.
        mode: padding outside the image."""
    taps = [tap for tap in taps if tap[2]]
    height, width, channels = pixels.shape
    rows, cols = max(abs(tap[0]) for tap in taps), max(abs(tap[1]) for tap in taps)
    padded = np.pad(pixels, ((rows, rows), (cols, cols), (0, 0)), mode=mode).astype(
        np.float32, copy=False
    )
    total = np.zeros((height, width * channels), np.float32)
    add_shifts(total, padded, [(rows + row, cols + col, weight) for row, col, weight in taps])
    return total.reshape(pixels.shape)


def add_shifts(total: Floats, padded: Floats, taps: Iterable[Tap]) -> None:
    """Add each tap to `total` [H, W * C].

    A tap adds its weight times the window of `padded` [H + ?, W + ?, C] at its offset."""
    height, width, channels = len(total), total.shape[1], padded.shape[2]
    source = torch.from_numpy(padded.reshape(len(padded), -1))
    into = torch.from_numpy(total)
    for row, col, weight in taps:
        if weight:
            into.add_(
                source[row : row + height, col * channels : col * channels + width], alpha=weight
            )


def smooth(
    pixels: npt.NDArray[Any], sigmas: tuple[float, float], *, truncate: float = 4.0
) -> Floats:
    """Smooth by a Gaussian; the border pixel is repeated outside.

    Args:
        pixels: [H, W, C] whole numbers from -255 to 255.
        sigmas: down the rows and along them, pixels.
        truncate: cut-off of the Gaussian, in sigmas.

    Returns:
        [H, W, C] within 0.2 of the true values: 12-bit weights, and 1/16 between the passes."""
    down, along = (gaussian(sigma, int(truncate * sigma + 0.5), 12) for sigma in sigmas)
    first = sum_of_shifts(
        pixels, [(i - len(down) // 2, 0, weight) for i, weight in enumerate(down)]
    )
    np.rint(np.multiply(first, 2.0**-8, out=first), out=first)
    second = sum_of_shifts(
        first, [(0, i - len(along) // 2, weight) for i, weight in enumerate(along)]
    )
    return np.multiply(second, np.float32(2.0**-16), out=second)


def streak(
    pixels: npt.NDArray[Any], radius: int, sigma: float, angle: float, mode: Mode = "edge"
) -> Floats:
    """Blur by motion: half a Gaussian along a line that starts at the pixel.

    Args:
        pixels: [H, W, C] whole numbers from 0 to 255.
        radius: the line has 2 radius + 1 pixels.
        sigma: sigma of the Gaussian, pixels.
        angle: degrees; 0 is along the rows.
        mode: padding outside the image."""
    weights = fixed_point([math.exp(-0.5 * (i / sigma) ** 2) for i in range(2 * radius + 1)], 16)
    down, along = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    taps = [
        (math.ceil(i * down - 0.5), math.ceil(i * along - 0.5), weight)
        for i, weight in enumerate(weights)
    ]
    blurred = sum_of_shifts(pixels, taps, mode)
    return np.multiply(blurred, np.float32(2.0**-16), out=blurred)


def spread(layer: npt.NDArray[Any], channels: int) -> Floats:
    """Repeat a layer [H, W] over channels, [H, W, C]."""
    out = np.empty((*layer.shape, channels), np.float32)
    # not by broadcasting, for which numpy would loop over three numbers at a time
    for channel in range(channels):
        out[..., channel] = layer
    return out


def to_bytes(pixels: Floats) -> Bytes:
    """Clip to 0 to 255 and drop the fraction, as the published code does; overwrites `pixels`."""
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)
