"""Decode image files to uint8 tensors.

JPEG goes through torchvision's decoder, the fastest that comes with torch; whatever it refuses, and
every other format, goes through Pillow. Both apply the EXIF orientation. The result has the
channels asked for: grey is repeated, CMYK and palettes are converted, transparency is dropped, 16
bits are scaled to 8, and an animation gives its first frame."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    # torchvision 0.29 announces the end of its decoders; Pillow is right too, only slower
    decode_jpeg = None

_JPEG = b"\xff\xd8"
_PILLOW_MODES = {1: "L", 3: "RGB"}


class UnreadableImage(ValueError):
    """Bytes that are no image, or one that cannot be decoded whole."""


def decode(data: bytes, channels: int = 3) -> Tensor:
    """Decode an image file.

    Args:
        data: the file's bytes: JPEG, PNG, WebP, GIF, BMP, TIFF or whatever else the installed
            Pillow reads.
        channels: 1 for grey, 3 for RGB.

    Returns:
        [C, H, W] uint8; channels last in memory where the decoder leaves them so.

    Raises:
        UnreadableImage: empty, truncated, damaged or no image."""
    if data[:2] == _JPEG and decode_jpeg is not None:
        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        try:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return decode_jpeg(buffer, mode=mode, apply_exif_orientation=True)  # type: ignore[no-any-return]
        except RuntimeError:
            pass  # 12-bit, lossless, truncated: Pillow reads some of them, or says why not
    return _with_pillow(data, channels)


def _with_pillow(data: bytes, channels: int) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is not worth a line per epoch
            with Image.open(io.BytesIO(data)) as image:
                upright = ImageOps.exif_transpose(image)
                pixels = np.asarray(_to_8_bits(upright).convert(_PILLOW_MODES[channels]))
    except UnidentifiedImageError as error:
        raise UnreadableImage(
            "no image format that Pillow knows" if data else "empty file"
        ) from error
    except Exception as error:  # decoders fed garbage raise whatever they stumble over
        raise UnreadableImage(str(error).strip() or type(error).__name__) from error
    # copied, since Pillow's buffer is read-only
    return torch.from_numpy(pixels.copy().reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion cuts off at 255 instead of scaling
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "P":
        # a palette with transparency loses its colours when converted in one go
        return image.convert("RGBA")
    return image
