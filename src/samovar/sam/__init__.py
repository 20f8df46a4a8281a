"""Sharpness-aware minimization and its relatives, as a way to take a gradient (`sam_backward`),
with an adapter for foreign loops (`SAM`).

The names are imported when first used: `config` reads `sam.variant`, which needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samovar.sam.adapter import SAM as SAM
    from samovar.sam.gradient import sam_backward as sam_backward
    from samovar.sam.memory import SamMemory as SamMemory
    from samovar.sam.module_passes import InputAscent as InputAscent
    from samovar.sam.module_passes import plain_backward as plain_backward
    from samovar.sam.variant import SamVariant as SamVariant

_HOMES = {
    "SAM": "adapter",
    "InputAscent": "module_passes",
    "SamMemory": "memory",
    "SamVariant": "variant",
    "plain_backward": "module_passes",
    "sam_backward": "gradient",
}

__all__ = ["SAM", "InputAscent", "SamMemory", "SamVariant", "plain_backward", "sam_backward"]


if not TYPE_CHECKING:  # a type checker would take every other name, misspelt ones too, for Any

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'samovar.sam' has no attribute {name!r}")
        return getattr(import_module(f"samovar.sam.{_HOMES[name]}"), name)
