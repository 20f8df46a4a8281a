"""Tell by the first bytes of a file whether the decoders read its format.

Nothing here needs torch."""

from __future__ import annotations

import warnings
from pathlib import Path

_NO_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow recognizes but cannot decode by itself."""
_SURE = frozenset({"AVIF", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP"})
"""Formats whose signature is long enough that no text begins with it."""


def is_readable_format(path: Path | str) -> bool:
    """Return whether a decoder recognizes a file, whatever its name.

    A damaged file of a known format counts, as it is unreadable rather than no image. Formats
    without a signature (TGA) do not."""
    from PIL import Image

    Image.init()
    try:
        with Path(path).open("rb") as file:
            # as many bytes as Pillow shows to its formats
            first = file.read(16)
    except OSError:
        return False
    if len(first) < 16:  # no image is so small, and some formats look further than they check
        return False
    for name, (_, accept) in list(Image.OPEN.items()):
        answer = name not in _NO_PIXELS and accept and accept(first)
        # a str says that this Pillow was built without the decoder
        if answer and not isinstance(answer, str) and (name in _SURE or _opens(path)):
            return True
    return False


def _opens(path: Path | str) -> bool:
    """Return whether Pillow reads the header; `BM` and `P1` begin texts as well as images."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.format not in _NO_PIXELS
    except Exception:  # parsers of headers raise whatever they stumble over
        return False
