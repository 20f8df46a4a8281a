"""Images, and small maps to lay over them, as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from samovar.report.read import Array

TILE = 160
"""Longest side of an image in the page, in pixels."""

COARSE = 48
"""Images up to this side are shown pixel by pixel."""

# From nothing over orange to pale yellow: readable on dark and on light images, and in grey.
_HEAT = np.array([[196, 48, 0], [240, 110, 10], [255, 190, 40], [255, 245, 170]], dtype=np.float64)
_BELOW, _MIDDLE, _ABOVE = (
    np.array(color, dtype=np.float64) for color in ([33, 102, 172], [247, 247, 247], [178, 24, 43])
)


def image_uri(pixels: Array) -> str:
    """An image uint8 [H, W, 3] or [H, W]; photographs as JPEG, small ones exactly, as PNG."""
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    if max(image.size) > TILE:
        image.thumbnail((TILE, TILE))
    return _uri(image, "PNG" if max(image.size) <= 2 * COARSE else "JPEG")


def heat_uri(values: Array) -> str:
    """A map [h, w] as `heat` paints it."""
    return _uri(Image.fromarray(heat(values), "RGBA"), "PNG")


def heat(values: Array) -> Array:
    """A map [h, w] as a veil uint8 [h, w, 4] that is clear at 0 and dense at the map's maximum;
    gaps are clear."""
    share = heat_share(values)
    position = share * (len(_HEAT) - 1)
    below = np.minimum(position.astype(int), len(_HEAT) - 2)
    color = _HEAT[below] + (position - below)[..., None] * (_HEAT[below + 1] - _HEAT[below])
    return np.dstack([color, 215 * share**1.5]).round().astype(np.uint8)


def heat_share(values: Array) -> Array:
    """A map between 0 and 1: what is below 0 or not finite is 0, the largest is 1."""
    kept = np.where(np.isfinite(values), np.maximum(values, 0), 0.0).astype(np.float64)
    top = kept.max(initial=0.0)
    return kept / top if top > 0 else kept


def signed_uri(values: Array) -> str:
    """A map [h, w] of signed weights: blue below 0, red above, white at 0, to the largest
    magnitude."""
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
