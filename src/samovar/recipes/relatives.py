"""The relatives of SAM by name, as changes to a config that trains with SAM; and as published, as
recipes."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from samovar.config import Config, SamConfig, from_dict, validate
from samovar.recipes.paper import imagenet, with_cost
from samovar.recipes.recipe import Recipe
from samovar.recipes.small import cifar


@dataclass(frozen=True)
class Relative:
    """A way to train by sharpness, beside plain SAM of the same recipe."""

    summary: str
    settings: dict[str, Any]
    """Of `SamConfig`."""
    rho_factor: float = 1.0
    """Times SAM's radius."""
    rho_min_factor: float = 0.0
    """Times SAM's radius: the lowest of a schedule."""
    source: str = ""
    """Where it was proposed; empty where it is a plain thing to try."""


RELATIVES: dict[str, Relative] = {
    "plain": Relative("no SAM", {}, rho_factor=0.0),
    "sam": Relative("SAM", {}, source="Foret et al., arXiv:2010.01412"),
    "asam": Relative("adaptive SAM", {"adaptive": True}, rho_factor=10.0, source="Kwon et al., arXiv:2102.11600"),
    "half": Relative("SAM whose climb sees half of the images", {"fraction": 0.5}),
    "quarter": Relative("SAM whose climb sees a quarter of the images", {"fraction": 0.25}),
    "every2": Relative("SAM at every second step", {"every": 2}),
    "every5": Relative("SAM at every fifth step", {"every": 5}),
    "looksam": Relative(
        "SAM at every fifth step, its direction re-used between", {"every": 5, "reuse": 0.7},
        source="Liu et al. (LookSAM), arXiv:2203.02714",
    ),
    "late": Relative("SAM in the last fifth of the run", {"start": 0.8}),
    "latehalf": Relative("SAM in the last half of the run", {"start": 0.5}),
    "early": Relative("SAM in the first fifth of the run", {"end": 0.2}),
    "msam": Relative(
        "along the optimizer's momentum, in one pass", {"momentum": True}, rho_factor=10.0,
        source="Becker et al. (Momentum-SAM), arXiv:2401.12033",
    ),
    "sam-on": Relative(
        "of norm layers only", {"norms_only": True}, rho_factor=10.0, source="Mueller et al. (SAM-ON), arXiv:2306.04226"
    ),
    "gsam": Relative(
        "surrogate gap", {"alpha": 0.4, "rho_schedule": "lr"}, rho_min_factor=1 / 3,
        source="Zhuang et al. (GSAM), arXiv:2203.08065; falls to a third, as its ViT-B/16, but from SAM's radius",
    ),
    "fsam": Relative(
        "along what is peculiar to the batch", {"sigma": 1.0, "sigma_decay": 0.9},
        source="Li et al. (Friendly SAM), arXiv:2403.12350",
    ),
    "wsam": Relative(
        "sharpness weighted", {"gamma": 0.8}, rho_factor=0.5, source="Yue et al. (WSAM), arXiv:2305.15817"
    ),
    "wsam-decoupled": Relative(
        "sharpness weighted, beside the optimizer", {"gamma": 0.8, "decoupled": True}, rho_factor=0.5,
        source="Yue et al. (WSAM), arXiv:2305.15817",
    ),
    "two-step": Relative("a climb of two steps", {"ascent_steps": 2}, source="Foret et al., arXiv:2010.01412"),
    "layerwise": Relative(
        "each parameter by its norm", {"layerwise": True}, source="after Liu et al. (LookSAM), arXiv:2203.02714"
    ),
}  # fmt: skip
"""By the name that `samovar compare --sam` takes; `quarter+late` is both, `msam+rho=1` has a radius
of its own."""


def relative(name: str) -> list[Relative]:
    """The relatives that a name joins by +; settings such as `rho=1` come last, so that they hold.

    Raises:
        ValueError: there is none of a name, or no such setting; says all."""
    found = []
    for part in sorted(name.split("+"), key=lambda part: "=" in part):
        if "=" in part:
            found.append(_setting(part))
            continue
        if part not in RELATIVES:
            near = difflib.get_close_matches(part, RELATIVES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"unknown relative of SAM {part!r}; {hint}there are: {', '.join(RELATIVES)}"
            )
        found.append(RELATIVES[part])
    return found


def _setting(text: str) -> Relative:
    """The change that `rho=1` makes, a flag `--sam.rho 1` for one relative."""
    key, _, value = text.partition("=")
    name, known = key.replace("-", "_"), [field.name for field in fields(SamConfig)]
    if name not in known:
        raise ValueError(f"there is no setting {key!r} of SAM; there are: {', '.join(known)}")
    try:
        read = json.loads(value)
    except json.JSONDecodeError:
        read = value  # a word, such as lr
    typed = from_dict({name: read}, SamConfig)
    return Relative(f"{key} {value}", {name: getattr(typed, name)})


def related(config: Config, name: str) -> Config:
    """A config that trains with SAM, changed to the relatives of a name; checked.

    Raises:
        ValueError: an unknown name, a config without a radius, relatives that mean nothing
            together."""
    if not config.sam.rho:
        raise ValueError(f"recipe {config.recipe} has no --sam.rho to go by; give one")
    sam = config.sam
    for each in relative(name):
        low = (
            sam.rho * each.rho_min_factor if each.rho_min_factor else sam.rho_min * each.rho_factor
        )
        radii = {"rho": _rounded(sam.rho * each.rho_factor), "rho_min": _rounded(low)}
        sam = replace(sam, **radii | each.settings)
    changed = replace(config, sam=sam if sam.rho else SamConfig())
    validate(changed)
    return changed


def _rounded(value: float) -> float:
    return round(value, 6)


# --- published settings
# ----------------------------------------------------------------------------------------------

GSAM: dict[str, tuple[float, float, float, float | None]] = {
    "vit-s32": (0.6, 0.0, 0.4, 73.8),
    "vit-s16": (0.6, 0.0, 1.0, 79.5),
    "vit-b32": (0.6, 0.1, 0.6, 76.8),
    "vit-b16": (0.6, 0.2, 0.4, 81.0),
    "mixer-s32": (0.5, 0.0, 0.2, None),
    "mixer-s16": (0.5, 0.0, 0.6, 75.0),
    "mixer-s8": (0.5, 0.1, 0.1, None),
    "mixer-b32": (0.7, 0.2, 0.05, 73.6),
    "mixer-b16": (0.5, 0.2, 0.01, 77.8),
    "resnet50": (0.04, 0.02, 0.01, 77.2),
    "resnet152": (0.04, 0.02, 0.005, 80.0),
}
"""Model -> rho_max, rho_min, alpha, top-1 in percent, of arXiv:2203.08065."""


def gsam(model: str) -> Config:
    """GSAM's own training from scratch: as the paper's, but the rate falls linearly to a hundredth,
    and ViTs pool."""
    config = imagenet(model)
    rho, rho_min, alpha, _ = GSAM[model]
    sam = replace(config.sam, rho=rho, rho_min=rho_min, rho_schedule="lr", alpha=alpha)
    if model.startswith("resnet"):
        return replace(config, sam=sam)
    optim = replace(config.optim, schedule="linear", linear_end=0.01)
    shape = replace(config.model, name=f"{model}-gap") if model.startswith("vit") else config.model
    return replace(config, model=shape, optim=optim, sam=sam)


def msam() -> Config:
    """MSAM's own ViT-S/32: 90 epochs, batch 1024, decay 0.1, rho 3 from the end of 8 epochs of
    warm-up."""
    config = imagenet("vit-s32")
    optim = replace(config.optim, weight_decay=0.1, warmup_steps=round(8 * 1_281_167 / 1024))
    sam = replace(config.sam, rho=3.0, momentum=True, start=round(8 / 90, 4))
    return replace(
        config, epochs=90, data=replace(config.data, batch_size=1024), optim=optim, sam=sam
    )


def looksam() -> Config:
    """LookSAM's settings as MSAM's authors ran them, every tenth step and alpha 0.7, on the paper's
    ViT-S/32."""
    config = imagenet("vit-s32", rho=0.05)
    return replace(config, sam=replace(config.sam, every=10, reuse=0.7))


def sam_on() -> Config:
    """SAM-ON's rho 10 for a ViT under Lion, on the paper's ViT-S/32; Lion's rate and decay are
    those of its README."""
    config = imagenet("vit-s32")
    optim = replace(config.optim, name="lion", lr=3e-4, weight_decay=3.0)
    return replace(config, optim=optim, sam=replace(config.sam, rho=10.0, norms_only=True))


def wsam() -> Config:
    """WSAM's decoupled form, gamma 0.9 of its recommended 0.8 to 0.95, on the paper's ResNet-50."""
    config = imagenet("resnet50", rho=0.02)
    return replace(config, sam=replace(config.sam, gamma=0.9, decoupled=True))


def fsam() -> Config:
    """F-SAM's rho 0.2 and lambda 0.95 for CIFAR-100, on our ResNet."""
    config = cifar("resnet-cifar", 100, rho=0.2)
    return replace(config, sam=replace(config.sam, sigma=1.0, sigma_decay=0.95))


_OURS = "settings of its authors, the rest ours; accuracy not yet measured"


def published() -> list[Recipe]:
    """The relatives with the settings that their authors published."""
    rows = []
    for model, (rho, _, alpha, top1) in GSAM.items():
        told = "no number published" if top1 is None else f"{top1} % top-1 there, one run"
        summary = f"{model} on ImageNet, GSAM rho {rho:g}, alpha {alpha:g}"
        recipe = Recipe(
            f"{model}-imagenet-gsam", summary, f"{told}; not measured here", partial(gsam, model)
        )
        rows.append(with_cost(recipe))
    rows += [
        with_cost(
            Recipe("vit-s32-imagenet-msam", "vit-s32 on ImageNet, Momentum-SAM rho 3", _OURS, msam)
        ),
        with_cost(
            Recipe(
                "vit-s32-imagenet-looksam", "vit-s32 on ImageNet, LookSAM rho 0.05", _OURS, looksam
            )
        ),
        with_cost(
            Recipe(
                "vit-s32-imagenet-sam-on",
                "vit-s32 on ImageNet, SAM-ON rho 10 under Lion",
                _OURS,
                sam_on,
            )
        ),
        with_cost(
            Recipe("resnet50-imagenet-wsam", "resnet50 on ImageNet, WSAM rho 0.02", _OURS, wsam)
        ),
        Recipe(
            "resnet-cifar100-fsam", "compact ResNet on CIFAR-100, Friendly SAM rho 0.2", _OURS, fsam
        ),
    ]
    return rows
