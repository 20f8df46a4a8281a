"""Decode image files to uint8 tensors.

JPEG goes through torchvision's decoder, the fastest that comes with torch; whatever it refuses, and
every other format, goes through Pillow, which gives the same bits. Both apply the EXIF orientation.
An animation gives its first frame. `RULES` says how each mode of Pillow becomes 8 bits; a file that
no rule covers is unreadable, since guessed pixels would be black or white without a word."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    # torchvision 0.29 announces the end of its decoders; Pillow is right too, only slower
    decode_jpeg = None

MAX_PIXELS = 178_956_970
"""Most pixels of an image: the limit beyond which Pillow assumes a decompression bomb."""
MAX_ASPECT = 200
"""Longest side of an image in units of its shortest side."""
_JPEG = b"\xff\xd8"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE, _SAMPLE_FORMAT = 258, 262, 281, 339
"""Tags of TIFF."""
_DARK = 16
"""A deep image whose samples all turn into less than this was likely read by the wrong rule.

A file of 12 bits stored in 16 is one: of 4095 the upper 8 bits are 15."""


class UnreadableImage(ValueError):
    """Bytes that are no image, or one that cannot be decoded whole or by a known rule."""


def decode(data: bytes, channels: int = 3) -> Tensor:
    """Decode an image file.

    Args:
        data: the file's bytes: JPEG, PNG, WebP, GIF, BMP, TIFF or whatever else the installed
            Pillow reads.
        channels: 1 for grey, 3 for RGB.

    Returns:
        [C, H, W] uint8; channels last in memory where the decoder leaves them so.

    Raises:
        UnreadableImage: empty, truncated, damaged, too large or too thin, no image, or one whose
            mode has no rule."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is not worth a line per epoch
            # reads the header alone, so a huge image is refused before it fills the memory
            with Image.open(io.BytesIO(data)) as image:
                _check_size(*image.size)
                fast = _with_torchvision(data, channels) if data[:2] == _JPEG else None
                return _with_pillow(image, channels) if fast is None else fast
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(
            "no image format that Pillow knows" if data else "empty file"
        ) from error
    except Exception as error:  # decoders fed garbage raise whatever they stumble over
        raise UnreadableImage(str(error).strip() or type(error).__name__) from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(
            f"{width} x {height} pixels, more than {MAX_PIXELS:,} in all; make the image smaller"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnreadableImage(
            f"{width} x {height} pixels, a strip longer than {MAX_ASPECT} times its width; cut it"
        )


def _with_torchvision(data: bytes, channels: int) -> Tensor | None:
    """Return the pixels of a JPEG; None where Pillow has to try."""
    if decode_jpeg is None:
        return None
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        return decode_jpeg(buffer, mode=mode, apply_exif_orientation=True)  # type: ignore[no-any-return]
    except RuntimeError:
        return None  # 12-bit, lossless, truncated: Pillow reads some of them, or says why not


def _with_pillow(image: Image.Image, channels: int) -> Tensor:
    if channels == 1:
        image.draft("L", None)  # the luma of a JPEG as it is stored, as torchvision takes it
    stored = _stored(image)
    rule = RULES.get(image.mode)
    if rule is None:
        raise UnreadableImage(f"Pillow's mode {image.mode} has no rule; save it as RGB")
    plain = rule(ImageOps.exif_transpose(image), stored)
    pixels = np.asarray(plain.convert("L" if channels == 1 else "RGB"))
    # copied, since Pillow's buffer is read-only
    return torch.from_numpy(pixels.copy().reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


# --- the rules for each mode ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """What a file declares of its samples."""

    bits: int
    """Bits of a sample that are used: 8 or fewer, 10, 12, 14, 16 or 32."""
    inverted: bool
    """Whether 0 is white, and Pillow leaves it so."""
    scaled: bool = False
    """Whether Pillow has scaled the samples by the maximum that the file declares."""


def _stored(image: Image.Image) -> _Stored:
    """Return what an image's file declares; asked before Pillow decodes it."""
    codecs = [f"{tile[0]} {tile[3]}" for tile in getattr(image, "tile", ())]
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})  # of TIFF
    deep = (
        image.mode.startswith("I;16")
        # PGM of 16 bits, and PNG before Pillow 11, open in the mode of 32 bits
        or (image.mode == "I" and image.format in ("PNG", "PPM"))
        or any(";16" in codec for codec in codecs)
    )
    scaled = image.format == "JPEG2000" or any(codec.startswith("ppm ") for codec in codecs)
    if image.mode in ("I", "F"):
        deep = deep and image.format != "TIFF"  # signed there
        return _Stored(16 if deep else 32, tags.get(_PHOTOMETRIC) == 0, scaled)
    if image.mode == "L" and 2 in tags.get(_SAMPLE_FORMAT, ()):
        raise UnreadableImage("signed samples, whose black is not known; save them unsigned")
    bits = max(tags.get(_BITS_PER_SAMPLE, ()), default=16 if deep else 8)
    # Pillow decodes planes of 16 bits as if they had 8
    if bits == 16 and not deep:
        raise UnreadableImage("16-bit colours in separate planes; save them interleaved")
    declared = max(tags.get(_MAX_SAMPLE, ()), default=0)
    if bits == 16 and declared in (2**10 - 1, 2**12 - 1, 2**14 - 1):
        bits = int(declared).bit_length()
    return _Stored(bits, deep and tags.get(_PHOTOMETRIC) == 0, scaled)


def _bytes(samples: npt.NDArray[Any], stored: _Stored) -> Image.Image:
    grey = samples.astype(np.uint8)
    return Image.fromarray(255 - grey if stored.inverted else grey)


def _colours(image: Image.Image, stored: _Stored) -> Image.Image:
    """Convert to RGB of 8 bits, composited on white; of 16 bits Pillow keeps the upper 8."""
    transparent = "transparency" in image.info
    if stored.bits > 8:
        seen = [band for band in image.getbands() if band not in "AX"]
        highest = max(np.asarray(image.getchannel(band)).max() for band in seen)
        if stored.bits < 16 or highest < _DARK:
            raise UnreadableImage(_TOO_DARK)
        if transparent:
            raise UnreadableImage("16-bit colours of which one is transparent; save it as RGBA")
    if transparent or image.mode in ("LA", "PA", "RGBA"):
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    return image.convert("RGB")


def _wide(image: Image.Image, stored: _Stored) -> Image.Image:
    """Keep the upper 8 of the bits that the file declares: 16 unless a TIFF says fewer."""
    samples = np.asarray(image).astype(np.int64)
    top = samples.max()
    if stored.bits == 16 and not stored.scaled and 0 < top < _DARK << 8:
        raise UnreadableImage(_TOO_DARK)
    if samples.min() < 0 or top >= 2**stored.bits:
        raise UnreadableImage(
            f"samples from {samples.min()} to {top} in {stored.bits} bits; save it with 8 bits"
        )
    made = _bytes(samples >> (stored.bits - 8), stored)
    if (clear := image.info.get("transparency")) is not None:
        made.paste(255, mask=Image.fromarray(samples == clear))
    return made


def _integers(image: Image.Image, stored: _Stored) -> Image.Image:
    """Take integers from 0 to 255 as they are, since 32 bits declare no range."""
    if stored.bits == 16:
        return _wide(image, stored)
    samples = np.asarray(image)
    if samples.min() < 0 or samples.max() > 255:
        raise UnreadableImage(
            f"integers from {samples.min()} to {samples.max()}, whose white is not known; "
            "save them with 8 bits"
        )
    return _bytes(samples, stored)


def _floats(image: Image.Image, stored: _Stored) -> Image.Image:
    """Scale numbers in [0, 1] by 255, and round others in [0, 255] unless all would be dark."""
    samples = np.asarray(image)
    low, high = samples.min(), samples.max()  # NaN if any is
    rounded = np.rint(samples)
    if low >= 0 and high <= 1:
        return _bytes(np.rint(samples * 255), stored)
    if low >= 0 and high <= 255 and (high >= _DARK or (samples == rounded).all()):
        return _bytes(rounded, stored)
    raise UnreadableImage(
        f"floating-point samples from {low:g} to {high:g}, whose white is not known; "
        "save them in [0, 1] or with 8 bits"
    )


_TOO_DARK = (
    "16-bit samples of which the upper bits are not used, so all would turn black; "
    "save it with 8 bits"
)
RULES: dict[str, Callable[[Image.Image, _Stored], Image.Image]] = {
    **dict.fromkeys(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"), _colours),
    **dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), _wide),
    "I": _integers,
    "F": _floats,
}
"""The rule for each of Pillow's modes; a file of any other mode is unreadable."""
