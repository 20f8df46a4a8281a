"""samovar: sharpness-aware minimization of vision architectures, and the loss geometry that shows
what it does.

The public names are imported when first used, so that the command line starts without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samovar.attacks import fgsm as fgsm
    from samovar.attacks import pgd as pgd
    from samovar.config import Config as Config
    from samovar.curvature import GaussNewton as GaussNewton
    from samovar.curvature import Hessian as Hessian
    from samovar.curvature import spectral_density as spectral_density
    from samovar.curvature import top_eigenvalues as top_eigenvalues
    from samovar.curvature import trace as trace
    from samovar.data.corruptions import corrupt as corrupt
    from samovar.measure.attention import attention_maps as attention_maps
    from samovar.measure.flatness import average_flatness as average_flatness
    from samovar.measure.ntk import ntk_condition_number as ntk_condition_number
    from samovar.measure.plane import filter_direction as filter_direction
    from samovar.measure.plane import loss_plane as loss_plane
    from samovar.measure.sharpness import sam_sharpness as sam_sharpness
    from samovar.models.factory import create as create_model
    from samovar.objectives.contrastive import supcon_loss as supcon_loss
    from samovar.runs.records import Record as Record
    from samovar.runs.records import RunDir as RunDir
    from samovar.sam import SAM as SAM
    from samovar.sam import InputAscent as InputAscent
    from samovar.sam import SamMemory as SamMemory
    from samovar.sam import SamVariant as SamVariant
    from samovar.sam import plain_backward as plain_backward
    from samovar.sam import sam_backward as sam_backward

_PUBLIC = {
    "Config": ("samovar.config", "Config"),
    "GaussNewton": ("samovar.curvature", "GaussNewton"),
    "Hessian": ("samovar.curvature", "Hessian"),
    "InputAscent": ("samovar.sam", "InputAscent"),
    "Record": ("samovar.runs.records", "Record"),
    "RunDir": ("samovar.runs.records", "RunDir"),
    "SAM": ("samovar.sam", "SAM"),
    "SamMemory": ("samovar.sam", "SamMemory"),
    "SamVariant": ("samovar.sam", "SamVariant"),
    "attention_maps": ("samovar.measure.attention", "attention_maps"),
    "average_flatness": ("samovar.measure.flatness", "average_flatness"),
    "corrupt": ("samovar.data.corruptions", "corrupt"),
    "create_model": ("samovar.models.factory", "create"),
    "fgsm": ("samovar.attacks", "fgsm"),
    "filter_direction": ("samovar.measure.plane", "filter_direction"),
    "loss_plane": ("samovar.measure.plane", "loss_plane"),
    "ntk_condition_number": ("samovar.measure.ntk", "ntk_condition_number"),
    "pgd": ("samovar.attacks", "pgd"),
    "plain_backward": ("samovar.sam", "plain_backward"),
    "sam_backward": ("samovar.sam", "sam_backward"),
    "sam_sharpness": ("samovar.measure.sharpness", "sam_sharpness"),
    "spectral_density": ("samovar.curvature", "spectral_density"),
    "supcon_loss": ("samovar.objectives.contrastive", "supcon_loss"),
    "top_eigenvalues": ("samovar.curvature", "top_eigenvalues"),
    "trace": ("samovar.curvature", "trace"),
}

__all__ = [
    "SAM",
    "Config",
    "GaussNewton",
    "Hessian",
    "InputAscent",
    "Record",
    "RunDir",
    "SamMemory",
    "SamVariant",
    "attention_maps",
    "average_flatness",
    "corrupt",
    "create_model",
    "fgsm",
    "filter_direction",
    "loss_plane",
    "ntk_condition_number",
    "pgd",
    "plain_backward",
    "sam_backward",
    "sam_sharpness",
    "spectral_density",
    "supcon_loss",
    "top_eigenvalues",
    "trace",
]


if not TYPE_CHECKING:  # a type checker would take every other name, misspelt ones too, for Any

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'samovar' has no attribute {name!r}")
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
