"""Webdataset tar shards as a store of images.

The place of every image is read once from the tar headers, then images are read by offset. So
shards can be read in any order, like any other source, and the `webdataset` package is not needed.
The layout is the plain one: uncompressed tars with `KEY.jpg` (or .png, .webp, ...) and `KEY.cls`, a
class index in ASCII; other endings (.json, .txt) are skipped. Reading the headers takes about a
minute per million images."""

from __future__ import annotations

import itertools
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samovar.data.draws import Ints
from samovar.data.folders import EXTENSIONS
from samovar.data.splits import Encoded, encoded


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
            return file.read(length)

    def name(self, row: int) -> str:
        """Return `SHARD:KEY`."""
        return f"{self.paths[self.places[row, 0]]}:{self.keys[row].decode()}"


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern expands to.

    `{a,b}` lists alternatives, `{000..146}` counts and keeps leading zeros."""
    parts = re.split(r"(\{[^{}]*\})", pattern)
    return ["".join(choice) for choice in itertools.product(*map(_alternatives, parts))]


def _alternatives(part: str) -> list[str]:
    if not (part.startswith("{") and part.endswith("}")):
        return [part]
    counted = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part)
    if counted is None:
        return part[1:-1].split(",")
    first, last = counted.groups()
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def index_shards(source: str, pattern: str) -> Encoded:
    """Return every image of the shards that a pattern names.

    Raises:
        ValueError: a missing shard, one that is no plain tar, an image without a class or the
            reverse."""
    paths = expand(pattern)
    places: list[tuple[int, int, int]] = []
    keys: list[bytes] = []
    labels: list[int] = []
    for number, path in enumerate(paths):
        for key, offset, length, label in _index_shard(source, path):
            places.append((number, offset, length))
            keys.append(key.encode())
            labels.append(label)
    if not labels:
        raise ValueError(
            f"--data.source {source}: no images in {pattern}; shards hold KEY.jpg and KEY.cls"
        )
    return encoded(Shards(tuple(paths), np.array(places, np.int64), np.array(keys)), labels)


def _index_shard(source: str, path: str) -> list[tuple[str, int, int, int]]:
    """Return (key, offset, length, label) of each image of a shard, in the shard's order."""
    if not Path(path).is_file():
        raise ValueError(
            f"--data.source {source}: there is no shard {path}; quote the pattern, "
            "{000..146} counts"
        )
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, ending = _split_key(member.name)
                if member.isfile() and ending in EXTENSIONS:
                    images[key] = (member.offset_data, member.size)
                elif member.isfile() and ending == ".cls":
                    labels[key] = _label(source, path, key, tar, member)
                # tarfile keeps every header it met: gigabytes for a large shard
                tar.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"--data.source {source}: {path} is not an uncompressed tar that can be read"
        ) from error
    alone = sorted(set(images) ^ set(labels))
    if alone:
        raise ValueError(
            f"--data.source {source}: {path} holds {alone[0]} without its image or its .cls; "
            "repack it"
        )
    return [(key, *place, labels[key]) for key, place in images.items()]


def _split_key(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    # webdataset's rule: the key ends at the first dot of the file's name
    stem, dot, ending = base.partition(".")
    return folder + slash + stem, (dot + ending).lower()


def _label(source: str, path: str, key: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(32) if file else b""
    if not text.strip().isdigit() or len(text) > 12:
        raise ValueError(
            f"--data.source {source}: {path} has {key}.cls = {text!r}; "
            "a class index from 0 is needed"
        )
    return int(text)
