"""Conversion of arrays, Pillow images and tensors to pixels and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from samovar.anymodel.devices import to_device
from samovar.data.corruptions.filters import Bytes

ImageLike = TypeVar("ImageLike", npt.NDArray[np.uint8], Image.Image, torch.Tensor)

_ALLOWED = (
    "allowed are 8 bits, colour or grey: array [H, W, 3] or [H, W], Pillow's RGB or L, "
    "tensor [3, H, W] or [1, H, W]"
)


def opened(image: ImageLike) -> tuple[Bytes, Callable[[Bytes], Any]]:
    """Return the pixels [H, W, C] of an image, C being 1 or 3, and the way back.

    The way back is a function that makes an image of the given kind of such pixels.

    Raises:
        ValueError: not an image that can be corrupted."""
    if isinstance(image, Image.Image):
        if image.mode not in ("RGB", "L"):
            raise _refusal(f"a Pillow image of mode {image.mode}", 'image.convert("RGB")')
        pixels = np.asarray(image)
        return _pixels(np.atleast_3d(pixels)), lambda out: Image.fromarray(
            out.reshape(pixels.shape)
        )
    if isinstance(image, torch.Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise _refusal(
                f"a tensor {list(image.shape)} of {image.dtype}",
                _advice(image.dtype == torch.uint8),
            )
        device, last = image.device, image.cpu().permute(1, 2, 0).numpy()
        return _pixels(last), lambda out: to_device(
            torch.from_numpy(out.transpose(2, 0, 1).copy()), device
        )
    if not isinstance(image, np.ndarray):
        raise _refusal(f"a {type(image).__name__}", "numpy.asarray(image)")
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise _refusal(
            f"an array {list(image.shape)} of {image.dtype}", _advice(image.dtype == np.uint8)
        )
    return _pixels(np.atleast_3d(image)), lambda out: out.reshape(image.shape)


def _pixels(pixels: Bytes) -> Bytes:
    if pixels.shape[2] not in (1, 3):
        advice = "only the colour channels, channels last in an array, first in a tensor"
        raise _refusal(f"{pixels.shape[2]} channels", advice)
    if not pixels.size:
        raise _refusal("an image without pixels", "one of at least 1 x 1")
    return np.ascontiguousarray(pixels)


def _advice(bytes_already: bool) -> str:
    return (
        "one image at a time"
        if bytes_already
        else "(image * 255).round() as uint8 if its range is 0 to 1"
    )


def _refusal(given: str, advice: str) -> ValueError:
    return ValueError(f"cannot corrupt {given}; {_ALLOWED}; give {advice}")
