"""Recipes for one's own images: from scratch by their number, or by fine-tuning."""

from __future__ import annotations

import math

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


def photos(num_images: int = 10_000) -> Config:
    """Settings for a folder of `num_images` training photos, by this rule.

    * model: `vit_tiny_patch16_224` below 30 thousand images, `vit-s16` below 300 thousand, else
      `vit-b16`; rho 0.05, 0.1 and 0.2 with them (Table 9: bigger models want a larger rho), m = 32;
    * batch: the power of two nearest to images / 300, from 32 to 4096 - the paper's rule for
      subsets of ImageNet, which keeps the number of steps near 90 thousand;
    * steps: 300 epochs; the first tenth of them, at most 10 thousand, warm up;
    * lr: 3e-3 from batch 512 up, else 1e-3, never scaled further (the paper found that scaling
      hurts)."""
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
            source="folder:data/photos",
            image_size=224,
            batch_size=batch,
            crop="inception",
            flip=True,
            val_share=0.1,
        ),
        optim=OptimConfig(
            lr=3e-3 if batch >= 512 else 1e-3,
            weight_decay=0.3,
            clip_norm=1.0,
            warmup_steps=min(10_000, steps // 10),
        ),
        sam=SamConfig(rho=rho, m=32),
    )


def transfer(num_images: int = 2000) -> Config:
    """Fine-tuning by the paper's Table 11: momentum SGD without decay, clip 1, cosine, batch 512, a
    new zero head.

    From 10 thousand training images up its row for CIFAR, 10,000 steps and a choice of the learning
    rate on 2 % of them; else, and where the number is not known beforehand, the row for Flowers and
    Pets, 500 steps and 10 %. The model and image size are those of `--init`.

    Source: Table 11 and appendix E.6 of arXiv:2106.01548."""
    many = num_images >= 10_000
    return Config(
        steps=10_000 if many else 500,
        model=ModelConfig(name=""),
        data=DataConfig(
            source="folder:data/photos", image_size=0, batch_size=512, crop="inception", flip=True
        ),
        optim=OptimConfig(name="sgd", lr=0.01, warmup_steps=500 if many else 100, clip_norm=1.0),
        run=RunConfig(eval_every=10_000 if many else 500),  # one look at the test images
        grid=GridConfig(lr=(0.001, 0.003, 0.01, 0.03), share=0.02 if many else 0.1),
    )


OWN = [
    Recipe(
        "photos",
        "one's own folder of 1 thousand to 1 million photos; settings follow from their number",
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
