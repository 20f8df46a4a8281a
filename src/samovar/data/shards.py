"""Webdataset tar shards as a store of images.

The place of every image is read once from the tar headers, then images are read by offset. So
shards can be read in any order, like any other source, and the `webdataset` package is not needed.
The layout is the plain one: uncompressed tars with `KEY.jpg` (or .png, .webp, ...) and `KEY.cls`, a
class index in ASCII; other endings (.json, .txt) are skipped. Reading the headers takes about a
minute per million images.

A damaged header, or a shard that is cut, costs the images there, and those that follow are found
again. What is lost counts as bad files do."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from samovar.data.badfiles import BadImages, allowed
from samovar.data.draws import Ints
from samovar.data.splits import Encoded, encoded
from samovar.data.tar_index import Found, index_shard

MOST_SHARDS = 1_000_000
"""Most names that a pattern may stand for."""


@dataclass(frozen=True)
class Shards:
    """A store of images inside tar files."""

    paths: tuple[str, ...]
    places: Ints
    """[n, 3]: shard, offset and length in bytes."""
    keys: np.ndarray[tuple[int], np.dtype[np.bytes_]]
    """[n] key of each image."""

    def read(self, row: int) -> bytes:
        """Return the bytes of one image file."""
        shard, offset, length = self.places[row].tolist()
        with open(self.paths[shard], "rb") as file:  # noqa: PTH123 (a Path costs as much as the open itself)
            file.seek(offset)
            data = file.read(length)
        if len(data) < length:  # it was whole when the headers were read
            raise OSError(f"the shard ends within it, at byte {offset + len(data):,}")
        return data

    def name(self, row: int) -> str:
        """Return `SHARD:KEY`."""
        return f"{self.paths[self.places[row, 0]]}:{self.keys[row].decode()}"


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern expands to.

    `{a,b}` lists alternatives, `{000..146}` counts and keeps leading zeros.

    Raises:
        ValueError: the pattern stands for more than `MOST_SHARDS` names."""
    parts = [_alternatives(part) for part in re.split(r"(\{[^{}]*\})", pattern)]
    count = math.prod(map(len, parts))
    if count > MOST_SHARDS:
        raise ValueError(
            f"{pattern} stands for {count:,} shards; give a pattern of {MOST_SHARDS:,} at most"
        )
    return ["".join(choice) for choice in itertools.product(*parts)]


@dataclass(frozen=True)
class _Counted:
    """The numbers of `{000..146}` as text, made one by one."""

    numbers: range
    width: int

    def __len__(self) -> int:
        return max(0, self.numbers.stop - self.numbers.start)

    def __iter__(self) -> Iterator[str]:
        return (str(number).zfill(self.width) for number in self.numbers)


def _alternatives(part: str) -> list[str] | _Counted:
    if not (part.startswith("{") and part.endswith("}")):
        return [part]
    counted = re.fullmatch(r"\{(\d{1,15})\.\.(\d{1,15})\}", part)
    if counted is None:
        return part[1:-1].split(",")
    first, last = counted.groups()
    return _Counted(range(int(first), int(last) + 1), len(first))


def index_shards(
    source: str, pattern: str, max_bad_share: float = 0.0
) -> tuple[Encoded, tuple[str, ...]]:
    """Return every image of the shards that a pattern names, and a line on what is damaged.

    Args:
        source: the value of `--data.source`, for messages.
        pattern: names of shards.
        max_bad_share: share of the images that damage may cost, as `--data.max-bad-share`.

    Raises:
        BadImages: damage costs more.
        ValueError: a missing shard, one that is no plain tar, an image without a class or the
            reverse."""
    try:
        paths = expand(pattern)
    except ValueError as error:
        raise ValueError(f"--data.source {source}: {error}") from None
    shards = {path: index_shard(source, path) for path in paths}
    places: list[tuple[int, int, int]] = []
    keys: list[bytes] = []
    labels: list[int] = []
    for number, found in enumerate(shards.values()):
        for key in found.keys:
            places.append((number, *found.images[key]))
            keys.append(key.encode(errors="surrogateescape"))
            labels.append(found.labels[key])
    note = _damage(source, shards, len(labels), max_bad_share)
    if not labels:
        raise ValueError(
            f"--data.source {source}: no images in {pattern}; shards hold KEY.jpg and KEY.cls"
        )
    return encoded(Shards(tuple(paths), np.array(places, np.int64), np.array(keys)), labels), note


def _damage(
    source: str, shards: dict[str, Found], images: int, max_bad_share: float
) -> tuple[str, ...]:
    """Return a line on damaged shards, none if all are whole.

    Raises:
        BadImages: they cost more images than allowed."""
    damaged = {path: found for path, found in shards.items() if found.damage}
    if not damaged:
        return ()
    largest = max(len(found.keys) for found in shards.values())
    lost = 0
    for found in damaged.values():
        # a shard without an end may lack anything; others tell its size, and of one alone half may
        # be gone
        missing = largest - len(found.keys) if len(shards) > 1 else len(found.keys)
        by_size = round(found.unread * len(found.keys) / max(1, found.read))
        known = max(len(found.damage), len(found.alone), by_size)
        lost += max(known, missing) if found.is_cut else known
    path, first = next((path, found.damage[0]) for path, found in damaged.items())
    more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    line = f"{path} is damaged {first}{more}: about {lost:,} of {images + lost:,} images are lost"
    if lost > allowed(images + lost, max_bad_share):
        raise BadImages(
            f"--data.source {source}: {line}, more than --data.max-bad-share {max_bad_share:g}; "
            "fetch the shard again, leave it out, or raise the share"
        )
    return (line,)
