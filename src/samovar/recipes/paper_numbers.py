"""Published numbers of arXiv:2106.01548; accuracies are in percent.

They are transcribed from version 1. `UNVERIFIED` holds numbers that only later versions have and
that were not checked against them. `-sam` marks a network trained with SAM, `-aug` one trained with
RandAugment and mixup."""

from __future__ import annotations

Numbers = dict[str, float]

# Table 1: geometry and accuracy. kappa depends on the architecture alone, not on SAM.
TABLE_1: dict[str, Numbers] = {
    "resnet50": {"kappa": 2801.6, "lambda_max": 122.9, "top1": 76.0, "corruption": 44.6},
    "resnet152": {"kappa": 2801.6, "lambda_max": 179.8, "top1": 78.5, "corruption": 50.0},
    "vit-b16": {"kappa": 4205.3, "lambda_max": 738.8, "top1": 74.6, "corruption": 46.6},
    "vit-b16-sam": {"kappa": 4205.3, "lambda_max": 20.9, "top1": 79.9, "corruption": 56.5},
    "mixer-b16": {"kappa": 14468.0, "lambda_max": 1644.4, "top1": 66.4, "corruption": 33.8},
    "mixer-b16-sam": {"kappa": 14468.0, "lambda_max": 22.5, "top1": 77.4, "corruption": 48.8},
}

BENCHMARKS = ("top1", "real", "v2", "r", "corruption")
"""Columns of Table 2: ImageNet, ReaL, V2, ImageNet-R without masking, ImageNet-C."""

# Table 2: accuracy with SAM, and the gain over the same network without SAM.
TABLE_2: dict[str, tuple[tuple[float, float], ...]] = {
    "resnet50": ((76.7, 0.7), (83.1, 0.7), (64.6, 1.0), (23.3, 1.1), (46.5, 1.9)),
    "resnet101": ((78.6, 0.8), (84.8, 0.9), (66.7, 1.4), (25.9, 1.5), (51.3, 2.8)),
    "resnet152": ((79.3, 0.8), (84.9, 0.7), (67.3, 1.0), (25.7, 0.4), (52.2, 2.2)),
    "resnet50x2": ((79.6, 1.5), (85.3, 1.6), (67.5, 1.7), (26.0, 2.9), (50.7, 3.9)),
    "resnet101x2": ((80.9, 2.4), (86.4, 2.4), (69.1, 2.8), (27.8, 3.2), (54.0, 4.7)),
    "resnet152x2": ((81.1, 1.8), (86.4, 1.9), (69.6, 2.3), (28.1, 2.8), (55.0, 4.2)),
    "vit-s32": ((70.5, 2.1), (77.5, 2.3), (56.9, 2.6), (21.4, 2.4), (46.2, 2.9)),
    "vit-s16": ((78.1, 3.7), (84.1, 3.7), (65.6, 3.9), (24.7, 4.7), (53.0, 6.5)),
    "vit-s14": ((78.8, 4.0), (84.8, 4.5), (67.2, 5.2), (24.4, 4.7), (54.2, 7.0)),
    "vit-s8": ((81.3, 5.3), (86.7, 5.5), (70.4, 6.2), (25.3, 6.1), (55.6, 8.5)),
    "vit-b32": ((73.6, 4.1), (80.3, 5.1), (60.0, 4.7), (24.0, 4.1), (50.7, 6.7)),
    "vit-b16": ((79.9, 5.3), (85.2, 5.4), (67.5, 6.2), (26.4, 6.3), (56.5, 9.9)),
    "mixer-s32": ((66.7, 2.8), (73.8, 3.5), (52.4, 2.9), (18.6, 2.7), (39.3, 4.1)),
    "mixer-s16": ((72.9, 4.1), (79.8, 4.7), (58.9, 4.1), (20.1, 4.2), (42.0, 6.4)),
    "mixer-s8": ((75.9, 5.7), (82.5, 6.3), (62.3, 6.2), (20.5, 5.1), (42.4, 7.8)),
    "mixer-b32": ((72.4, 9.9), (79.0, 10.9), (58.0, 10.4), (22.8, 8.2), (46.2, 12.4)),
    "mixer-b16": ((77.4, 11.0), (83.5, 11.4), (63.9, 13.1), (24.7, 10.2), (48.8, 15.0)),
    "mixer-b8": ((79.0, 10.4), (84.4, 10.1), (65.5, 11.6), (23.5, 9.2), (48.9, 16.9)),
}

PARTS = (
    "embedding", "token_mixing", "channel_mixing", "block1", "block6", "block12", "whole",
    "weight_norm", "activation1", "activation6", "activation12",
)  # fmt: skip
"""Columns of Table 3: lambda_max of parts of the network, then norms of weights and activations."""

TABLE_3: dict[str, tuple[float, ...]] = {
    "vit-b16": (300.4, 179.8, 281.4, 44.4, 32.4, 26.9, 738.8, 269.3, 104.9, 104.3, 138.1),
    "vit-b16-sam": (3.8, 8.5, 9.6, 1.7, 1.7, 1.5, 20.9, 353.8, 117.0, 120.3, 97.2),
    "mixer-b16": (1042.3, 95.8, 417.9, 239.3, 41.2, 5.1, 1644.4, 197.6, 96.7, 135.1, 74.9),
    "mixer-b16-sam": (18.2, 1.4, 9.5, 4.0, 1.1, 0.3, 22.5, 389.9, 110.9, 176.0, 216.1),
}

# Figure 2, right: percent of active units of each block, read from the plot to a point.
FIGURE_2: dict[str, tuple[float, ...]] = {
    "mixer-b16": (41.8, 30.5, 28.3, 17.9, 26.2, 28.4, 27.4, 28.0, 28.3, 28.7, 27.7, 22.6),
    "mixer-b16-sam": (8.5, 15.7, 12.5, 11.5, 31.5, 29.5, 24.5, 24.3, 29.3, 27.1, 31.7, 28.4),
    "mixer-s16": (48.8, 23.2, 20.5, 19.3, 19.4, 20.4, 23.2, 27.7),
    "mixer-s16-sam": (24.0, 15.4, 23.7, 24.4, 19.7, 18.8, 23.5, 27.2),
}

# Table 4: ImageNet top-1 by share of the training images.
TABLE_4: dict[str, Numbers] = {
    "all": {
        "resnet152": 78.5, "resnet152-sam": 79.3,
        "vit-b16": 74.6, "vit-b16-sam": 79.9, "vit-b16-aug": 79.6, "vit-b16-aug-sam": 81.5,
        "mixer-b16": 66.4, "mixer-b16-sam": 77.4, "mixer-b16-aug": 76.5, "mixer-b16-aug-sam": 78.1,
    },
    "half": {
        "resnet152": 74.2, "resnet152-sam": 75.6,
        "vit-b16": 64.9, "vit-b16-sam": 75.4, "vit-b16-aug": 73.1, "vit-b16-aug-sam": 75.8,
        "mixer-b16": 53.9, "mixer-b16-sam": 71.0, "mixer-b16-aug": 70.4, "mixer-b16-aug-sam": 73.1,
    },
    "quarter": {
        "resnet152": 68.0, "resnet152-sam": 70.3,
        "vit-b16": 52.4, "vit-b16-sam": 66.8, "vit-b16-aug": 63.2, "vit-b16-aug-sam": 65.6,
        "mixer-b16": 37.2, "mixer-b16-sam": 62.8, "mixer-b16-aug": 61.0, "mixer-b16-aug-sam": 65.8,
    },
    "tenth": {
        "resnet152": 54.6, "resnet152-sam": 57.1,
        "vit-b16": 32.8, "vit-b16-sam": 46.1, "vit-b16-aug": 38.5, "vit-b16-aug-sam": 45.7,
        "mixer-b16": 21.0, "mixer-b16-sam": 43.5, "mixer-b16-aug": 43.0, "mixer-b16-aug-sam": 51.0,
    },
}  # fmt: skip

ADVERSARIAL_BENCHMARKS = ("top1", "real", "v2", "pgd", "r", "corruption")
"""Columns of Table 5; `pgd` is accuracy under PGD-10 within 2/255."""

# Table 5: adversarial training with SAM, and the gain over adversarial training without SAM.
TABLE_5: dict[str, tuple[tuple[float, float], ...]] = {
    "resnet50": ((70.1, -0.7), (77.9, -0.3), (56.6, -0.8), (54.1, 0.9), (27.0, 0.9), (42.7, -0.1)),
    "resnet101": ((73.6, -0.4), (81.0, 0.1), (60.4, -0.6), (58.8, 1.4), (29.5, 0.6), (46.9, 0.3)),
    "resnet152": ((75.1, -0.4), (82.3, 0.2), (62.2, -0.4), (61.0, 1.8), (30.8, 1.4), (49.1, 0.6)),
    "vit-s16": ((73.2, 1.2), (80.7, 1.7), (60.2, 1.4), (58.0, 5.2), (28.4, 2.4), (47.5, 1.6)),
    "vit-b32": ((69.9, 3.0), (76.9, 3.4), (55.7, 2.5), (54.0, 6.4), (26.0, 3.0), (46.4, 3.0)),
    "vit-b16": ((76.7, 3.9), (82.9, 4.1), (63.6, 4.3), (62.0, 7.7), (30.0, 4.9), (51.4, 5.0)),
    "mixer-s16": ((67.1, 2.2), (74.5, 2.3), (52.8, 2.5), (50.1, 4.1), (22.9, 2.6), (37.9, 2.5)),
    "mixer-b32": ((69.3, 9.1), (76.4, 10.2), (54.7, 9.4), (54.5, 13.9), (26.3, 8.0), (43.7, 8.8)),
    "mixer-b16": (
        (73.9, 11.1),
        (80.8, 11.8),
        (60.2, 11.9),
        (59.8, 17.3),
        (29.0, 10.5),
        (45.9, 12.5),
    ),
}

TABLE_6_MODELS = (
    "resnet50-sam", "resnet152-sam", "vit-s16", "vit-s16-sam", "vit-b16", "vit-b16-sam",
    "mixer-s16", "mixer-s16-sam", "mixer-b16", "mixer-b16-sam",
)  # fmt: skip
"""Columns of Table 6."""

# Table 6: accuracy after fine-tuning weights from ImageNet.
TABLE_6: dict[str, tuple[float, ...]] = {
    "cifar10": (97.4, 98.2, 97.6, 98.2, 98.1, 98.6, 94.1, 96.1, 95.4, 97.8),
    "cifar100": (85.2, 87.8, 85.7, 87.6, 87.6, 89.1, 77.9, 82.4, 80.0, 86.4),
    "flowers102": (90.0, 91.1, 86.4, 91.5, 88.5, 91.8, 83.3, 87.9, 82.8, 90.0),
    "pets": (91.6, 93.3, 90.4, 92.9, 91.9, 93.1, 86.1, 88.7, 86.1, 92.5),
    "average": (91.1, 92.6, 90.0, 92.6, 91.5, 93.2, 85.4, 88.8, 86.1, 91.7),
}

# Table 10: ImageNet top-1 by rho.
TABLE_10: dict[str, dict[float, float]] = {
    "vit-b16": {0.0: 74.6, 0.05: 77.5, 0.1: 78.8, 0.2: 79.9, 0.25: 79.3},
    "mixer-b16": {
        0.0: 66.4,
        0.05: 69.5,
        0.25: 74.1,
        0.35: 74.7,
        0.4: 75.6,
        0.5: 76.9,
        0.6: 77.4,
        0.65: 77.1,
    },
}

# Section 5.3: supervised contrastive training, then a linear classifier; ImageNet top-1 without and
# with SAM.
CONTRASTIVE: dict[str, tuple[float, float]] = {"vit-s16": (77.0, 78.1), "vit-b16": (77.4, 80.0)}

# Only in later versions; from memory, not checked against them.
UNVERIFIED: dict[str, Numbers] = {
    "resnet152": {"training_loss": 0.86, "flatness": 2.39},
    "resnet152-sam": {
        "lambda_max": 42.0,
        "training_loss": 0.90,
        "flatness": 2.16,
        "top1": 79.3,
        "corruption": 52.2,
    },
    "vit-b16": {"training_loss": 0.65, "flatness": 6.66},
    "vit-b16-sam": {"training_loss": 0.82, "flatness": 0.96},
    "mixer-b16": {"training_loss": 0.45, "flatness": 7.78},
    "mixer-b16-sam": {"training_loss": 0.97, "flatness": 1.01},
}


def plain_and_sam(pair: tuple[float, float]) -> tuple[float, float]:
    """Return accuracies without and with SAM, from the accuracy with SAM and its gain."""
    return round(pair[0] - pair[1], 1), pair[0]
