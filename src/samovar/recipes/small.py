"""Recipes for digits and CIFAR, which one machine trains in minutes to hours."""

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
from samovar.recipes.regimes import FRACTIONS, adversarial, small_momentum, strong, subset

# --- digits: 8 x 8 pixels, embedded, a minute on a laptop

_DIGITS_LR = {"vit": 7e-4, "mixer": 7e-4, "resnet": 5e-3}
_DIGITS_RHO = {"vit": 0.1, "mixer": 0.1, "resnet": 0.03}


def digits(family: str, *, rho: float = 0.0) -> Config:
    """Return training on 15 % of scikit-learn's digits.

    With few images and a long schedule the paper's effect is clear."""
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


def muon(config: Config) -> Config:
    """Return a config under timm's Muon, with AdamW's learning rate and weight decay.

    Muon orthogonalizes the momentum of matrices and scales it to the size of AdamW's updates;
    biases, norms, class token and position embeddings take AdamW steps."""
    return replace(config, optim=replace(config.optim, name="muon", momentum=0.95))


# --- CIFAR: 32 x 32 pixels, pad-crop and mirror only, as the paper avoids strong augmentation

# The paper's shape: batches of 4096 of 1.28 million images are 1/312 of them, SAM climbs from 32
# images at a time, a tenth of the steps is warm-up. No dropout: networks this small do not memorise
# their images with it, which the paper's do in spite of its 0.1.
_WARMUP = 0.1


def cifar(model: str, classes: int, *, rho: float = 0.0) -> Config:
    """Return 200 epochs of a compact network on CIFAR-10 or CIFAR-100."""
    convolutional = model.startswith("resnet")
    config = Config(
        epochs=200,
        loss="softmax" if convolutional else "sigmoid",
        model=ModelConfig(name=model),
        data=DataConfig(
            source=f"cifar{classes}", image_size=32, batch_size=128, crop="pad", flip=True
        ),
        sam=SamConfig(rho=rho, m=32),
    )
    warmup = round(_WARMUP * 200 * 50_000 / 128)
    if convolutional:
        return replace(
            config, optim=OptimConfig(name="sgd", lr=0.1, weight_decay=5e-4, warmup_steps=warmup)
        )
    return replace(
        config,
        model=replace(config.model, head_bias=-math.log(classes)),
        optim=OptimConfig(lr=1e-3, weight_decay=0.1, warmup_steps=warmup, clip_norm=1.0),
    )


# --- a fifth of CIFAR-10, which two cores train in minutes

# Of 10, 20, 30, 40 and 60 epochs those that leave the plain network's training loss nearest to the
# paper's, by the rule in docs/reproduce.md, which looks at plain training alone.
_CIFAR10K_EPOCHS = {"vit": 30.0, "mixer": 20.0, "resnet": 20.0}


def cifar10k(family: str, *, rho: float = 0.0) -> Config:
    """Return training of a network of half a million parameters on 10,000 images, mirrored only.

    The batch of 32 is the paper's share of the images, and one group of SAM. Each family trains
    until its plain network has memorised its images as far as the paper's."""
    config = cifar(f"{family}-cifar-t{'' if family == 'resnet' else '8'}", 10, rho=rho)
    epochs, batch = _CIFAR10K_EPOCHS[family], 32
    steps = epochs * 10_000 / batch
    data = replace(config.data, fraction=0.2, crop="none", batch_size=batch)
    optim = replace(config.optim, warmup_steps=round(_WARMUP * steps))
    if family == "resnet":
        optim = replace(optim, lr=0.025)  # in proportion to the batch
    run = RunConfig(eval_every=round(steps / 6), threads=1)
    return replace(
        config, epochs=epochs, data=data, optim=optim, run=run, sam=replace(config.sam, m=0)
    )


# --- supervised contrastive training


def contrastive(config: Config) -> Config:
    """Return a config with supervised contrastive training, then a linear classifier.

    Two views of each image, AdamW, temperature 0.1."""
    data = replace(config.data, views=2)
    head = HeadConfig(epochs=config.epochs / 4, optim=OptimConfig(name="sgd", lr=0.1))
    model = replace(config.model, head_bias=0.0)
    compared = ContrastiveConfig(hidden=512)
    # the loss compares all images of a batch
    sam = replace(config.sam, m=0, shared_ascent=True)
    return replace(
        config, loss="supcon", data=data, head=head, model=model, contrastive=compared, sam=sam
    )


# --- the table

_FAMILIES = {"vit": "ViT", "mixer": "MLP-Mixer", "resnet": "ResNet"}
_CIFAR_RHO = {"vit": 0.1, "mixer": 0.2, "resnet": 0.05}
# By the search in docs/reproduce.md for ViT and Mixer; the ResNet's has not been searched yet.
_CIFAR10K_RHO = {"vit": 0.2, "mixer": 0.2, "resnet": 0.1}
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

# Results of the digits twins on the held-out 1528 images; docs/log.md has the tables.
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


# `samovar train NAME --seed 0`, accuracy at the last step.
_MUON_EXPECT = (
    "95.2 % held-out (seed 0 only, one core)",
    "97.0 % held-out (seed 0 only, one core)",
)
# Minutes of one core, derived from the speed of a step.
_CIFAR10K_MINUTES = {"vit": (5, 10), "mixer": (4, 8), "resnet": (6, 12)}


def small() -> list[Recipe]:
    """Return recipes for digits and CIFAR, with and without SAM, in all regimes of the paper."""
    rows = []
    for key, title in _FAMILIES.items():
        rows += twins(
            f"{key}-digits",
            f"small {title} on scikit-learn's digits (embedded)",
            _DIGITS_EXPECT[key],
            _DIGITS_RHO[key],
            partial(digits, key),
        )
        for classes in (10, 100):
            rows += twins(
                f"{key}-cifar{classes}",
                f"compact {title} on CIFAR-{classes}, pad-crop and mirror",
                _NOT_MEASURED,
                _CIFAR_RHO[key],
                partial(cifar, f"{key}-cifar", classes),
            )
        rows += twins(
            f"{key}-cifar10k",
            f"small {title} on a fifth of CIFAR-10, mirror only",
            _cifar10k_expect(key),
            _CIFAR10K_RHO[key],
            partial(cifar10k, key),
        )
        rows += _other_regimes(key, title)
    return rows


def _cifar10k_expect(key: str) -> tuple[str, str]:
    plain, sam = (
        f"accuracy not yet measured over seeds; some {minutes} minutes of one core by its speed"
        for minutes in _CIFAR10K_MINUTES[key]
    )
    return plain, sam


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
        found += twins(
            "vit-digits-muon",
            f"small {title} on scikit-learn's digits, under Muon",
            _MUON_EXPECT,
            _DIGITS_RHO[key],
            lambda rho: muon(digits("vit", rho=rho)),
        )
        found += rows(
            "sgd",
            "SGD with momentum",
            _CIFAR_RHO[key],
            small_momentum,
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
