"""Image transforms as batched functions of explicit draws.

Images are [B, C, H, W], uint8 or float; every function returns the type it was given, uint8 by
rounding. Draws are uniform numbers from [0, 1), one row an image, so that the result for an image
does not depend on its neighbours."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samovar.anymodel.devices import to_device
from samovar.data.draws import Floats, Ints, Purpose, uniforms

MIN_AREA, MAX_AREA = 0.05, 1.0
MIN_ASPECT, MAX_ASPECT = 0.75, 1.33
MAX_ATTEMPTS = 100
WHOLE_ASPECT = 10
"""Longest side, in units of the shortest, of an image that evaluation scales before it crops."""


def flip(images: Tensor, u: Floats) -> Tensor:
    """Mirror left to right the images whose draw is below one half.

    Args:
        images: [B, C, H, W].
        u: [B, 1] draws."""
    mirrored = u[:, 0] < 0.5
    if images.device.type != "cpu":
        return torch.where(_on(mirrored, images).view(-1, 1, 1, 1), images.flip(-1), images)
    images = images.clone()
    # on a CPU this is ten times faster than torch.where, which is slow on bytes
    for row in np.flatnonzero(mirrored).tolist():
        images[row] = images[row].flip(-1)
    return images


def pad_crop(images: Tensor, u: Floats, pad: int) -> Tensor:
    """Pad with zeros and crop to the original size at a random place.

    All (2 pad + 1)^2 places are equally likely.

    Args:
        images: [B, C, H, W].
        u: [B, 2] draws: vertical and horizontal place.
        pad: pixels on each side."""
    height, width = images.shape[-2:]
    # a view of all windows, so that one gather crops the whole batch
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    places = _on(np.floor(u * (2 * pad + 1)).astype(np.int64), images)
    rows = torch.arange(len(images), device=images.device)
    return windows[rows, :, places[:, 0], places[:, 1]]


def affine(images: Tensor, u: Floats, degrees: float, translate: float, zoom: float) -> Tensor:
    """Rotate, scale and shift square images about their centre; bilinear, zeros outside.

    Args:
        images: [B, C, S, S].
        u: [B, 4] draws: angle, scale, horizontal and vertical shift, each uniform and symmetric
            about no change.
        degrees: largest rotation.
        translate: largest shift, as a share of the image's side.
        zoom: largest relative change of scale."""
    signed = 2 * u - 1
    angle, scale = np.deg2rad(signed[:, 0] * degrees), 1 + signed[:, 1] * zoom
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    shift = 2 * translate * signed[:, 2:]  # the grid's coordinates run from -1 to 1
    rows = np.stack([cos, sin, shift[:, 0], -sin, cos, shift[:, 1]], axis=1)
    theta = _on(rows.astype(np.float32).reshape(-1, 2, 3), images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return _like(
        F.grid_sample(_floats(images), grid, padding_mode="zeros", align_corners=False), images
    )


# --- the Inception crop ---


def inception_boxes(heights: Ints, widths: Ints, seed: int, positions: Ints) -> Ints:
    """Return boxes of the Inception crop, with the distribution of the paper's pipeline.

    Area 5-100 %, aspect 0.75-1.33. Up to 100 attempts a box, of which the first nearly always fits;
    an image too elongated for any is kept whole.

    Args:
        heights: [n] pixels.
        widths: [n] pixels.
        seed: the run's seed.
        positions: [n] positions in the training stream.

    Returns:
        [n, 4] top, left, height, width in pixels.

    Source: TensorFlow's sample_distorted_bounding_box with min_object_covered=0, which
        big_vision's `inception_crop` uses."""
    boxes = np.stack([np.zeros_like(heights), np.zeros_like(widths), heights, widths], axis=1)
    pending = np.arange(len(heights))
    for attempt in range(MAX_ATTEMPTS):
        u = uniforms(seed, Purpose.INCEPTION, positions[pending], 4, attempt)
        tried, fits = inception_attempt(heights[pending], widths[pending], u)
        boxes[pending[fits]] = tried[fits]
        pending = pending[~fits]
        if not len(pending):
            break
    return boxes


def inception_attempt(
    heights: Ints, widths: Ints, u: Floats
) -> tuple[Ints, np.ndarray[tuple[int], np.dtype[np.bool]]]:
    """Return one attempt at a box per image, and whether it fits.

    Args:
        heights: [n] pixels.
        widths: [n] pixels.
        u: [n, 4] draws: aspect (width / height), height, vertical and horizontal place.

    Returns:
        [n, 4] top, left, height, width in pixels; [n] whether the box obeys the limits."""
    aspect = MIN_ASPECT + u[:, 0] * (MAX_ASPECT - MIN_ASPECT)
    min_area, max_area = MIN_AREA * heights * widths, MAX_AREA * heights * widths
    low = _round(np.sqrt(min_area / aspect))
    high = _round(np.sqrt(max_area / aspect))
    # the largest height whose rounded width still fits into the image
    widest = ((widths + 0.5 - 1e-7) / aspect).astype(np.int64)
    widest -= _round(widest * aspect) > widths
    high = np.minimum(np.where(_round(high * aspect) > widths, widest, high), heights)
    low = np.minimum(low, high)
    height = low + np.floor(u[:, 1] * (high - low + 1)).astype(np.int64)
    width = _round(height * aspect)
    height += height * width < min_area  # one pixel of tolerance for rounding, either way
    width = _round(height * aspect)
    height -= height * width > max_area
    width = _round(height * aspect)
    area = height * width
    fits = (
        (area >= min_area)
        & (area <= max_area)
        & (height <= heights)
        & (width <= widths)
        & (height * width > 0)
    )
    # Without + 1, as in the original: a smaller box never touches the bottom or the right edge.
    top = np.floor(u[:, 2] * (heights - height)).astype(np.int64)
    left = np.floor(u[:, 3] * (widths - width)).astype(np.int64)
    return np.stack([top, left, height, width], axis=1), fits


def _round(x: Floats) -> Ints:
    return np.rint(x).astype(np.int64)


def crop_resize(images: Tensor, boxes: Ints, size: int) -> Tensor:
    """Cut a box out of each image and scale it to a square.

    Bilinear, half-pixel centres, no antialias.

    Args:
        images: [B, C, H, W].
        boxes: [B, 4] top, left, height, width in pixels.
        size: side of the result in pixels."""
    height, width = images.shape[-2:]
    places = (np.arange(size) + 0.5) / size
    corner, extent = boxes[:, :2, None], boxes[:, 2:, None]
    # Clamped to the box: pixels outside the crop must not bleed in at its edges.
    pixels = corner + np.clip(places * extent - 0.5, 0, extent - 1)
    normalized = (2 * pixels + 1) / np.array([height, width])[:, None] - 1
    y, x = _on(normalized.astype(np.float32), images).unbind(1)
    grid = torch.stack(
        [x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1
    )
    return _like(
        F.grid_sample(_floats(images), grid, padding_mode="border", align_corners=False), images
    )


def resize(images: Tensor, height: int, width: int, *, antialias: bool) -> Tensor:
    """Scale images of any one size; bilinear, half-pixel centres."""
    if images.shape[-2:] == (height, width):
        return images
    size = (height, width)
    # the CPU alone has kernels for uint8
    if images.device.type == "cpu" and images.dtype == torch.uint8:
        # a third faster than the copy that interpolate would make itself
        channels_last = images.contiguous(memory_format=torch.channels_last)
        return F.interpolate(channels_last, size=size, mode="bilinear", antialias=antialias)
    return _like(
        F.interpolate(_floats(images), size=size, mode="bilinear", antialias=antialias), images
    )


def resize_central(images: Tensor, size: int) -> Tensor:
    """Scale the shorter side to size * 256 / 224 with antialias and cut the central square.

    This is the paper's evaluation. Of a strip longer than `WHOLE_ASPECT` times its width only the
    middle is scaled, so that time and memory do not depend on the length."""
    # an even number of pixels is cut off, so that the centre stays where it is
    longest = WHOLE_ASPECT * min(images.shape[-2:])
    margins = [max(0, (side - longest) // 2) for side in images.shape[-2:]]
    images = images[
        ..., margins[0] : images.shape[-2] - margins[0], margins[1] : images.shape[-1] - margins[1]
    ]
    height, width = images.shape[-2:]
    shorter = max(size, round(size * 256 / 224))
    scale = shorter / min(height, width)
    images = resize(
        images,
        max(shorter, round(height * scale)),
        max(shorter, round(width * scale)),
        antialias=True,
    )
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


# --- types and devices ---


def _on(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]], images: Tensor) -> Tensor:
    return to_device(torch.from_numpy(values), images.device)


def _floats(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float()


def _like(result: Tensor, images: Tensor) -> Tensor:
    return result if images.is_floating_point() else result.round_().to(images.dtype)
