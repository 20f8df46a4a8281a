"""samovar: sharpness-aware minimization of vision architectures, and the loss geometry that shows what it does.

The public names are imported when first used, so that the command line starts without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samovar.config import Config as Config
    from samovar.curvature import GaussNewton as GaussNewton
    from samovar.curvature import Hessian as Hessian
    from samovar.curvature import spectral_density as spectral_density
    from samovar.curvature import top_eigenvalues as top_eigenvalues
    from samovar.curvature import trace as trace
    from samovar.measure.flatness import average_flatness as average_flatness
    from samovar.measure.ntk import ntk_condition_number as ntk_condition_number
    from samovar.measure.sharpness import sam_sharpness as sam_sharpness
    from samovar.models import create as create_model
    from samovar.records import Record as Record
    from samovar.records import RunDir as RunDir
    from samovar.sam import SAM as SAM
    from samovar.sam import plain_backward as plain_backward
    from samovar.sam import sam_backward as sam_backward

_PUBLIC = {
    "Config": ("samovar.config", "Config"),
    "GaussNewton": ("samovar.curvature", "GaussNewton"),
    "Hessian": ("samovar.curvature", "Hessian"),
    "Record": ("samovar.records", "Record"),
    "RunDir": ("samovar.records", "RunDir"),
    "SAM": ("samovar.sam", "SAM"),
    "average_flatness": ("samovar.measure.flatness", "average_flatness"),
    "create_model": ("samovar.models", "create"),
    "ntk_condition_number": ("samovar.measure.ntk", "ntk_condition_number"),
    "plain_backward": ("samovar.sam", "plain_backward"),
    "sam_backward": ("samovar.sam", "sam_backward"),
    "sam_sharpness": ("samovar.measure.sharpness", "sam_sharpness"),
    "spectral_density": ("samovar.curvature", "spectral_density"),
    "top_eigenvalues": ("samovar.curvature", "top_eigenvalues"),
    "trace": ("samovar.curvature", "trace"),
}

__all__ = [
    "SAM",
    "Config",
    "GaussNewton",
    "Hessian",
    "Record",
    "RunDir",
    "average_flatness",
    "create_model",
    "ntk_condition_number",
    "plain_backward",
    "sam_backward",
    "sam_sharpness",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'samovar' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
