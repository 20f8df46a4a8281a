"""Name the classes of images."""

from __future__ import annotations

from typing import Any

from samovar.report.read import Array
from samovar.report.text import clean


def class_name(classes: Array | None, index: Any) -> str:
    """Return the name of a class, or `class N` where there are no names."""
    if classes is not None and classes.ndim == 1 and 0 <= int(index) < len(classes):
        return clean(classes[int(index)])
    return f"class {int(index)}"
