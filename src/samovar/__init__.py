"""samovar: sharpness-aware minimization of vision architectures.

The public names are imported when first used, so that the command line starts without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samovar.config import Config as Config
    from samovar.models import create as create_model
    from samovar.records import Record as Record
    from samovar.records import RunDir as RunDir
    from samovar.sam import SAM as SAM
    from samovar.sam import plain_backward as plain_backward
    from samovar.sam import sam_backward as sam_backward

_PUBLIC = {
    "Config": ("samovar.config", "Config"),
    "Record": ("samovar.records", "Record"),
    "RunDir": ("samovar.records", "RunDir"),
    "SAM": ("samovar.sam", "SAM"),
    "create_model": ("samovar.models", "create"),
    "plain_backward": ("samovar.sam", "plain_backward"),
    "sam_backward": ("samovar.sam", "sam_backward"),
}

__all__ = ["SAM", "Config", "Record", "RunDir", "create_model", "plain_backward", "sam_backward"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'samovar' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
