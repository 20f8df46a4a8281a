"""Batches of images for training steps and for evaluation.

The training batch of step t is a function of (seed, t) and the data settings. It does not depend on
where a loader was started, on the number of workers or on the ranks: side by side in rank order,
the slices of 1, 2 or 4 ranks are the same global batch, pixel for pixel. Mixup and cutmix are the
exception to the last, as partners come from the rank's own slice. The resident and the streaming
loader give the same pixels too, except under the Inception crop, where rounding may move a value by
one grey level. All this holds for one version of torch, torchvision and Pillow, on one kind of
device; the choice of the images of a step, of those mirrored and of the place of each crop holds
everywhere and for good."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from samovar.anymodel.devices import to_device
from samovar.config import DataConfig
from samovar.data.badfiles import BadFiles
from samovar.data.batch import Batch as Batch
from samovar.data.batch import mixed
from samovar.data.draws import Ints, Plan
from samovar.data.pipeline import augment, crop_all, frame, to_floats
from samovar.data.splits import Arrays, Encoded, Source, Split
from samovar.data.streaming import IMAGES_PER_TASK, Made, Maker, Task, make_all, num_workers
from samovar.runtime.heartbeat import doing

RESIDENT_SHARE = 0.25
"""Largest share of a GPU's memory that resident images may take under `--data.loader auto`."""


def choose_loader(
    source: Source, config: DataConfig, device: torch.device
) -> Literal["resident", "streaming"]:
    """Return the loader of `--data.loader`, with `auto` resolved.

    `auto` is resident for sources that are arrays of one size. On a GPU they must also take at most
    a quarter of its memory, and neither AutoAugment nor RandAugment may be on: these work image by
    image, which is faster in the workers.

    Raises:
        ValueError: resident is asked for, but the images are files of varied size."""
    train = source.train
    if isinstance(train, Encoded):
        if config.loader == "resident":
            raise ValueError(
                "--data.loader resident keeps decoded images of one size, but --data.source "
                f"{source.name} has files of varied size; give --data.loader streaming or auto"
            )
        return "streaming"
    if config.loader != "auto":
        return config.loader
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        image_by_image = config.randaugment_layers or config.autoaugment != "none"
        if image_by_image or train.images.nbytes > RESIDENT_SHARE * memory:
            return "streaming"
    return "resident"


def batches(
    source: Source,
    config: DataConfig,
    *,
    seed: int,
    start: int = 0,
    stop: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    bad_files: Path | None = None,
) -> Generator[Batch, None, None]:
    """Yield this rank's training batches of steps `start` to `stop` - 1.

    Any start costs the same. Close the generator when done. Workers of the streaming loader import
    the main module, so a script that calls this needs the usual `if __name__ == "__main__":`.

    Args:
        source: the source whose training split is used.
        config: batch size over all ranks, augmentation, loader.
        seed: the run's seed.
        start: first step.
        stop: step after the last.
        device: the device of the batches.
        rank: this process among `world_size`.
        world_size: processes that share a batch.
        bad_files: file that names unreadable images.

    Raises:
        ValueError: a batch that does not divide over the ranks, a loader that does not fit the
            source.
        BadImages: more images are unreadable than `config.max_bad_share`."""
    plan = Plan(seed, len(source.train), config.batch_size, rank, world_size, config.views)
    steps = range(start, stop)
    if choose_loader(source, config, device) == "resident" and isinstance(source.train, Arrays):
        stream = _resident(source.train, config, plan, steps, device)
    else:
        bad = BadFiles(source.train, "train", config.max_bad_share, bad_files)
        stream = _streaming(source.train, config, plan, steps, device, bad)
    return mixed(stream, config, steps, seed, len(source.classes))


def _resident(
    split: Arrays, config: DataConfig, plan: Plan, steps: range, device: torch.device
) -> Generator[Batch, None, None]:
    images, labels = (
        to_device(torch.from_numpy(split.images), device),
        to_device(torch.from_numpy(split.labels), device),
    )
    # an Inception crop needs the original size, all else starts from framed images
    if config.crop != "inception":
        images = _framed(images, config.image_size)
    for step in steps:
        positions = plan.positions(step)
        rows = to_device(torch.from_numpy(plan.images(positions)), device)
        yield Batch(_augmented(images[rows], config, plan.seed, positions), labels[rows])


def _augmented(images: Tensor, config: DataConfig, seed: int, positions: Ints) -> Tensor:
    if config.crop == "inception":
        images = crop_all(images, config, seed, positions)
    return to_floats(augment(images, config, seed, positions))


def _framed(images: Tensor, size: int) -> Tensor:
    """Scale images of one size, a thousand at a time to bound the memory it takes."""
    if images.shape[-1] == size:
        return images
    parts = (images[first : first + 1000] for first in range(0, len(images), 1000))
    return torch.cat([frame(part, size, fixed=True) for part in parts])


def _streaming(
    split: Split, config: DataConfig, plan: Plan, steps: range, device: torch.device, bad: BadFiles
) -> Generator[Batch, None, None]:
    tasks = (
        Task(plan.images(positions), positions)
        for step in steps
        for positions in _parts(plan.positions(step), IMAGES_PER_TASK)
    )
    workers = num_workers(config)
    stream = make_all(
        Maker(split, config, plan.seed), tasks, workers=workers, ahead=2 * plan.rows, device=device
    )
    try:
        for step in steps:
            labels = torch.from_numpy(split.labels[plan.images(plan.positions(step))])
            yield Batch(_collected(stream, plan.rows, bad, device), to_device(labels, device))
    finally:
        stream.close()


def _collected(stream: Iterator[Made], count: int, bad: BadFiles, device: torch.device) -> Tensor:
    images = torch.empty(0)
    for first in range(0, count, IMAGES_PER_TASK):
        made = next(stream)
        bad.add(made.bad)
        if made.lost:
            raise bad.error("and a class has nothing to put in their place")
        if first == 0:
            images = torch.empty(count, *made.images.shape[1:], device=device)
        # sent as bytes and made floats on the device: a quarter of the transfer
        sent = to_device(made.images, device)
        images[first : first + IMAGES_PER_TASK].copy_(sent).div_(255)
    return images


def _parts(values: Ints, size: int) -> Iterator[Ints]:
    return (values[first : first + size] for first in range(0, len(values), size))


def eval_batches(
    split: Split,
    config: DataConfig,
    *,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    bad_files: Path | None = None,
    role: str = "val",
) -> Generator[Batch, None, None]:
    """Yield this rank's share of a split: each image once, in order, nothing random.

    Ranks take contiguous shares that differ by one image at most. The last batch may be smaller,
    and so may any other, since unreadable images are left out: count examples, not batches.

    Args:
        split: the images.
        config: `image_size`, `workers`, `max_bad_share`.
        batch_size: images per batch on this rank.
        device: the device of the batches.
        rank: this process among `world_size`.
        world_size: processes that share the split.
        bad_files: file that names unreadable images.
        role: name of the split in that file.

    Raises:
        BadImages: more images are unreadable than `config.max_bad_share`."""
    rows = np.arange(len(split) * rank // world_size, len(split) * (rank + 1) // world_size)
    parts = list(_parts(rows, batch_size))
    if isinstance(split, Arrays):
        stream = _eval_arrays(split, config, parts, device)
    else:
        bad = BadFiles(split, role, config.max_bad_share, bad_files)
        stream = _eval_encoded(split, config, parts, device, bad)
    return _told(stream, f"{role} images", len(rows))


def _told(
    stream: Generator[Batch, None, None], what: str, total: int
) -> Generator[Batch, None, None]:
    """Yield the batches, and count their images for the heartbeat."""
    with contextlib.closing(stream), doing(what, total) as activity:

        def counted(batch: Batch) -> Batch:
            activity.advance(len(batch))
            return batch

        # map, as a loop's name for the batch would keep its memory while the next is made
        yield from map(counted, stream)


def _eval_arrays(
    split: Arrays, config: DataConfig, parts: list[Ints], device: torch.device
) -> Generator[Batch, None, None]:
    for rows in parts:
        images = to_device(torch.from_numpy(split.images[rows]), device)
        labels = to_device(torch.from_numpy(split.labels[rows]), device)
        yield Batch(to_floats(frame(images, config.image_size, fixed=True)), labels)


def _eval_encoded(
    split: Encoded, config: DataConfig, parts: list[Ints], device: torch.device, bad: BadFiles
) -> Generator[Batch, None, None]:
    tasks = [Task(rows, None) for part in parts for rows in _parts(part, IMAGES_PER_TASK)]
    # a single task is done here: starting a worker would take longer
    workers = min(num_workers(config), max(0, len(tasks) - 1))
    ahead = 2 * max(map(len, parts), default=0)
    stream = make_all(Maker(split, config), tasks, workers=workers, ahead=ahead, device=device)
    try:
        for part in parts:
            images, rows = [], []
            for task in _parts(part, IMAGES_PER_TASK):
                made: Made = next(stream)
                bad.add(made.bad)
                kept = [place for place in range(len(task)) if place not in made.lost]
                images.append(to_device(made.images[kept] if made.lost else made.images, device))
                rows.append(task[kept])
            labels = to_device(torch.from_numpy(split.labels[np.concatenate(rows)]), device)
            if len(labels):
                yield Batch(to_floats(torch.cat(images)), labels)
    finally:
        stream.close()
