"""Decode images in worker processes, a few at a time, in a fixed order.

A worker gets a task (images and their positions in the training stream) and returns the pixels. It
holds no state and draws nothing of its own, so the number of workers and their timing change
nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from threading import current_thread, main_thread
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from samovar.config import DataConfig, cores
from samovar.data.decode import UnreadableImage, decode
from samovar.data.draws import Ints, Purpose, hashes
from samovar.data.pipeline import augment, crop_each, frame
from samovar.data.splits import Arrays, Split
from samovar.runtime.signals import ignored_sigint

IMAGES_PER_TASK = 32  # returning a task costs about 2 ms whatever its size
DECODED_AT_ONCE = 8  # shares the cost of the draws; more would hold too many 40 MB photos at once
MAX_REPLACEMENTS = 16


class Task(NamedTuple):
    """Images that a worker has to make."""

    indices: Ints
    positions: Ints | None
    """Positions in the training stream; None for evaluation, which draws nothing."""


class Made(NamedTuple):
    """A worker's answer to a task."""

    images: Tensor
    """[b, C, S, S] uint8."""
    bad: list[tuple[int, str]]
    """Index and reason of every image that could not be read."""
    lost: list[int]
    """Places in the task without an image: no replacement was found or, in evaluation, none was
    sought."""


@dataclass(frozen=True)
class Maker(Dataset[Made]):
    """Maker of the images of tasks; it is sent to the workers."""

    split: Split
    config: DataConfig
    seed: int = 0

    def __getitem__(self, task: Task) -> Made:
        """Read, frame and augment a task's images."""
        channels = self.split.images.shape[1] if isinstance(self.split, Arrays) else 3
        images = torch.empty(
            len(task.indices), channels, *[self.config.image_size] * 2, dtype=torch.uint8
        )
        bad: list[tuple[int, str]] = []
        lost: list[int] = []
        for first in range(0, len(images), DECODED_AT_ONCE):
            places = range(first, min(first + DECODED_AT_ONCE, len(images)))
            # each image is decoded once for all its views, which lie side by side
            decoded: dict[int, Tensor | None] = {}
            read = {
                p: image for p in places if (image := self._read(task, p, bad, decoded)) is not None
            }
            lost += [place for place in places if place not in read]
            for place, image in zip(
                read, self._frame(list(read.values()), list(read), task), strict=True
            ):
                images[place] = image
        if task.positions is not None:
            images = augment(images, self.config, self.seed, task.positions)
        return Made(images, bad, lost)

    def _frame(self, images: list[Tensor], places: list[int], task: Task) -> list[Tensor]:
        if task.positions is not None and self.config.crop == "inception":
            return crop_each(images, self.config, self.seed, task.positions[places])
        fixed = isinstance(self.split, Arrays)
        return [frame(image[None], self.config.image_size, fixed=fixed)[0] for image in images]

    def _read(
        self, task: Task, place: int, bad: list[tuple[int, str]], decoded: dict[int, Tensor | None]
    ) -> Tensor | None:
        """Return an image, [C, H, W] uint8; None if it is lost.

        In training an unreadable image is replaced by one of its class, chosen by (seed,
        position)."""
        index = int(task.indices[place])
        if index not in decoded:
            decoded[index] = self._try(index, bad)
        image = decoded[index]
        if image is None and task.positions is not None:
            # an image of the same class keeps the label right
            mates = np.flatnonzero(self.split.labels == self.split.labels[index])
            words = hashes(
                (self.seed, Purpose.REPLACEMENT), task.positions[[place]], MAX_REPLACEMENTS
            )[0]
            for mate in mates[(words % np.uint64(len(mates))).astype(np.int64)].tolist():
                image = self._try(mate, bad)
                if image is not None:
                    break
        return image

    def _try(self, index: int, bad: list[tuple[int, str]]) -> Tensor | None:
        if isinstance(self.split, Arrays):
            return torch.from_numpy(self.split.images[index])
        try:
            return decode(self.split.read(index))
        except UnreadableImage as error:
            bad.append((index, str(error)))
        except OSError as error:
            bad.append((index, error.strerror or str(error)))
        return None


def make_all(
    maker: Maker, tasks: Iterable[Task], *, workers: int, ahead: int, device: torch.device
) -> Generator[Made, None, None]:
    """Yield the answers to tasks, in order; closing the generator ends the workers.

    Args:
        maker: the maker of the images.
        tasks: the tasks; read lazily.
        workers: processes; 0 works in this one.
        ahead: images to have ready or in the making.
        device: the device they will go to; memory is pinned for a GPU."""
    # in this process, which tests and small evaluations use
    if workers == 0:
        yield from map(maker.__getitem__, tasks)
        return
    loader = DataLoader(
        maker,
        sampler=tasks,
        batch_size=None,  # a task is a batch already
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=max(2, -(-ahead // (workers * IMAGES_PER_TASK))),
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        multiprocessing_context=worker_context(),
        # without its own, the loader draws from the generator that makes dropout masks
        generator=torch.Generator(),
    )
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        del iterator  # its destructor ends the workers and waits for them


def num_workers(config: DataConfig) -> int:
    """Return the number of processes for `--data.workers`.

    -1 divides the cores this process may use among the ranks of its machine."""
    if config.workers >= 0:
        return config.workers
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def worker_context() -> BaseContext:
    """Return the start method of worker processes: a server without threads, if there is one."""
    # Not fork: this process has threads, and often a GPU context, which a fork copies in whatever
    # state they are.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver  # not on every system

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not by each worker
    # Workers have the server's handlers until they set their own: a control-C in between must not
    # end them. Other threads cannot set handlers.
    with ignored_sigint() if current_thread() is main_thread() else contextlib.nullcontext():
        forkserver.ensure_running()
    return context


def _start_worker(_: int) -> None:
    # Control-C reaches every process of the terminal; the parent finishes its step and ends the
    # workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_is(made: Any) -> Any:
    return made
