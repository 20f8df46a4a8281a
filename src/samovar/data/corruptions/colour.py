"""Brightness, contrast and saturation; luma and tints for the other corruptions.

Hue and saturation are those of the HSV hexcone: value V is the largest of a pixel's channels,
saturation is (V - smallest) / V. A new V at the same hue and saturation scales a pixel; a new
saturation at the same hue and V scales the distances of its channels from V. So no hue is ever
computed."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from samovar.data.corruptions.constants import Level
from samovar.data.corruptions.filters import Bytes, Floats

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def brightness(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Add to the value of HSV; level: (summand in the range 0 to 1,)."""
    row = _extreme(image, np.maximum).astype(np.uint16) << 8
    table = _brighter(level[0])
    out = np.empty_like(image)
    for channel in range(image.shape[2]):
        out[..., channel] = table.take(row | image[..., channel])
    return out


def saturate(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Scale the saturation and add to it; level: (factor, summand).

    An image of one channel has no saturation and stays as it is. A grey pixel has hue 0 by
    convention, so that it turns red if the summand is not 0, as in the published data sets."""
    if image.shape[2] == 1:
        return image.copy()
    value = _extreme(image, np.maximum)
    ratio, floor = _saturation(*level)
    place = value.astype(np.uint16) << 8 | _extreme(image, np.minimum)
    scale, lowest = ratio.take(place), floor.take(place)
    out = np.empty_like(image)
    for channel in range(3):
        moved = value - (value - image[..., channel]) * scale
        out[..., channel] = np.minimum(moved, lowest) if channel else moved
    return out


def contrast(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Move each channel towards its mean; level: (share of the distance that remains,)."""
    out = np.empty_like(image)
    for channel in range(image.shape[2]):
        layer = image[..., channel]
        mean = int(layer.sum(dtype=np.int64)) / layer.size
        drawn = (np.arange(256) / 255 - mean / 255) * level[0] + mean / 255
        out[..., channel] = np.clip(drawn * 255, 0, 255).astype(np.uint8).take(layer)
    return out


def grey(image: Bytes) -> Floats:
    """Return the luma, [H, W], 0 to 255."""
    if image.shape[2] == 1:
        return image[..., 0].astype(np.float32)
    red, green, blue = (
        image[..., channel] * np.float32(weight) for channel, weight in enumerate(_LUMA)
    )
    luma: Floats = red + green + blue
    return luma


def tint(colour: Sequence[float], channels: int) -> Sequence[float]:
    """Return a colour for an image of 3 channels, its luma for an image of 1."""
    if channels == 3:
        return colour
    return [sum(part * weight for part, weight in zip(colour, _LUMA, strict=True))]


def _extreme(image: Bytes, pick: np.ufunc) -> Bytes:
    """Return the largest or smallest channel of each pixel, [H, W]."""
    out: Bytes = image[..., 0]
    for channel in range(1, image.shape[2]):
        out = pick(out, image[..., channel])
    return out


@functools.lru_cache(maxsize=16)
def _brighter(amount: float) -> Bytes:
    """Return the new channel, [256 * 256], for each value of the pixel and level of the channel."""
    value, channel = np.arange(256)[:, None], np.arange(256)
    raised = np.minimum(value + 255 * amount, 255)
    scaled = raised * channel / np.maximum(value, 1)
    scaled[0] = raised[0]  # black has saturation 0
    table: Bytes = np.clip(scaled, 0, 255).astype(np.uint8)
    return table.ravel()


@functools.lru_cache(maxsize=16)
def _saturation(factor: float, summand: float) -> tuple[Floats, Floats]:
    """Return two tables, [256 * 256], over the largest and smallest channel of a pixel.

    They hold the scale of the distances from the largest channel, and the cap of a grey pixel."""
    value, smallest = np.arange(256)[:, None], np.arange(256)
    distance = np.maximum(value - smallest, 1)
    ratio = np.clip(factor * distance / np.maximum(value, 1) + summand, 0, 1) * value / distance
    cap = np.where(value == smallest, value * (1 - summand), 255)
    return ratio.astype(np.float32).ravel(), cap.astype(np.float32).ravel()
