"""Recipes for the ImageNet tables of the paper, arXiv:2106.01548."""

from __future__ import annotations

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
    SamConfig,
    image_gradients,
)
from samovar.recipes import paper_numbers
from samovar.recipes.recipe import Recipe, twins
from samovar.recipes.regimes import FRACTIONS, adversarial, momentum, strong, subset

IMAGENET_TRAIN = 1_281_167
"""Training images of ImageNet."""

PAPER_RHO = {
    "resnet50": 0.02, "resnet101": 0.05, "resnet152": 0.02,
    "resnet50x2": 0.05, "resnet101x2": 0.05, "resnet152x2": 0.05,
    "vit-s32": 0.05, "vit-s16": 0.1, "vit-s14": 0.1, "vit-s8": 0.15,
    "vit-b32": 0.15, "vit-b16": 0.2,
    "mixer-s32": 0.1, "mixer-s16": 0.15, "mixer-s8": 0.2,
    "mixer-b32": 0.35, "mixer-b16": 0.6, "mixer-b8": 0.6,
}  # fmt: skip
"""SAM's radius by network: Table 9, for the networks of Table 2."""
PAPER_RHO_AUG = {"vit-b16": 0.05, "mixer-b16": 0.2}
"""SAM's radius with strong augmentation."""
PAPER_RHO_ADVERSARIAL = {
    "resnet50": 0.05, "resnet101": 0.05, "resnet152": 0.05,
    "vit-s16": 0.1, "vit-b32": 0.1, "vit-b16": 0.1,
    "mixer-s16": 0.05, "mixer-b32": 0.25, "mixer-b16": 0.25,
}  # fmt: skip
"""SAM's radius with adversarial training."""


def imagenet(model: str, *, rho: float = 0.0) -> Config:
    """Return the paper's training from scratch (Table 8).

    Each ascent step takes m = 32 images, however many GPUs share the batch."""
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
        # The paper's decay of 1e-3 is decoupled (lr x decay); ours is part of the gradient, which
        # momentum 0.9 multiplies by ten.
        optim = OptimConfig(name="sgd", lr=1.6, momentum=0.9, weight_decay=1e-4, warmup_steps=5000)
        return Config(epochs=90, model=ModelConfig(name=model), data=data, optim=optim, sam=sam)
    vit = model.startswith("vit")
    optim = OptimConfig(
        lr=3e-3,
        weight_decay=0.3,
        clip_norm=1.0,
        warmup_steps=10_000,
        schedule="cosine" if vit else "linear",
    )
    shape = ModelConfig(
        name=model, head_bias=-10.0, dropout=0.1 if vit else 0.0, drop_path=0.0 if vit else 0.1
    )
    return Config(epochs=300, loss="sigmoid", model=shape, data=data, optim=optim, sam=sam)


def contrastive(config: Config) -> Config:
    """Return a config with supervised contrastive training of a ViT, then a linear classifier.

    Batch 2048 of two views, AutoAugment, temperature 0.1, LAMB with lr 0.001 x batch / 256; RMSProp
    for the classifier. The paper does not publish the warm-up, the width of the projection head and
    the rate of the exponential decay. Here they are those of Table 8, 2048 as in SupCon, and a
    hundredth of the learning rate at the end.

    Source: section 5.3 and appendix E.4 of arXiv:2106.01548."""
    return replace(
        config,
        epochs=350,
        loss="supcon",
        model=replace(config.model, head_bias=0.0),
        data=replace(config.data, batch_size=2048, views=2, autoaugment="imagenet"),
        optim=OptimConfig(name="lamb", lr=0.008, weight_decay=0.3, warmup_steps=10_000),
        contrastive=ContrastiveConfig(temperature=0.1),
        head=HeadConfig(epochs=90),
        sam=replace(config.sam, m=0, shared_ascent=True),  # the loss compares all images of a batch
    )


# --- what to expect: cost, derived

FORWARD_GFLOPS = {
    "resnet50": 8.18, "resnet101": 15.60, "resnet152": 23.03,
    "resnet50x2": 32.23, "resnet101x2": 61.93, "resnet152x2": 91.63,
    "vit-s32": 2.29, "vit-s16": 9.20, "vit-s14": 12.25, "vit-s8": 44.81,
    "vit-b32": 8.82, "vit-b16": 35.13,
    "mixer-s32": 2.00, "mixer-s16": 7.55, "mixer-s8": 29.75,
    "mixer-b32": 6.48, "mixer-b16": 25.20, "mixer-b8": 100.12,
}  # fmt: skip
"""GFLOPs of a forward pass over one image of 224 pixels, by torch's counter.

A multiply-add counts as two."""

SUSTAINED_TFLOPS = 100
"""Speed of the GPU in the hours that recipes state: a third of an A100's peak in bfloat16."""


def gpu_hours(config: Config) -> float:
    """Return the hours that a recipe takes on one GPU of `SUSTAINED_TFLOPS`.

    The gradient of an image costs three forward passes."""
    images = image_gradients(config, round(IMAGENET_TRAIN * config.data.fraction))
    flops = 3e9 * FORWARD_GFLOPS[config.model.name.removesuffix("-gap")] * images
    return flops / (SUSTAINED_TFLOPS * 1e12) / 3600


def with_cost(recipe: Recipe) -> Recipe:
    """Return a recipe whose expectation also states its cost."""
    hours = gpu_hours(recipe.config())
    cost = f"about {hours:,.0f} GPU hours at {SUSTAINED_TFLOPS} TFLOP/s (derived)"
    return replace(recipe, expect=f"{recipe.expect}; {cost}")


# --- what to expect: the paper's numbers, in percent

_TABLE_5 = (
    paper_numbers.ADVERSARIAL_BENCHMARKS.index("top1"),
    paper_numbers.ADVERSARIAL_BENCHMARKS.index("pgd"),
)


def _of_table_4(model: str, share: str, aug: str = "") -> tuple[float, float]:
    """Return top-1 without and with SAM."""
    found = paper_numbers.TABLE_4[share]
    return found[f"{model}{aug}"], found[f"{model}{aug}-sam"]


def paper() -> list[Recipe]:
    """Return recipes for Tables 2, 4 and 5, contrastive training, and SGD for a ViT."""
    rows = []
    for model, rho in PAPER_RHO.items():
        rows += _rows(
            model,
            "",
            "Table 8 of the paper",
            _top1(paper_numbers.plain_and_sam(paper_numbers.TABLE_2[model][0]), "Table 2"),
            rho,
        )
    for model, rho in PAPER_RHO_AUG.items():
        expect = _top1(_of_table_4(model, "all", "-aug"), "Table 4")
        rows += _rows(model, "-aug", "RandAugment and mixup", expect, rho, strong)
    for word, parts in FRACTIONS.items():
        rows += _subsets(word, parts)
    for model, rho in PAPER_RHO_ADVERSARIAL.items():
        summary = "fast adversarial training within 2/255"
        rows += _rows(
            model,
            "-adversarial",
            summary,
            _robust(*(paper_numbers.TABLE_5[model][k] for k in _TABLE_5)),
            rho,
            adversarial,
        )
    rows += _rows("vit-b16", "-sgd", "SGD with momentum, our settings", _UNPUBLISHED, 0.2, _sgd)
    for model, numbers in paper_numbers.CONTRASTIVE.items():
        make = partial(_make, model, contrastive)
        summary = f"{model} on ImageNet, supervised contrastive, then a linear classifier"
        rows += twins(
            f"supcon-{model}-imagenet", summary, _top1(numbers, "section 5.3"), 0.02, make
        )
    return [with_cost(recipe) for recipe in rows]


_UNPUBLISHED = (
    "the paper publishes no number; not measured here",
    "the paper publishes no number; not measured here",
)


def _same(config: Config) -> Config:
    return config


def _sgd(config: Config) -> Config:
    return momentum(config, lr=1.6, weight_decay=1e-4)


def _make(model: str, change: Callable[[Config], Config], rho: float) -> Config:
    return change(imagenet(model, rho=rho))


def _rows(
    model: str,
    suffix: str,
    summary: str,
    expect: tuple[str, str],
    rho: float,
    change: Callable[[Config], Config] = _same,
) -> list[Recipe]:
    name = f"{model}-imagenet{suffix}"
    return twins(
        name, f"{model} on ImageNet, {summary}", expect, rho, partial(_make, model, change)
    )


def _subsets(word: str, parts: int) -> list[Recipe]:
    """Return recipes for 1 / `parts` of ImageNet.

    The paper publishes no radii for subsets; these are the radii for all images."""
    rows, share = [], partial(subset, parts=parts)
    for model in ("resnet152", "vit-b16", "mixer-b16"):
        expect = _top1(_of_table_4(model, word), "Table 4")
        rows += _rows(model, f"-{word}", f"1/{parts} of it", expect, PAPER_RHO[model], share)
    for model, rho in PAPER_RHO_AUG.items():
        expect = _top1(_of_table_4(model, word, "-aug"), "Table 4")
        both = lambda config: share(strong(config))  # noqa: E731
        rows += _rows(
            model, f"-{word}-aug", f"1/{parts} of it, RandAugment and mixup", expect, rho, both
        )
    return rows


def _top1(numbers: tuple[float, float], table: str) -> tuple[str, str]:
    plain, sam = (
        f"{value} % top-1 in the paper ({table}, one run); not measured here" for value in numbers
    )
    return plain, sam


def _robust(top1: tuple[float, float], pgd: tuple[float, float]) -> tuple[str, str]:
    text = (
        "{:.1f} % top-1, {:.1f} % under PGD-10 in the paper (Table 5, one run); not measured here"
    )
    pairs = zip(paper_numbers.plain_and_sam(top1), paper_numbers.plain_and_sam(pgd), strict=True)
    plain, sam = (text.format(*pair) for pair in pairs)
    return plain, sam
