"""Turn images into the model's input, in the one order that both loaders follow.

Training: Inception crop, or the evaluation's framing; then pad-and-crop or affine; flip;
AutoAugment; RandAugment. All of it maps uint8 to uint8 and depends on (seed, position) alone; mixup
and cutmix come after, on the batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from samovar.config import DataConfig
from samovar.data.draws import Ints, Purpose, uniforms
from samovar.data.seeded import autoaugment, randaugment
from samovar.data.transforms import (
    affine,
    crop_resize,
    flip,
    inception_boxes,
    pad_crop,
    resize,
    resize_central,
)


def frame(images: Tensor, size: int, *, fixed: bool) -> Tensor:
    """Return images at `size` x `size`, without randomness.

    Images of this size are returned as they are. Those of a source of one size are scaled whole,
    since their objects fill them. Photos are prepared as in the paper's evaluation: shorter side to
    size * 256 / 224, then a central crop.

    Args:
        images: [B, C, H, W] uint8.
        size: side in pixels.
        fixed: whether the source has one size."""
    if fixed or images.shape[-2:] == (size, size):
        return resize(images, size, size, antialias=True)
    return resize_central(images, size)


def crop_each(images: list[Tensor], config: DataConfig, seed: int, positions: Ints) -> list[Tensor]:
    """Return the Inception crop of images of any size, [C, H, W] uint8 to [C, S, S].

    Antialias is as configured."""
    heights, widths = (
        np.array([image.shape[axis] for image in images], np.int64) for axis in (-2, -1)
    )
    boxes = inception_boxes(heights, widths, seed, positions).tolist()
    side = config.image_size
    return [
        resize(
            image[None, :, top : top + height, left : left + width],
            side,
            side,
            antialias=config.antialias,
        )[0]
        for image, (top, left, height, width) in zip(images, boxes, strict=True)
    ]


def crop_all(images: Tensor, config: DataConfig, seed: int, positions: Ints) -> Tensor:
    """Return the Inception crop of images of one size, [B, C, H, W] to [B, C, S, S].

    It is made in one operation unless an image needs antialias."""
    if config.antialias and min(images.shape[-2:]) > config.image_size:
        return torch.stack(crop_each(list(images), config, seed, positions))
    heights, widths = (np.full(len(images), side) for side in images.shape[-2:])
    return crop_resize(images, inception_boxes(heights, widths, seed, positions), config.image_size)


def augment(images: Tensor, config: DataConfig, seed: int, positions: Ints) -> Tensor:
    """Augment framed training images; mixup and cutmix come later.

    Args:
        images: [B, C, S, S] uint8, any device.
        config: the augmentations.
        seed: the run's seed.
        positions: [B] positions in the training stream."""
    if config.crop == "pad":
        images = pad_crop(images, uniforms(seed, Purpose.PAD, positions, 2), config.pad)
    elif config.crop == "affine":
        draws = uniforms(seed, Purpose.AFFINE, positions, 4)
        images = affine(images, draws, config.degrees, config.translate, config.zoom)
    if config.flip:
        images = flip(images, uniforms(seed, Purpose.FLIP, positions, 1))
    if config.autoaugment != "none":
        images = autoaugment(images, seed, positions, config.autoaugment)
    if config.randaugment_layers:
        images = randaugment(
            images, seed, positions, config.randaugment_layers, config.randaugment_magnitude
        )
    return images


def to_floats(images: Tensor) -> Tensor:
    """Convert uint8 from 0 to 255 to float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)
