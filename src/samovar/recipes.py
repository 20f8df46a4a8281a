"""Recipes: names for settings that are known to work, or that are the paper's. Nothing in this file needs torch.

A recipe is a function that returns a Config; `samovar train NAME --flag value` overrides what it returns."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from samovar.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, SamConfig

IMAGENET_TRAIN = 1_281_167


@dataclass(frozen=True)
class Recipe:
    """Settings with a name, and what to expect of them."""

    name: str
    summary: str
    expect: str
    """A measured number with n and hardware, or the paper's with its table; says so where nothing was measured yet."""
    make: Callable[[], Config]

    def config(self) -> Config:
        """The settings, stamped with the recipe's name."""
        return replace(self.make(), recipe=self.name)


def get(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: there is none; says the nearest."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `samovar list recipes`"
    raise ValueError(f"unknown recipe {name!r}; {hint}")


# --- digits: 8 x 8 pixels, embedded, a minute on a laptop ------------------------------------------------------------

_DIGITS_LR = {"vit": 7e-4, "mixer": 7e-4, "resnet": 5e-3}
_DIGITS_RHO = {"vit": 0.1, "mixer": 0.1, "resnet": 0.03}


def digits(family: str, *, rho: float = 0.0) -> Config:
    """Few images and a long schedule, where the paper's effect is clear: 15 % of scikit-learn's digits train."""
    return Config(
        epochs=300,
        model=ModelConfig(name=f"{family}-digits"),
        data=DataConfig(
            source="digits",
            image_size=8,
            batch_size=64,
            val_share=0.85,
            crop="affine",
            degrees=15.0,
            translate=0.125,
            zoom=0.15,
        ),
        optim=OptimConfig(lr=_DIGITS_LR[family], weight_decay=0.3, warmup_steps=42, clip_norm=1.0),
        sam=SamConfig(rho=rho),
        run=RunConfig(eval_every=126, threads=1),  # tensors this small are slower on two threads
    )


# --- CIFAR: 32 x 32 pixels, pad-crop and mirror only, the paper's stance towards augmentation -------------------------


def cifar(model: str, classes: int, *, rho: float = 0.0) -> Config:
    """200 epochs of a compact model on CIFAR-10 or -100."""
    convolutional = model.startswith("resnet")
    config = Config(
        epochs=200,
        loss="softmax" if convolutional else "sigmoid",
        model=ModelConfig(name=model),
        data=DataConfig(source=f"cifar{classes}", image_size=32, batch_size=128, crop="pad", flip=True),
        sam=SamConfig(rho=rho),
    )
    if convolutional:
        return replace(config, optim=OptimConfig(name="sgd", lr=0.1, weight_decay=5e-4, warmup_steps=1000))
    return replace(
        config,
        model=replace(config.model, head_bias=-math.log(classes), dropout=0.1 if model.startswith("vit") else 0.0),
        optim=OptimConfig(lr=1e-3, weight_decay=0.1, warmup_steps=2000, clip_norm=1.0),
    )


# --- ImageNet: the paper's Tables 8 and 9 ----------------------------------------------------------------------------

PAPER_RHO = {
    "resnet50": 0.02, "resnet101": 0.05, "resnet152": 0.02,
    "resnet50x2": 0.05, "resnet101x2": 0.05, "resnet152x2": 0.05,
    "vit-s32": 0.05, "vit-s16": 0.1, "vit-s14": 0.1, "vit-s8": 0.15, "vit-b32": 0.15, "vit-b16": 0.2,
    "mixer-s32": 0.1, "mixer-s16": 0.15, "mixer-s8": 0.2, "mixer-b32": 0.35, "mixer-b16": 0.6, "mixer-b8": 0.6,
}  # fmt: skip
PAPER_RHO_AUG = {"vit-b16": 0.05, "mixer-b16": 0.2}
# ImageNet top-1 in percent, without and with SAM: Table 2 and its deltas.
PAPER_TOP1 = {
    "resnet50": (76.0, 76.7), "resnet101": (77.8, 78.6), "resnet152": (78.5, 79.3),
    "resnet50x2": (78.1, 79.6), "resnet101x2": (78.5, 80.9), "resnet152x2": (79.3, 81.1),
    "vit-s32": (68.4, 70.5), "vit-s16": (74.4, 78.1), "vit-s14": (74.8, 78.8), "vit-s8": (76.0, 81.3),
    "vit-b32": (69.5, 73.6), "vit-b16": (74.6, 79.9),
    "mixer-s32": (63.9, 66.7), "mixer-s16": (68.8, 72.9), "mixer-s8": (70.2, 75.9),
    "mixer-b32": (62.5, 72.4), "mixer-b16": (66.4, 77.4), "mixer-b8": (68.6, 79.0),
}  # fmt: skip
PAPER_TOP1_AUG = {"vit-b16": (79.6, 81.5), "mixer-b16": (76.5, 78.1)}


def imagenet(model: str, *, rho: float = 0.0, strong: bool = False) -> Config:
    """The paper's training from scratch (Table 8); m = 32 images per ascent, however many GPUs share the batch."""
    data = DataConfig(
        source="imagenet:data/imagenet",
        image_size=224,
        batch_size=4096,
        crop="inception",
        flip=True,
        antialias=False,
    )
    sam = SamConfig(rho=rho, m=32)
    if model.startswith("resnet"):
        # the paper's decay of 1e-3 is decoupled, lr x decay; with momentum 0.9 that is coupled L2 of a tenth of it
        optim = OptimConfig(name="sgd", lr=1.6, momentum=0.9, weight_decay=1e-4, warmup_steps=5000)
        return Config(epochs=90, model=ModelConfig(name=model), data=data, optim=optim, sam=sam)
    vit = model.startswith("vit")
    optim = OptimConfig(
        lr=3e-3, weight_decay=0.3, clip_norm=1.0, warmup_steps=10_000, schedule="cosine" if vit else "linear"
    )
    shape = ModelConfig(name=model, head_bias=-10.0, dropout=0.1 if vit else 0.0, drop_path=0.0 if vit else 0.1)
    if strong:  # section 3.4 of the paper's facts: RandAugment 2 layers of magnitude 15, mixup 0.5
        data = replace(data, randaugment_layers=2, randaugment_magnitude=15, mixup=0.5)
        optim = replace(optim, lr=1e-3, weight_decay=0.1)
        shape = replace(shape, drop_path=0.1)
    return Config(epochs=300, loss="sigmoid", model=shape, data=data, optim=optim, sam=sam)


# --- photos: one's own folder, 1 thousand to 1 million images ---------------------------------------------------------


def photos(num_images: int = 10_000) -> Config:
    """Settings for a folder of `num_images` training photos, by this rule.

    * model: `vit_tiny_patch16_224` below 30 thousand images, `vit-s16` below 300 thousand, else `vit-b16`;
      rho 0.05, 0.1 and 0.2 with them (Table 9: bigger models want a larger rho), m = 32;
    * batch: the power of two nearest to images / 300, from 32 to 4096 - the paper's rule for subsets of ImageNet,
      which keeps the number of steps near 90 thousand;
    * steps: 300 epochs; the first tenth of them, at most 10 thousand, warm up;
    * lr: 3e-3 from batch 512 up, else 1e-3, never scaled further (the paper found that scaling hurts)."""
    name, rho = "vit-b16", 0.2
    if num_images < 30_000:
        name, rho = "vit_tiny_patch16_224", 0.05
    elif num_images < 300_000:
        name, rho = "vit-s16", 0.1
    batch = 2 ** min(12, max(5, round(math.log2(max(num_images, 1) / 300))))
    steps = round(300 * num_images / batch)
    return Config(
        epochs=300,
        model=ModelConfig(name=name, dropout=0.1),
        data=DataConfig(
            source="folder:data/photos", image_size=224, batch_size=batch, crop="inception", flip=True, val_share=0.1
        ),
        optim=OptimConfig(
            lr=3e-3 if batch >= 512 else 1e-3,
            weight_decay=0.3,
            clip_norm=1.0,
            warmup_steps=min(10_000, steps // 10),
        ),
        sam=SamConfig(rho=rho, m=32),
    )


# --- the table -------------------------------------------------------------------------------------------------------

_FAMILIES = {"vit": "ViT", "mixer": "MLP-Mixer", "resnet": "ResNet"}
_CIFAR_RHO = {"vit": 0.1, "mixer": 0.2, "resnet": 0.05}


def _twins(
    name: str, summary: str, expect: tuple[str, str], rho: float, make: Callable[[float], Config]
) -> list[Recipe]:
    return [
        Recipe(name, summary, expect[0], lambda: make(0.0)),
        Recipe(f"{name}-sam", f"{summary}, SAM rho {rho:g}", expect[1], lambda: make(rho)),
    ]


def _small() -> list[Recipe]:
    rows = []
    for key, title in _FAMILIES.items():
        rows += _twins(
            f"{key}-digits",
            f"small {title} on scikit-learn's digits (embedded)",
            _DIGITS_EXPECT[key],
            _DIGITS_RHO[key],
            lambda rho, key=key: digits(key, rho=rho),  # type: ignore[misc]
        )
        for classes in (10, 100):
            rows += _twins(
                f"{key}-cifar{classes}",
                f"compact {title} on CIFAR-{classes}, pad-crop and mirror",
                ("accuracy not yet measured at this length", "accuracy not yet measured at this length"),
                _CIFAR_RHO[key],
                lambda rho, key=key, classes=classes: cifar(f"{key}-cifar", classes, rho=rho),  # type: ignore[misc]
            )
    return rows


def _paper_expect(top1: tuple[float, float], table: str) -> tuple[str, str]:
    plain, sam = (f"{value} % top-1 in the paper ({table}, one run); not measured here" for value in top1)
    return plain, sam


def _paper() -> list[Recipe]:
    rows = []
    for model, rho in PAPER_RHO.items():
        rows += _twins(
            f"{model}-imagenet",
            f"{model} on ImageNet, Table 8 of the paper",
            _paper_expect(PAPER_TOP1[model], "Table 2"),
            rho,
            lambda rho, model=model: imagenet(model, rho=rho),  # type: ignore[misc]
        )
    for model, rho in PAPER_RHO_AUG.items():
        rows += _twins(
            f"{model}-imagenet-aug",
            f"{model} on ImageNet, RandAugment and mixup",
            _paper_expect(PAPER_TOP1_AUG[model], "Table 4"),
            rho,
            lambda rho, model=model: imagenet(model, rho=rho, strong=True),  # type: ignore[misc]
        )
    return rows


# What the digits twins reach on the held-out 1528 images; LOG.md has the tables.
_DIGITS_EXPECT = {
    "vit": (
        "95.5 % held-out, lambda_max 76 (mean of 10 seeds, 15 s on one core)",
        "96.2 % held-out, lambda_max 6.4 (mean of 10 seeds, 30 s on one core)",
    ),
    "mixer": ("95.5 % held-out, lambda_max 188 (mean of 2 seeds)", "95.8 % held-out, lambda_max 5.6 (mean of 2 seeds)"),
    "resnet": (
        "98.4 % held-out, lambda_max 0.56 (mean of 2 seeds)",
        "98.2 % held-out, lambda_max 0.15 (mean of 2 seeds)",
    ),
}

_PHOTOS = Recipe(
    "photos",
    "one's own folder of 1 thousand to 1 million photos; settings follow from their number",
    "depends on the photos; from scratch, thousands of images give far less than fine-tuning",
    photos,
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in [*_small(), _PHOTOS, *_paper()]}
