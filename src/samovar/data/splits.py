"""Splits of a source: arrays in memory, or encoded files read one by one.

Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from samovar.data.draws import Ints, Purpose, hashes
from samovar.data.folders import num_held_out, num_kept


@dataclass(frozen=True)
class Arrays:
    """Decoded images of one size, in memory."""

    labels: Ints
    """[n] class indices."""
    images: npt.NDArray[np.uint8]
    """[n, C, H, W], 0 to 255."""
    title: str = "image"

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the name of image `index` for messages."""
        return f"{self.title}[{index}]"

    def take(self, rows: Ints) -> Arrays:
        """Return the images at `rows`, in that order."""
        return Arrays(self.labels[rows], self.images[rows], self.title)


class Store(Protocol):
    """Encoded images by row.

    It is sent to worker processes, so it pickles small and holds no open file."""

    def read(self, row: int) -> bytes:
        """Return the bytes of one image file."""
        ...

    def name(self, row: int) -> str:
        """Return its path, or a name in place of one."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Images as encoded bytes (JPEG, PNG, ...), of any size."""

    labels: Ints
    """[n] class indices."""
    store: Store
    rows: Ints
    """[n] row of each image in `store`."""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the name of image `index` for messages."""
        return self.store.name(int(self.rows[index]))

    def read(self, index: int) -> bytes:
        """Return the bytes of image `index`."""
        return self.store.read(int(self.rows[index]))

    def take(self, rows: Ints) -> Encoded:
        """Return the images at `rows`, in that order."""
        return Encoded(self.labels[rows], self.store, self.rows[rows])


Split = Arrays | Encoded


@dataclass(frozen=True)
class Source:
    """A data set that the loaders can read."""

    name: str
    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    train: Split
    val: Split
    channels: int
    image_size: int | None
    """Side in pixels of every image; None if sizes vary."""
    notes: tuple[str, ...] = ()
    """Lines for the reader: which folder was taken as what, which files were left out."""


def encoded(store: Store, labels: Any) -> Encoded:
    """Return all rows of a store as a split."""
    labels = np.asarray(labels, np.int64)
    return Encoded(labels, store, np.arange(len(labels), dtype=np.int64))


def hold_out(
    labels: Ints, val_share: float, seed: int, purpose: Purpose = Purpose.HOLD_OUT
) -> tuple[Ints, Ints]:
    """Return rows that train and rows that validate, each in rising order.

    A share of each class validates, drawn by `seed`."""
    ranks, counts = _ranks_in_class(labels, purpose, seed)
    limits = np.array([num_held_out(int(count), val_share) for count in counts], np.int64)
    held = ranks < limits[labels]
    return np.flatnonzero(~held), np.flatnonzero(held)


def keep_fraction(labels: Ints, fraction: float, seed: int) -> Ints:
    """Return the rows of a share of each class, in rising order.

    A smaller share is a subset of a larger one."""
    ranks, counts = _ranks_in_class(labels, Purpose.FRACTION, seed)
    limits = np.array([num_kept(int(count), fraction) for count in counts], np.int64)
    return np.flatnonzero(ranks < limits[labels])


def in_proportion(labels: Ints, count: int, seed: int) -> Ints:
    """Return `count` rows (or all), in rising order, the classes in proportion to their sizes.

    Shares that are no whole numbers of images are rounded by largest remainder, so that exactly
    `count` rows come back. A share of every class is the same rows as `keep_fraction` takes."""
    ranks, counts = _ranks_in_class(labels, Purpose.FRACTION, seed)
    quotas = min(count, len(labels)) * counts / len(labels)
    limits = np.floor(quotas).astype(np.int64)
    # a stable sort, so that equal remainders go to the first classes
    order = np.argsort(limits - quotas, kind="stable")
    limits[order[: min(count, len(labels)) - limits.sum()]] += 1
    return np.flatnonzero(ranks < limits[labels])


def evenly(labels: Ints, count: int, seed: int) -> Ints:
    """Return `count` rows (or all), the classes in turn.

    Any first part of them is thus even over the classes."""
    ranks, _ = _ranks_in_class(labels, Purpose.FRACTION, seed)
    # by rank first: the first image of each class, then the second of each, ...
    return np.lexsort((labels, ranks))[:count]


def _ranks_in_class(labels: Ints, purpose: Purpose, seed: int) -> tuple[Ints, Ints]:
    """Return each row's place in its class's random order, [n], and the class sizes, [K]."""
    # sorting hashes within each class shuffles it, whatever the other classes hold
    words = hashes((seed, purpose), np.arange(len(labels)), 1)[:, 0]
    by_class = np.lexsort((words, labels))
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    ranks = np.empty(len(labels), np.int64)
    ranks[by_class] = np.arange(len(labels)) - starts[labels[by_class]]
    return ranks, counts
