"""Random numbers of the corruptions: 16-bit words, turned into other distributions by tables.

Words come raw from PCG64, whose stream NumPy keeps stable, unlike that of `Generator.normal` and
the like; a table makes them normal. So the draws are the same on every machine and in every
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

# names the stream, apart from the purposes of `draws`, which are small numbers
_IMAGE = zlib.crc32(b"corruptions: one image")


def image_seed(seed: int, index: int) -> int:
    """Return the seed of image `index` of a data set.

    Images then have noise of their own, in any order of work."""
    return int(hashes((seed, _IMAGE), np.array([index]), 1)[0, 0])


def generator(seed: int, name: str, severity: int) -> Generator:
    """Return the generator for a corruption of an image, independent for each set of arguments."""
    key = (seed, zlib.crc32(name.encode()), severity)
    return Generator(PCG64(hashes(key, np.arange(1), 2)[0].tolist()))


def words(rng: Generator, *shape: int) -> Words:
    """Return uniform 16-bit integers."""
    count = int(np.prod(shape))
    raw = rng.bit_generator.random_raw(-(-count // 4))
    return np.asarray(raw, "<u8").view("<u2")[:count].reshape(shape)


def odd_bytes(rng: Generator, *shape: int) -> npt.NDArray[np.int16]:
    """Return uniform odd numbers from -255 to 255, symmetric about zero."""
    count = int(np.prod(shape))
    both = words(rng, -(-count // 2)).view("u1")[:count].reshape(shape)
    return 2 * both.astype(np.int16) - 255


def normals(rng: Generator, *shape: int) -> Floats:
    """Return standard normal numbers, in 65536 steps of equal probability; at most 4.3 in size."""
    return normal_quantiles().take(words(rng, *shape))


def uniform(rng: Generator, low: float, high: float) -> float:
    """Return one number from [low, high)."""
    return low + (high - low) * int(words(rng, 1)[0]) / 65536


@functools.cache
def normal_quantiles() -> Floats:
    """Return the standard normal's quantile for each 16-bit word, [65536]."""
    return ndtri((np.arange(65536) + 0.5) / 65536).astype(np.float32)  # type: ignore[no-any-return]
