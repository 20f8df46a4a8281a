"""Encode images, and small maps of them, as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from samovar.report.drawing import palette
from samovar.report.read import Array

TILE = 160
"""The longest side of an image in the page, in pixels."""

LARGE = 320
"""The longest side of an image that is worth a close look."""

COARSE = 48
"""Images up to this side are shown pixel by pixel."""

# From clear over orange to pale yellow: readable on dark and on light images, and in grey.
_HEAT = np.array([[196, 48, 0], [240, 110, 10], [255, 190, 40], [255, 245, 170]], dtype=np.float64)
_BELOW, _MIDDLE, _ABOVE = (
    np.array(color, dtype=np.float64) for color in ([33, 102, 172], [247, 247, 247], [178, 24, 43])
)


def image_uri(pixels: Array, side: int = TILE) -> str:
    """Encode an image: small ones exactly, as PNG; others as JPEG.

    Args:
        pixels: uint8 [H, W, 3] or [H, W].
        side: the longest side of the result, in pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    # JPEG blurs small images, whose every pixel is shown; photographs are smaller in it.
    if max(image.size) > side:
        image.thumbnail((side, side))
    return _uri(image, "PNG" if max(image.size) <= 2 * COARSE else "JPEG")


def heat_uri(values: Array) -> str:
    """Encode a map [h, w] in the colours of heights, from 0 to its maximum; gaps are clear."""
    stops = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in palette.HEIGHT], float)
    color = _between(stops, heat_share(values))
    alpha = np.where(np.isfinite(values), 255.0, 0.0)
    return _uri(Image.fromarray(np.dstack([color, alpha]).round().astype(np.uint8), "RGBA"), "PNG")


def heat(values: Array) -> Array:
    """Colour a map [h, w] as a veil uint8 [h, w, 4]: clear at 0 and gaps, dense at its maximum."""
    share = heat_share(values)
    # Weak values stay clear, so that the image below them can be seen.
    return np.dstack([_between(_HEAT, share), 215 * share**1.5]).round().astype(np.uint8)


def _between(stops: Array, share: Array) -> Array:
    """Return the colours [..., 3] at shares [...] of the way through colours [n, 3]."""
    position = share * (len(stops) - 1)
    below = np.minimum(position.astype(int), len(stops) - 2)
    between = (position - below)[..., None] * (stops[below + 1] - stops[below])
    return np.asarray(stops[below] + between)


def heat_share(values: Array) -> Array:
    """Scale a map to its maximum; values that are negative or not finite become 0."""
    kept = np.where(np.isfinite(values), np.maximum(values, 0), 0.0).astype(np.float64)
    top = kept.max(initial=0.0)
    return kept / top if top > 0 else kept


def signed_uri(values: Array) -> str:
    """Encode signed weights [h, w]: blue below 0, white at 0, red above, scaled to the largest."""
    kept = np.where(np.isfinite(values), values, 0.0).astype(np.float64)
    top = np.abs(kept).max(initial=0.0)
    share = kept / top if top > 0 else kept
    ends = np.where(share[..., None] < 0, _BELOW, _ABOVE)
    color = _MIDDLE + np.abs(share)[..., None] * (ends - _MIDDLE)
    return _uri(Image.fromarray(color.round().astype(np.uint8), "RGB"), "PNG")


def _uri(image: Image.Image, form: str) -> str:
    file = io.BytesIO()
    image.save(file, form, optimize=True, **({"quality": 82} if form == "JPEG" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
