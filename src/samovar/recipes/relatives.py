"""Relatives of SAM: changes to a config that trains with SAM, and recipes as published."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, get_args

from samovar.config import Config, SamConfig, from_dict, validate
from samovar.config.sections import Schedule
from samovar.recipes.paper import imagenet, with_cost
from samovar.recipes.recipe import Recipe
from samovar.recipes.small import cifar
from samovar.words import suggest


@dataclass(frozen=True)
class Relative:
    """A variant of SAM, as changes to the settings of a recipe that trains with SAM."""

    summary: str
    """A few words, for help texts and tables."""
    settings: dict[str, Any]
    """Fields of `SamConfig` that change."""
    rho_factor: float = 1.0
    """The radius, relative to that of the recipe."""
    rho_min_factor: float = 0.0
    """The lowest radius of a schedule, relative to that of the recipe; 0 follows `rho_factor`."""
    source: str = ""
    """The paper that proposed it; empty for plain experiments."""


RELATIVES: dict[str, Relative] = {
    "plain": Relative("no SAM", {}, rho_factor=0.0),
    "sam": Relative("SAM", {}, source="Foret et al., arXiv:2010.01412"),
    "asam": Relative(
        "adaptive SAM: the climb scales with each weight", {"adaptive": True}, rho_factor=10.0,
        source="Kwon et al., arXiv:2102.11600",
    ),
    "half": Relative("SAM whose climb sees half of the images", {"fraction": 0.5}),
    "quarter": Relative("SAM whose climb sees a quarter of the images", {"fraction": 0.25}),
    "every2": Relative("SAM at every second step", {"every": 2}),
    "every5": Relative("SAM at every fifth step", {"every": 5}),
    "looksam": Relative(
        "SAM at every fifth step, its direction reused in between", {"every": 5, "reuse": 0.7},
        source="Liu et al. (LookSAM), arXiv:2203.02714",
    ),
    "late": Relative("SAM in the last fifth of the run", {"start": 0.8}),
    "decay": Relative("SAM in the decay of --optim.schedule wsd", {"start": "decay"}),
    "latehalf": Relative("SAM in the last half of the run", {"start": 0.5}),
    "early": Relative("SAM in the first fifth of the run", {"end": 0.2}),
    "msam": Relative(
        "Momentum-SAM: climbs along the optimizer's momentum, one gradient a step",
        {"momentum": True}, rho_factor=10.0,
        source="Becker et al. (Momentum-SAM), arXiv:2401.12033",
    ),
    "msam-lr": Relative(
        "Momentum-SAM with a rho that follows the learning rate",
        {"momentum": True, "rho_schedule": "lr"}, rho_factor=10.0,
        source="Becker et al. (Momentum-SAM), arXiv:2401.12033; the schedule of GSAM",
    ),
    "stale": Relative(
        "climbs along the gradient of the step before, one gradient a step", {"stale": True}
    ),
    "arwp": Relative(
        "ARWP: Gaussian noise by row norm and squared gradients, one gradient a step",
        {"noise": True, "rho": 0.01, "rho_schedule": "rise", "rho_min": 0.0},
        source="Li et al. (ARWP), arXiv:2404.00357",
    ),
    "ae-sam": Relative(
        "AE-SAM: climbs only where the gradient is long for its time", {"sharp_only": True},
        source="Jiang et al. (AE-SAM), arXiv:2304.14647",
    ),
    "saf": Relative(
        "no climb; stays close to each image's logits of three epochs before",
        {"teacher": "earlier", "teacher_weight": 0.3}, rho_factor=0.0,
        source="Du et al. (SAF), arXiv:2205.14083",
    ),
    "mesa": Relative(
        "no climb; stays close to the average of the weights",
        {"teacher": "average", "teacher_weight": 0.8}, rho_factor=0.0,
        source="Du et al. (MESA), arXiv:2205.14083",
    ),
    "sam-on": Relative(
        "SAM-ON: climbs with the weights of norm layers only", {"norms_only": True},
        rho_factor=10.0, source="Mueller et al. (SAM-ON), arXiv:2306.04226",
    ),
    "gsam": Relative(
        "GSAM: lowers the surrogate gap as well", {"alpha": 0.4, "rho_schedule": "lr"},
        rho_min_factor=1 / 3,
        source="Zhuang et al. (GSAM), arXiv:2203.08065; falls to a third, as its ViT-B/16, "
        "but from SAM's radius",
    ),
    "fsam": Relative(
        "Friendly SAM: climbs along the part of the gradient that is specific to the batch",
        {"sigma": 1.0, "sigma_decay": 0.9},
        source="Li et al. (Friendly SAM), arXiv:2403.12350",
    ),
    "wsam": Relative(
        "WSAM: weights loss against sharpness", {"gamma": 0.8}, rho_factor=0.5,
        source="Yue et al. (WSAM), arXiv:2305.15817",
    ),
    "wsam-decoupled": Relative(
        "WSAM with the sharpness term outside the optimizer", {"gamma": 0.8, "decoupled": True},
        rho_factor=0.5, source="Yue et al. (WSAM), arXiv:2305.15817",
    ),
    "two-step": Relative(
        "SAM with a climb of two steps", {"ascent_steps": 2},
        source="Foret et al., arXiv:2010.01412",
    ),
    "layerwise": Relative(
        "SAM whose climb scales with the norm of each parameter", {"layerwise": True},
        source="after Liu et al. (LookSAM), arXiv:2203.02714",
    ),
}  # fmt: skip
"""Relatives by the name that `samovar compare --sam` takes.

Names can be joined: `quarter+late` is both, `msam+rho=1` sets a radius, `decay@wsd` trains under
another schedule of the learning rate."""


def relative(name: str) -> list[Relative]:
    """Return the relatives that a name joins by +.

    Raises:
        ValueError: an unknown relative or setting; the message lists all."""
    found = []
    name, _ = with_schedule(name)
    # Settings such as `rho=1` come last, so that they override the relatives.
    for part in sorted(name.split("+"), key=lambda part: "=" in part):
        if "=" in part:
            found.append(_setting(part))
            continue
        if part not in RELATIVES:
            known = f"there are: {', '.join(RELATIVES)}"
            hint = suggest(part, RELATIVES, count=1, instead=known)
            hint = hint if hint == known else f"{hint} {known}"
            raise ValueError(f"unknown relative of SAM {part!r}; {hint}")
        found.append(RELATIVES[part])
    return found


def with_schedule(name: str) -> tuple[str, Schedule | None]:
    """Split `decay@wsd` into `decay` and its schedule of the learning rate; None is the recipe's.

    Raises:
        ValueError: an unknown schedule; the message lists all."""
    name, at, schedule = name.partition("@")
    for known in get_args(Schedule):
        if at and schedule == known:
            return name, known
    if at:
        raise ValueError(
            f"unknown schedule {schedule!r}; there are: {', '.join(get_args(Schedule))}"
        )
    return name, None


def _setting(text: str) -> Relative:
    """Return the change that a setting makes: `rho=1` is `--sam.rho 1` of one relative."""
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
    """Return a config that trains with SAM, changed to the relatives of a name.

    Raises:
        ValueError: an unknown name, a config without a radius, relatives that do not go
            together."""
    if not config.sam.rho:
        raise ValueError(f"recipe {config.recipe} has no --sam.rho to go by; give one")
    sam = config.sam
    _, schedule = with_schedule(name)
    optim = replace(config.optim, schedule=schedule) if schedule else config.optim
    for each in relative(name):
        low = (
            sam.rho * each.rho_min_factor if each.rho_min_factor else sam.rho_min * each.rho_factor
        )
        radii = {"rho": _rounded(sam.rho * each.rho_factor), "rho_min": _rounded(low)}
        sam = replace(sam, **radii | each.settings)
    changed = replace(
        config, optim=optim, sam=sam if sam.rho or sam.teacher != "none" else SamConfig()
    )
    validate(changed)
    return changed


def _rounded(value: float) -> float:
    return round(value, 6)


# --- published settings

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
"""rho_max, rho_min, alpha and top-1 in percent by model, from arXiv:2203.08065."""


def gsam(model: str) -> Config:
    """Return GSAM's training from scratch.

    It is the SAM paper's, but the learning rate falls linearly to a hundredth, and ViTs average
    over patches in place of a class token."""
    config = imagenet(model)
    rho, rho_min, alpha, _ = GSAM[model]
    sam = replace(config.sam, rho=rho, rho_min=rho_min, rho_schedule="lr", alpha=alpha)
    if model.startswith("resnet"):
        return replace(config, sam=sam)
    optim = replace(config.optim, schedule="linear", linear_end=0.01)
    shape = replace(config.model, name=f"{model}-gap") if model.startswith("vit") else config.model
    return replace(config, model=shape, optim=optim, sam=sam)


def msam() -> Config:
    """Return Momentum-SAM's training of ViT-S/32.

    90 epochs, batch 1024, weight decay 0.1, and rho 3 from the end of 8 epochs of warm-up on."""
    config = imagenet("vit-s32")
    optim = replace(config.optim, weight_decay=0.1, warmup_steps=round(8 * 1_281_167 / 1024))
    sam = replace(config.sam, rho=3.0, momentum=True, start=round(8 / 90, 4))
    return replace(
        config, epochs=90, data=replace(config.data, batch_size=1024), optim=optim, sam=sam
    )


def looksam() -> Config:
    """Return LookSAM on the paper's ViT-S/32, with the settings of Momentum-SAM's authors.

    SAM at every tenth step, alpha 0.7."""
    config = imagenet("vit-s32", rho=0.05)
    return replace(config, sam=replace(config.sam, every=10, reuse=0.7))


def sam_on() -> Config:
    """Return SAM-ON's rho 10 for a ViT under Lion, on the paper's ViT-S/32.

    Lion's learning rate and weight decay are those of its README."""
    config = imagenet("vit-s32")
    optim = replace(config.optim, name="lion", lr=3e-4, weight_decay=3.0)
    return replace(config, optim=optim, sam=replace(config.sam, rho=10.0, norms_only=True))


def wsam() -> Config:
    """Return WSAM, decoupled, gamma 0.9 (recommended: 0.8 to 0.95), on the paper's ResNet-50."""
    config = imagenet("resnet50", rho=0.02)
    return replace(config, sam=replace(config.sam, gamma=0.9, decoupled=True))


def fsam() -> Config:
    """Return Friendly SAM's rho 0.2 and lambda 0.95 for CIFAR-100, on our ResNet."""
    config = cifar("resnet-cifar", 100, rho=0.2)
    return replace(config, sam=replace(config.sam, sigma=1.0, sigma_decay=0.95))


_OURS = "the authors' settings where published, ours elsewhere; accuracy not yet measured"


def published() -> list[Recipe]:
    """Return recipes of the relatives with the settings that their authors published."""
    rows = []
    for model, (rho, _, alpha, top1) in GSAM.items():
        expect = "no number published" if top1 is None else f"{top1} % top-1 there, one run"
        summary = f"{model} on ImageNet, GSAM rho {rho:g}, alpha {alpha:g}"
        recipe = Recipe(
            f"{model}-imagenet-gsam", summary, f"{expect}; not measured here", partial(gsam, model)
        )
        rows.append(with_cost(recipe))
    for model, kind, words, make in (
        ("vit-s32", "msam", "Momentum-SAM rho 3", msam),
        ("vit-s32", "looksam", "LookSAM rho 0.05", looksam),
        ("vit-s32", "sam-on", "SAM-ON rho 10 under Lion", sam_on),
        ("resnet50", "wsam", "WSAM rho 0.02", wsam),
    ):
        recipe = Recipe(f"{model}-imagenet-{kind}", f"{model} on ImageNet, {words}", _OURS, make)
        rows.append(with_cost(recipe))
    summary = "compact ResNet on CIFAR-100, Friendly SAM rho 0.2"
    rows.append(Recipe("resnet-cifar100-fsam", summary, _OURS, fsam))
    return rows
