"""Recipes for digits and CIFAR: what one machine trains in minutes to hours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from samovar.config import (
    Config,
    ContrastiveConfig,
    DataConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SamConfig,
)
from samovar.recipes.recipe import Recipe, twins
from samovar.recipes.regimes import FRACTIONS, adversarial, momentum, strong, subset

# --- digits: 8 x 8 pixels, embedded, a minute on a laptop
# ------------------------------------------------------------

_DIGITS_LR = {"vit": 7e-4, "mixer": 7e-4, "resnet": 5e-3}
_DIGITS_RHO = {"vit": 0.1, "mixer": 0.1, "resnet": 0.03}


def digits(family: str, *, rho: float = 0.0) -> Config:
    """Few images and a long schedule, where the paper's effect is clear: 15 % of scikit-learn's
    digits train."""
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


# --- CIFAR: 32 x 32 pixels, pad-crop and mirror only, the paper's stance towards augmentation
# -------------------------


def cifar(model: str, classes: int, *, rho: float = 0.0) -> Config:
    """200 epochs of a compact model on CIFAR-10 or -100."""
    convolutional = model.startswith("resnet")
    config = Config(
        epochs=200,
        loss="softmax" if convolutional else "sigmoid",
        model=ModelConfig(name=model),
        data=DataConfig(
            source=f"cifar{classes}", image_size=32, batch_size=128, crop="pad", flip=True
        ),
        sam=SamConfig(rho=rho),
    )
    if convolutional:
        return replace(
            config, optim=OptimConfig(name="sgd", lr=0.1, weight_decay=5e-4, warmup_steps=1000)
        )
    return replace(
        config,
        model=replace(
            config.model,
            head_bias=-math.log(classes),
            dropout=0.1 if model.startswith("vit") else 0.0,
        ),
        optim=OptimConfig(lr=1e-3, weight_decay=0.1, warmup_steps=2000, clip_norm=1.0),
    )


# --- a fifth of CIFAR-10: what two cores train in minutes
# ------------------------------------------------------------


def cifar10k(family: str, *, rho: float = 0.0) -> Config:
    """30 epochs of a half-million-parameter ViT or Mixer on 10,000 images, mirrored only; a ResNet
    has 12, as it learns
    faster: the paper's 300 and 90."""
    config = cifar(f"{family}-cifar-t{'' if family == 'resnet' else '8'}", 10, rho=rho)
    data = replace(config.data, fraction=0.2, crop="none")
    optim = replace(config.optim, warmup_steps=100 if family == "resnet" else 200)
    epochs = 12.0 if family == "resnet" else 30.0
    return replace(
        config, epochs=epochs, data=data, optim=optim, run=RunConfig(eval_every=390, threads=1)
    )


# --- supervised contrastive
# -------------------------------------------------------------------------------------------


def contrastive(config: Config) -> Config:
    """Two views of each image, AdamW, compared by class at temperature 0.1; then a linear
    classifier."""
    data = replace(config.data, views=2)
    head = HeadConfig(epochs=config.epochs / 4, optim=OptimConfig(name="sgd", lr=0.1))
    model = replace(config.model, head_bias=0.0)
    compared = ContrastiveConfig(hidden=512)
    sam = replace(config.sam, shared_ascent=True)  # the loss compares all images of a batch
    return replace(
        config, loss="supcon", data=data, head=head, model=model, contrastive=compared, sam=sam
    )


# --- the table
# -------------------------------------------------------------------------------------------------------

_FAMILIES = {"vit": "ViT", "mixer": "MLP-Mixer", "resnet": "ResNet"}
_CIFAR_RHO = {"vit": 0.1, "mixer": 0.2, "resnet": 0.05}
_CIFAR10K_RHO = {"vit": 0.1, "mixer": 0.1, "resnet": 0.05}
_AUG_RHO = {"vit": 0.03, "mixer": 0.07, "resnet": 0.05}
_ADVERSARIAL_RHO = {"vit": 0.05, "mixer": 0.1, "resnet": 0.05}
_CONTRASTIVE_EXPECT = (
    "96.4 % held-out (seed 0, a minute on one core)",
    "95.6 % held-out (seed 0, a minute and a half on one core)",
)
_NOT_MEASURED = (
    "accuracy not yet measured at this length",
    "accuracy not yet measured at this length",
)

# What the digits twins reach on the held-out 1528 images; docs/log.md has the tables.
_DIGITS_EXPECT = {
    "vit": (
        "95.5 % held-out, lambda_max 76 (mean of 10 seeds, 15 s on one core)",
        "96.2 % held-out, lambda_max 6.4 (mean of 10 seeds, 30 s on one core)",
    ),
    "mixer": (
        "95.5 % held-out, lambda_max 188 (mean of 2 seeds)",
        "95.8 % held-out, lambda_max 5.6 (mean of 2 seeds)",
    ),
    "resnet": (
        "98.4 % held-out, lambda_max 0.56 (mean of 2 seeds)",
        "98.2 % held-out, lambda_max 0.15 (mean of 2 seeds)",
    ),
}


# Means of 3 seeds at the last step; docs/results.md has the tables.
_CIFAR10K_EXPECT = {
    "vit": (
        "50.0 % on the test images, lambda_max 57 (mean of 3 seeds; some 4 minutes of one core by its speed)",
        "48.7 % on the test images, lambda_max 13 (mean of 3 seeds; some 8 minutes of one core by its speed)",
    ),
    "mixer": (
        "48.8 % on the test images, lambda_max 116 (mean of 3 seeds; some 5 minutes of one core by its speed)",
        "53.4 % on the test images, lambda_max 14 (mean of 3 seeds; some 9 minutes of one core by its speed)",
    ),
    "resnet": (
        "61.2 % on the test images, lambda_max 26 (mean of 3 seeds; some 5 minutes of one core by its speed)",
        "59.2 % on the test images, lambda_max 14 (mean of 3 seeds; some 9 minutes of one core by its speed)",
    ),
}


def small() -> list[Recipe]:
    """Digits and CIFAR, with and without SAM, and the paper's other regimes on them."""
    rows = []
    for key, title in _FAMILIES.items():
        rows += twins(
            f"{key}-digits",
            f"small {title} on scikit-learn's digits (embedded)",
            _DIGITS_EXPECT[key],
            _DIGITS_RHO[key],
            lambda rho, key=key: digits(key, rho=rho),  # type: ignore[misc]
        )
        for classes in (10, 100):
            rows += twins(
                f"{key}-cifar{classes}",
                f"compact {title} on CIFAR-{classes}, pad-crop and mirror",
                _NOT_MEASURED,
                _CIFAR_RHO[key],
                lambda rho, key=key, classes=classes: cifar(f"{key}-cifar", classes, rho=rho),  # type: ignore[misc]
            )
        rows += twins(
            f"{key}-cifar10k",
            f"small {title} on a fifth of CIFAR-10, mirror only",
            _CIFAR10K_EXPECT[key],
            _CIFAR10K_RHO[key],
            lambda rho, key=key: cifar10k(key, rho=rho),  # type: ignore[misc]
        )
        rows += _other_regimes(key, title)
    return rows


def _other_regimes(key: str, title: str) -> list[Recipe]:
    def rows(
        word: str, summary: str, rho: float, change: Callable[[Config], Config]
    ) -> list[Recipe]:
        make = lambda rho: change(cifar(f"{key}-cifar", 10, rho=rho))  # noqa: E731
        return twins(
            f"{key}-cifar10-{word}",
            f"compact {title} on CIFAR-10, {summary}",
            _NOT_MEASURED,
            rho,
            make,
        )

    found = rows("aug", "RandAugment and mixup", _AUG_RHO[key], strong)
    found += rows(
        "adversarial", "fast adversarial training within 2/255", _ADVERSARIAL_RHO[key], adversarial
    )
    for word, parts in FRACTIONS.items():
        found += rows(
            word, f"1/{parts} of the images", _CIFAR_RHO[key], partial(subset, parts=parts)
        )
    if key == "vit":
        found += rows(
            "sgd",
            "SGD with momentum",
            _CIFAR_RHO[key],
            partial(momentum, lr=0.1, weight_decay=5e-4),
        )
        found += _contrastive()
    return found


def _contrastive() -> list[Recipe]:
    title = "ViT, supervised contrastive, then a linear classifier"
    return [
        *twins(
            "supcon-vit-digits", f"small {title}, on digits", _CONTRASTIVE_EXPECT, 0.02,
            lambda rho: contrastive(digits("vit", rho=rho)),
        ),
        *twins(
            "supcon-vit-cifar10", f"compact {title}, on CIFAR-10", _NOT_MEASURED, 0.02,
            lambda rho: contrastive(cifar("vit-cifar", 10, rho=rho)),
        ),
    ]  # fmt: skip
