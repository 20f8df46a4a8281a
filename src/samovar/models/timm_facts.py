"""The facts of a timm model by name, for `samovar show`."""

from __future__ import annotations

from collections.abc import Iterator

import timm

from samovar.models.factory import describe


def facts(name: str) -> Iterator[str]:
    """Yield lines on a model's size, its normalization and its pretrained weights.

    Raises:
        ValueError: timm does not know the name."""
    found = describe(name)
    size = f"{found.channels} x {found.image_size} x {found.image_size}"
    parts = [f"{found.params:,} parameters with {size} images", f"{found.classes} classes"]
    parts += [f"{word} {n}" for word in ("patch", "width", "depth") if (n := getattr(found, word))]
    yield f"{name}: a model of timm"
    yield ", ".join(parts)
    if pixels := timm.get_pretrained_cfg(name):
        yield f"normalization: mean {pixels.mean}, std {pixels.std}"
    tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    yield f"pretrained weights: {', '.join(tags) or 'none'}"
