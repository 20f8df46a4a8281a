"""Recipes for your own images: training from scratch, or fine-tuning."""

from __future__ import annotations

import math
from typing import NamedTuple

from samovar.config import (
    Config,
    DataConfig,
    GridConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SamConfig,
)
from samovar.recipes.recipe import Recipe

FEW = 2000
"""Training images below which fine-tuning is sized by `sizes`; the paper's sets have more."""
ENOUGH = 50_000
"""Training images from which `samovar train FOLDER` trains from scratch."""
PRETRAINED = {
    128: "resnet18.a1_in1k",
    256: "vit_small_patch16_224.augreg_in21k_ft_in1k",
    math.inf: "vit_small_patch16_384.augreg_in21k_ft_in1k",
}
"""Weights that `samovar train FOLDER` fine-tunes by default, by the largest image size they are for
(pixels): below 128 a patch of 16 leaves a ViT too few patches."""
_RATES = (0.003, 0.01, 0.03)


class Sizes(NamedTuple):
    """Settings of a training that follow from the number of its images."""

    batch: int
    """Images per step."""
    epochs: float
    """Passes over the images; 0 follows `steps`."""
    steps: int
    """Optimizer steps; 0 follows `epochs`."""
    total: int
    """Optimizer steps, by `steps` or `epochs`."""
    warmup: int
    """Steps of warm-up."""
    rates: tuple[float, ...]
    """Learning rates to try; empty tries none."""
    share: float
    """Share of the images held out to compare the rates on."""


def sizes(num_images: int, *, pretrained: bool, batch: int = 0) -> Sizes:
    """Return batch, steps, warm-up and learning rates to try for a number of training images.

    From scratch (`photos`):

    * batch: the power of two nearest to images / 300, from 32 to 4096. This is the paper's rule for
      subsets of ImageNet; it keeps the number of steps near 90 thousand;
    * 300 epochs, below 10,000 images 100; one learning rate;
    * warm-up: the first tenth of the steps, at most 10,000.

    Fine-tuning (`transfer`):

    * below 2,000 images 20 epochs in batches of the power of two nearest to images / 16, from 16
      to 64; the first tenth of the steps is warm-up. Below 500 images two learning rates are
      compared on a fifth of the images, else three on a tenth;
    * from 2,000 images on 500 steps of 512, 100 of them warm-up, and four rates on a tenth: the
      paper's settings for Flowers and Pets;
    * from 10,000 images on 10,000 steps of 512, 500 of them warm-up, and four rates on 2 %: the
      paper's settings for CIFAR.

    Args:
        num_images: training images.
        pretrained: fine-tuning; else training from scratch.
        batch: images per step, if they are given; 0 follows the rule.

    Source: appendix E.2, Table 11 and appendix E.6 of arXiv:2106.01548; the rows below 2,000 and
    10,000 images are ours."""
    if pretrained and num_images >= FEW:
        many = num_images >= 10_000
        steps, warmup, share = (10_000, 500, 0.02) if many else (500, 100, 0.1)
        return Sizes(batch or 512, 0, steps, steps, warmup, (0.001, *_RATES), share)
    if pretrained:
        batch = batch or _power_of_two(num_images / 16, 16, 64)
        very_few = num_images < 500
        rates, share = (_RATES[:2], 0.2) if very_few else (_RATES, 0.1)
        steps = max(1, round(20 * num_images / batch))
        return Sizes(batch, 20, 0, steps, steps // 10, rates, share)
    batch = batch or _power_of_two(num_images / 300, 32, 4096)
    epochs = 300 if num_images >= 10_000 else 100
    steps = max(1, round(epochs * num_images / batch))
    return Sizes(batch, epochs, 0, steps, min(10_000, steps // 10), (), 0.1)


def _power_of_two(value: float, least: int, most: int) -> int:
    power: int = 2 ** round(math.log2(max(value, 1)))
    return min(most, max(least, power))


def weights_for(image_size: int) -> str:
    """Return timm's name of the weights to fine-tune by default for a side in pixels."""
    return next(name for most, name in PRETRAINED.items() if image_size <= most)


def photos(num_images: int = 10_000, batch: int = 0) -> Config:
    """Return settings for a folder of `num_images` training photos.

    * model: `vit_tiny_patch16_224` below 30 thousand images, `vit-s16` below 300 thousand, else
      `vit-b16`; rho is 0.05, 0.1 and 0.2 for them (Table 9: larger models need a larger rho), and
      m is 32, or less where that does not divide the batch;
    * batch, steps and warm-up: see `sizes`;
    * lr: 3e-3 from batch 512 up, else 1e-3, and no further scaling (the paper found that it
      hurts).

    `batch` is the number of images per step, if it is given."""
    name, rho = "vit-b16", 0.2
    if num_images < 30_000:
        name, rho = "vit_tiny_patch16_224", 0.05
    elif num_images < 300_000:
        name, rho = "vit-s16", 0.1
    found = sizes(num_images, pretrained=False, batch=batch)
    return Config(
        epochs=found.epochs,
        model=ModelConfig(name=name, dropout=0.1),
        data=DataConfig(
            source="folder:data/photos",
            image_size=224,
            batch_size=found.batch,
            crop="inception",
            flip=True,
            val_share=0.1,
        ),
        optim=OptimConfig(
            lr=3e-3 if found.batch >= 512 else 1e-3,
            weight_decay=0.3,
            clip_norm=1.0,
            warmup_steps=found.warmup,
        ),
        sam=SamConfig(rho=rho, m=max(m for m in range(1, 33) if found.batch % m == 0)),
    )


def transfer(num_images: int = FEW, batch: int = 0) -> Config:
    """Return settings for fine-tuning `--init` on other images, by the paper's Table 11.

    Momentum SGD without decay, gradient clipping at 1, cosine schedule, a new head of zeros. Batch,
    steps, warm-up and the learning rates to try follow from the number of images, see `sizes`;
    where it is not known beforehand they are those for Flowers and Pets. The model and the image
    size come from `--init`. `batch` is the number of images per step, if it is given.

    Source: Table 11 and appendix E.6 of arXiv:2106.01548."""
    found = sizes(num_images, pretrained=True, batch=batch)
    return Config(
        epochs=found.epochs or Config.epochs,
        steps=found.steps,
        model=ModelConfig(name=""),
        data=DataConfig(
            source="folder:data/photos",
            image_size=0,
            batch_size=found.batch,
            crop="inception",
            flip=True,
        ),
        optim=OptimConfig(name="sgd", lr=0.01, warmup_steps=found.warmup, clip_norm=1.0),
        run=RunConfig(eval_every=found.total),  # one look at the test images
        grid=GridConfig(lr=found.rates, share=found.share),
    )


OWN = [
    Recipe(
        "photos",
        "your own folder of 1 thousand to 1 million photos; settings follow from their number",
        "depends on the photos; from scratch, thousands of images give far less than fine-tuning",
        photos,
    ),
    Recipe(
        "transfer",
        "fine-tune --init RUN, a timm model or a file on other images, Table 11 of the paper",
        "depends on weights and images; docs/log.md has CIFAR-100 to CIFAR-10 and to flowers",
        transfer,
    ),
]
