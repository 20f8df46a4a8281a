"""Check arrays of images and name their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from samovar.report.read import Array, UnreadableArrays
from samovar.report.text import clean
from samovar.runs.records import Record


def checked_images(record: Record, arrays: Mapping[str, Array], dims: int) -> Array:
    """Return the images uint8 [..., H, W, 3] behind a record.

    Args:
        record: names the file in errors.
        arrays: the arrays of the record.
        dims: the number of dimensions.

    Raises:
        UnreadableArrays: there are no images of this shape and type."""
    images = arrays.get("images", np.zeros(0))
    if images.dtype != np.uint8 or images.ndim != dims or images.shape[-1] != 3 or not images.size:
        raise UnreadableArrays(f"{record.arrays} holds no images")
    return images


def check_entries(
    record: Record, arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that arrays have the shapes that fit their images.

    Raises:
        UnreadableArrays: an array is missing or has another shape."""
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            raise UnreadableArrays(f"{record.arrays} needs one entry of {name} for each image")


def class_name(classes: Array | None, index: Any) -> str:
    """Return the name of a class, or `class N` where there are no names."""
    if classes is not None and classes.ndim == 1 and 0 <= int(index) < len(classes):
        return clean(classes[int(index)])
    return f"class {int(index)}"
