"""Randomness as a pure function: the image at each position of the training stream, and its draws.

Every number is a hash of (seed, purpose, position), so nothing has to be replayed or shared: any
step can be computed first, by any worker, on any rank. The hash is integer arithmetic, the same on
every machine and in every version."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


class Purpose(IntEnum):
    """Purpose of a draw; each has an independent stream.

    A new augmentation thus leaves the draws of the others alone. The values are part of every run's
    identity: append, never renumber."""

    ORDER = 0
    FLIP = 1
    PAD = 2
    AFFINE = 3
    INCEPTION = 4
    RANDAUGMENT = 5
    MIX = 6
    REPLACEMENT = 7
    HOLD_OUT = 8
    FRACTION = 9
    TUNE = 10
    AUTOAUGMENT = 11


def hashes(key: tuple[int, ...], counters: Ints, k: int) -> Words:
    """Return `k` 64-bit words for each counter; a pure function of the arguments.

    Args:
        key: integers that name the stream, for instance (seed, purpose).
        counters: [n] integers.
        k: words per counter.

    Returns:
        [n, k] uint64.

    Source: Steele, Lea & Flood, Fast splittable pseudorandom number generators (2014), with
        Stafford's mixer 13."""
    rows = _mix(_state(key) + _times_golden(np.asarray(counters, np.int64).astype(np.uint64)))
    columns = _times_golden(np.arange(k, dtype=np.uint64))
    return _mix(rows[:, None] + columns)


@functools.lru_cache(maxsize=1024)
def _state(key: tuple[int, ...]) -> Words:
    state = np.zeros(1, np.uint64)
    for word in key:
        state = _mix(state + _times_golden(np.array([word & _MASK], np.uint64)))
    return state


def _times_golden(words: Words) -> Words:
    # + 1, so that zero is no fixed point of the mixer
    return (words + np.uint64(1)) * np.uint64(_GOLDEN)


def _mix(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(seed: int, purpose: Purpose, positions: Ints, k: int, attempt: int = 0) -> Floats:
    """Return independent draws from [0, 1) for each position.

    Args:
        seed: the run's seed; any integer, taken modulo 2^64.
        purpose: the stream.
        positions: [n] positions in the stream of training examples.
        k: draws per position.
        attempt: further independent draws for the same position, where the first were rejected.

    Returns:
        [n, k] float64, multiples of 2^-53."""
    words = hashes((seed, purpose, attempt), positions, k)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, n: int) -> Ints:
    """Return the permutation of `n` images in an epoch, read-only.

    It costs one sort (0.1 s per million images), then it is cached."""
    words = hashes((seed, Purpose.ORDER, epoch), np.arange(n), 1)[:, 0]
    # stable, so that equal hashes have the same order everywhere
    permutation = np.argsort(words, kind="stable").astype(np.int64)
    permutation.flags.writeable = False
    return permutation


@dataclass(frozen=True)
class Plan:
    """Images of each step: an endless stream of shuffled epochs, cut into batches.

    Position p of the stream holds image `order(seed, p // n, n)[p % n]`, so every image is seen
    equally often and none is dropped; a batch may straddle two epochs. Step t takes the positions
    from t * batch_size, and rank r of W takes the r-th of W contiguous slices of them. With several
    views the stream holds each image that many times in a row, so p above is the position divided
    by `views`; each view has draws of its own.

    Raises:
        ValueError: no images, or a batch that does not divide over the ranks."""

    seed: int
    num_images: int
    batch_size: int
    """Images per step over all ranks."""
    rank: int = 0
    world_size: int = 1
    views: int = 1
    """Consecutive positions that hold the same image."""

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError("there are no training images to take batches from")
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise ValueError(
                f"--data.batch-size {self.batch_size} does not divide over {self.world_size} "
                f"ranks; pick a multiple of {self.world_size}"
            )

    @property
    def rows(self) -> int:
        """Return the positions of a step on this rank: its images times their views."""
        return self.batch_size * self.views // self.world_size

    def positions(self, step: int) -> Ints:
        """Return the stream positions of this rank's slice of a step, [rows]."""
        first = (step * self.world_size + self.rank) * self.rows
        return np.arange(first, first + self.rows, dtype=np.int64)

    def images(self, positions: Ints) -> Ints:
        """Return the index of the image at each position, [n]."""
        epochs, places = np.divmod(positions // self.views, self.num_images)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = order(self.seed, int(epoch), self.num_images)[places[here]]
        return indices
