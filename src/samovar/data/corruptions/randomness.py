"""Random numbers of the corruptions: 16-bit words, and what tables make of them.

Words come raw from PCG64, whose stream NumPy keeps for good, unlike that of `Generator.normal` and
its kind; a table makes them normal. So the draws are the same on every machine and in every
version."""

from __future__ import annotations

import functools
import zlib

import numpy as np
import numpy.typing as npt
from numpy.random import PCG64, Generator
from scipy.special import ndtri

from samovar.data.draws import hashes

Words = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]

_IMAGE = zlib.crc32(
    b"corruptions: one image"
)  # names the stream; a purpose of `draws` is a small number


def image_seed(seed: int, index: int) -> int:
    """The seed of image number `index` of a data set: images then differ, and no order of work
    matters."""
    return int(hashes((seed, _IMAGE), np.array([index]), 1)[0, 0])


def generator(seed: int, name: str, severity: int) -> Generator:
    """The generator of one corruption of one image; independent for each (seed, name, severity)."""
    key = (seed, zlib.crc32(name.encode()), severity)
    return Generator(PCG64(hashes(key, np.arange(1), 2)[0].tolist()))


def words(rng: Generator, *shape: int) -> Words:
    """Uniform 16-bit integers."""
    count = int(np.prod(shape))
    raw = rng.bit_generator.random_raw(-(-count // 4))
    return np.asarray(raw, "<u8").view("<u2")[:count].reshape(shape)


def odd_bytes(rng: Generator, *shape: int) -> npt.NDArray[np.int16]:
    """Uniform odd numbers from -255 to 255: as many above zero as below."""
    count = int(np.prod(shape))
    both = words(rng, -(-count // 2)).view("u1")[:count].reshape(shape)
    return 2 * both.astype(np.int16) - 255


def normals(rng: Generator, *shape: int) -> Floats:
    """Standard normal, in 65536 steps of equal probability; at most 4.3 in size."""
    return normal_quantiles().take(words(rng, *shape))


def uniform(rng: Generator, low: float, high: float) -> float:
    """One number from [low, high)."""
    return low + (high - low) * int(words(rng, 1)[0]) / 65536


@functools.cache
def normal_quantiles() -> Floats:
    """[65536] the standard normal's quantile for each 16-bit word."""
    return ndtri((np.arange(65536) + 0.5) / 65536).astype(np.float32)  # type: ignore[no-any-return]
