"""Scales at which the paper is reproduced: a network of each family, its images, its measurements.

Nothing in this file needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from samovar.config import MeasureConfig

FAMILIES = {"vit": "ViT", "mixer": "MLP-Mixer", "resnet": "ResNet"}
"""Titles of the paper's families of networks."""


@dataclass(frozen=True)
class Scale:
    """Recipes that stand for the paper's networks."""

    summary: str
    base: Mapping[str, str]
    """Recipe of each of `FAMILIES`."""
    sizes: Mapping[str, tuple[str, ...]]
    """Models of each family for Table 2, the smaller first."""
    measure: MeasureConfig
    seeds: int
    """Runs of each setting without `--seeds`."""
    transfer: tuple[str, ...] = ()
    """Sources that Table 6 fine-tunes on."""
    contrastive: str = ""
    """Recipe of the contrastive ViT; empty where there is none."""
    testsets: bool = False
    """True if the classes are ImageNet's, which its published test sets need."""
    stands_for: Mapping[str, str] = field(
        default_factory=lambda: {"vit": "vit-b16", "mixer": "mixer-b16", "resnet": "resnet152"}
    )
    """Network of the paper whose numbers stand beside ours, by family."""


def _base(source: str) -> dict[str, str]:
    return {family: f"{family}-{source}" for family in FAMILIES}


SCALES: dict[str, Scale] = {
    "digits": Scale(
        "269 training images of 8 x 8 pixels, embedded; minutes on two cores",
        _base("digits"),
        {family: (f"{family}-digits",) for family in FAMILIES},
        # for networks this small, threads and processes cost more than they save
        MeasureConfig(
            checkpoint="last",
            threads=1,
            workers=0,
            processes=1,
            points=21,
            corruption_images=300,
            draws=20,
        ),
        seeds=3,
        contrastive="supcon-vit-digits",
    ),
    "cifar10k": Scale(
        "10,000 images of CIFAR-10 and half a million parameters; hours on two cores",
        _base("cifar10k"),
        {"vit": ("vit-cifar-t8",), "mixer": ("mixer-cifar-t8",), "resnet": ("resnet-cifar-t",)},
        MeasureConfig(
            checkpoint="last",
            threads=1,
            workers=0,
            processes=1,
            points=15,
            images=1000,
            landscape_images=256,
            corruption_images=500,
            attack_images=500,
        ),
        seeds=3,
        transfer=("cifar100",),
    ),
    "cifar": Scale(
        "CIFAR-10 whole, compact networks, 200 epochs; a day on one GPU",
        _base("cifar10"),
        {
            "vit": ("vit-cifar-s", "vit-cifar"),
            "mixer": ("mixer-cifar-s", "mixer-cifar"),
            "resnet": ("resnet-cifar-s", "resnet-cifar"),
        },
        MeasureConfig(checkpoint="last", images=5000, points=25),
        seeds=3,
        transfer=("cifar100",),
        contrastive="supcon-vit-cifar10",
    ),
    "imagenet": Scale(
        "the paper's own: ImageNet, batch 4096, 300 epochs; hundreds of GPU days",
        {"vit": "vit-b16-imagenet", "mixer": "mixer-b16-imagenet", "resnet": "resnet152-imagenet"},
        {
            "vit": ("vit-s32", "vit-s16", "vit-s14", "vit-s8", "vit-b32", "vit-b16"),
            "mixer": ("mixer-s32", "mixer-s16", "mixer-s8", "mixer-b32", "mixer-b16", "mixer-b8"),
            "resnet": (
                "resnet50",
                "resnet101",
                "resnet152",
                "resnet50x2",
                "resnet101x2",
                "resnet152x2",
            ),
        },
        # a tenth of the training images, all test images
        MeasureConfig(
            checkpoint="last", images=128_116, points=50, corruption_images=0, attack_images=0
        ),
        seeds=1,
        transfer=("cifar10", "cifar100", "flowers102", "pets"),
        contrastive="supcon-vit-b16-imagenet",
        testsets=True,
    ),
}
"""Scales by the word that `--scale` takes."""
