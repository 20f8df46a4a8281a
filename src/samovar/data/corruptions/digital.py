"""Corruptions by storage and resampling: JPEG, coarse pixels, elastic bending."""

from __future__ import annotations

import io

import numpy as np
from numpy.random import Generator
from PIL import Image

from samovar.data.corruptions.constants import Level
from samovar.data.corruptions.filters import Bytes, Floats, smooth
from samovar.data.corruptions.randomness import odd_bytes
from samovar.data.corruptions.sampling import sampled


def pixelate(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Shrink by averaging and repeat the pixels; level: (share of the side that remains,)."""
    height, width, _ = image.shape
    small = (max(int(width * level[0]), 1), max(int(height * level[0]), 1))
    shrunk = _to_pillow(image).resize(small, Image.Resampling.BOX)
    return np.array(shrunk.resize((width, height), Image.Resampling.NEAREST)).reshape(image.shape)


def jpeg_compression(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Store as JPEG; level: (quality,).

    The pixels are those of the libjpeg that Pillow was built with."""
    file = io.BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=int(level[0]))
    with Image.open(file) as stored:
        return np.array(stored).reshape(image.shape)


def elastic_transform(image: Bytes, level: Level, rng: Generator) -> Bytes:
    """Bend the image by a random map.

    Level: (largest displacement before smoothing, sigma of the smoothing, largest move of the
    corners of the affine map that comes first), as shares of the shorter side."""
    amplitude, sigma, corners = level
    height, width, _ = image.shape
    side = min(height, width)
    rows, cols = np.meshgrid(
        np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32), indexing="ij"
    )
    if corners:
        moves = odd_bytes(rng, 3, 2) * (corners * side / 255)
        image = sampled(image, *_affine(rows, cols, moves.tolist()))
    if amplitude:
        noise = odd_bytes(rng, height, width, 2)
        bend = smooth(noise, (sigma * height, sigma * width), truncate=3) * np.float32(
            amplitude * side / 255
        )
        image = sampled(image, rows + bend[..., 0], cols + bend[..., 1])
    return image


def _affine(rows: Floats, cols: Floats, moves: list[list[float]]) -> tuple[Floats, Floats]:
    """Return the row and column that each pixel comes from under an affine map.

    The map moves three corners of the middle square by `moves`."""
    height, width = rows.shape
    reach = max(min(height, width) // 3, 1)
    middle = (height // 2, width // 2)
    corners = [(1, 1), (1, -1), (-1, -1)]
    a, b, c = (
        [middle[k] + reach * corner[k] + move[k] for k in (0, 1)]
        for corner, move in zip(corners, moves, strict=True)
    )
    # the images of a step of 2 * reach down the rows, and along them
    down, along = [b[k] - c[k] for k in (0, 1)], [a[k] - b[k] for k in (0, 1)]
    determinant = down[0] * along[1] - down[1] * along[0]
    scale = 2 * reach / determinant
    y, x = rows - np.float32(a[0]), cols - np.float32(a[1])
    from_rows = y * np.float32(along[1] * scale) - x * np.float32(along[0] * scale)
    from_cols = x * np.float32(down[0] * scale) - y * np.float32(down[1] * scale)
    return from_rows + np.float32(middle[0] + reach), from_cols + np.float32(middle[1] + reach)


def _to_pillow(image: Bytes) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
