"""Machine of a run: device and precision, process group, random state, provenance; signals, worker
processes, and the heartbeat that keeps a command from being silent.

The names of `machine` are imported when first used: the command line starts the heartbeat before it
imports torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samovar.runtime.machine import Runtime as Runtime
    from samovar.runtime.machine import has_native as has_native
    from samovar.runtime.machine import keep_freed_memory as keep_freed_memory
    from samovar.runtime.machine import mix as mix
    from samovar.runtime.machine import provenance as provenance
    from samovar.runtime.machine import resolve_device as resolve_device
    from samovar.runtime.machine import resolve_precision as resolve_precision
    from samovar.runtime.machine import seed_everything as seed_everything
    from samovar.runtime.machine import started as started

DEVICES = "auto, cpu, cuda, cuda:N or mps"
"""Values of `--run.device`, in words."""

__all__ = [
    "DEVICES",
    "Runtime", "has_native", "keep_freed_memory", "mix", "provenance", "resolve_device",
    "resolve_precision", "seed_everything", "started",
]  # fmt: skip


if not TYPE_CHECKING:  # a type checker would take every other name, misspelt ones too, for Any

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'samovar.runtime' has no attribute {name!r}")
        return getattr(import_module("samovar.runtime.machine"), name)
