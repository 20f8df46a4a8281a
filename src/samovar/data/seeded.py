"""torchvision's AutoAugment, RandAugment, mixup and cutmix as functions of a seed.

They draw from torch's own generator, so their draws are fixed for one version of torch and
torchvision only; those of `transforms` are fixed for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from samovar.config import AutoAugment
from samovar.data.draws import Ints, Purpose, hashes

_POLICIES = {"imagenet": v2.AutoAugmentPolicy.IMAGENET, "cifar10": v2.AutoAugmentPolicy.CIFAR10}


def autoaugment(images: Tensor, seed: int, positions: Ints, policy: AutoAugment) -> Tensor:
    """Apply torchvision's AutoAugment image by image.

    The result is a function of (seed, position) for one version of torchvision.

    Args:
        images: [B, C, H, W] uint8.
        seed: the run's seed.
        positions: [B] positions in the training stream.
        policy: the data set it was learned on, `imagenet` or `cifar10`; with the published
            strengths."""
    words = hashes((seed, Purpose.AUTOAUGMENT), positions, 1)[:, 0]
    return _each(v2.AutoAugment(_POLICIES[policy]), images, words.tolist())


def randaugment(images: Tensor, seed: int, positions: Ints, layers: int, magnitude: int) -> Tensor:
    """Apply torchvision's RandAugment image by image.

    The result is a function of (seed, position) for one version of torchvision.

    Args:
        images: [B, C, H, W] uint8.
        seed: the run's seed.
        positions: [B] positions in the training stream.
        layers: operations per image.
        magnitude: strength, 0 to 30."""
    operation = v2.RandAugment(num_ops=layers, magnitude=magnitude)
    words = hashes((seed, Purpose.RANDAUGMENT), positions, 1)[:, 0]
    return _each(operation, images, words.tolist())


def _each(operation: Callable[[Tensor], Tensor], images: Tensor, words: list[int]) -> Tensor:
    done = []
    for image, word in zip(images, words, strict=True):
        with seeded(word):
            done.append(operation(image))
    return torch.stack(done)


def mix(
    images: Tensor,
    labels: Tensor,
    seed: int,
    step: int,
    num_classes: int,
    mixup: float,
    cutmix: float,
) -> tuple[Tensor, Tensor]:
    """Mix each image with its neighbour in the batch by mixup or cutmix.

    If both are on, the batch takes one at random. All pairs of a batch mix with the same share, as
    in the paper's code. The partner comes from this batch, which on several ranks is the rank's
    slice: unlike everything else here, the result depends on the number of ranks.

    Args:
        images: [B, C, H, W] float.
        labels: [B] class indices.
        seed: the run's seed.
        step: the step the batch belongs to.
        num_classes: K.
        mixup: parameter a of Beta(a, a); 0 is off.
        cutmix: the same for cutmix.

    Returns:
        The mixed images and [B, K] targets that sum to 1."""
    words = hashes((seed, Purpose.MIX), np.array([step]), 2)[0].tolist()
    take_mixup = not cutmix or (mixup and words[0] < 1 << 63)
    chosen = (
        v2.MixUp(alpha=mixup, num_classes=num_classes)
        if take_mixup
        else v2.CutMix(alpha=cutmix, num_classes=num_classes)
    )
    with seeded(words[1]):
        images, targets = chosen(images, labels)
    return images, targets


@contextmanager
def seeded(word: int) -> Iterator[None]:
    """Seed torch's CPU generator inside and restore its state after.

    Generators of other devices are not touched."""
    state = torch.get_rng_state()
    # torch.manual_seed would reseed the GPUs too, and with them dropout
    torch.default_generator.manual_seed(word)
    try:
        yield
    finally:
        torch.set_rng_state(state)
