"""A batch of images, and the mixing of its images under mixup and cutmix."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from torch import Tensor

from samovar.config import DataConfig
from samovar.data.seeded import mix


@dataclass(frozen=True)
class Batch:
    """Images with their classes."""

    images: Tensor
    """[B, C, H, W] float32 in [0, 1], on the device."""
    labels: Tensor
    """[B] int64 class indices."""
    targets: Tensor | None = None
    """[B, K] shares of each class under mixup or cutmix, else None."""
    index: Tensor | None = None
    """[B] int64 place of each image in the training split, on the host; None if nobody asks."""
    epoch: Tensor | None = None
    """[B] int64 epoch of each image, on the host; None if nobody asks."""
    teacher: Tensor | None = None
    """[B, K] logits that the network should stay close to, or None."""
    taught: Tensor | None = None
    """[B] bool, the images that have such logits, or None."""

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, size: int) -> Iterator[Batch]:
        """Yield contiguous groups of `size` examples, the last maybe smaller, without a copy."""
        for first in range(0, len(self), size):
            part = slice(first, first + size)
            found = {name: value[part] for name, value in vars(self).items() if value is not None}
            yield Batch(**found)


def mixed(
    stream: Generator[Batch, None, None],
    config: DataConfig,
    steps: range,
    seed: int,
    num_classes: int,
) -> Generator[Batch, None, None]:
    """Yield the batches of the steps, their images mixed where the settings ask for it."""
    try:
        for step in steps:
            # No name for the batch here or below: a name would keep the memory of the last batch
            # while the next is made.
            yield _mix(next(stream), config, seed, step, num_classes)
    finally:
        stream.close()


def _mix(batch: Batch, config: DataConfig, seed: int, step: int, num_classes: int) -> Batch:
    if not (config.mixup or config.cutmix):
        return batch
    images, targets = mix(
        batch.images, batch.labels, seed, step, num_classes, config.mixup, config.cutmix
    )
    return Batch(images, batch.labels, targets)
