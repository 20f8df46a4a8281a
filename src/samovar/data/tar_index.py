"""Find the images and classes in a tar file, also behind a damaged place.

A header of tar has a checksum, and zeros mark the end of a whole file. What lies between the last
member that was read and the next that can be is damaged; its place and size are noted."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from samovar.data.folders import EXTENSIONS

_BLOCK = tarfile.BLOCKSIZE
_END = 2 * _BLOCK
"""Bytes of zeros that end a tar file."""
_MOST_CLASSES = 1_000_000
_FAULTS = (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError)
"""What `tarfile` raises for damaged headers."""


@dataclass
class Found:
    """What a shard holds, and what it lacks."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Offset and length of each image, by key."""
    labels: dict[str, int] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    """Words for each damaged place, with its offset."""
    unread: int = 0
    """Bytes of all damaged places."""
    read: int = 0
    """Bytes of all members."""
    alone: list[str] = field(default_factory=list)
    """Keys without their image or their class."""
    is_cut: bool = False
    """Whether the shard has no end, so that nobody knows what is missing."""

    @property
    def keys(self) -> list[str]:
        """Return the keys of whole images, in the shard's order."""
        return [key for key in self.images if key in self.labels]


def index_shard(source: str, path: str) -> Found:
    """Return what a shard holds.

    Raises:
        ValueError: it is not there, no tar, or holds an image without a class or the reverse."""
    if not Path(path).is_file():
        raise ValueError(
            f"--data.source {source}: there is no shard {path}; quote the pattern, "
            "{000..146} counts"
        )
    found = Found()
    size = Path(path).stat().st_size
    try:
        # passes over what is no header, so that the images behind it are found
        with Path(path).open("rb") as file:
            tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
        with tarfile.open(path, "r:", ignore_zeros=True) as tar:
            _walk(source, path, tar, size, found)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"--data.source {source}: {path} is not an uncompressed tar that can be read"
        ) from error
    found.alone += sorted(set(found.images) ^ set(found.labels))
    if found.alone and not found.damage:
        raise ValueError(
            f"--data.source {source}: {path} holds {found.alone[0]} without its image or its .cls; "
            "repack it"
        )
    return found


def _walk(source: str, path: str, tar: tarfile.TarFile, size: int, found: Found) -> None:
    """Take every member of an open shard, and note where it is damaged."""
    expected = tried = 0
    while True:
        try:
            member = tar.next()
        except _FAULTS:
            # its header leads to more than there is; go on behind it
            tar.offset = tried = max(tar.offset, tried + _BLOCK)
            if tried >= size:
                break
            continue
        if member is None:
            break
        _note_gap(path, expected, member.offset, found)
        end = member.offset_data + (member.size if member.isfile() else 0)
        if end > size:
            expected = member.offset
            break
        _take(source, path, tar, member, found)
        expected = tried = member.offset_data + -(-(end - member.offset_data) // _BLOCK) * _BLOCK
        found.read += expected - member.offset
        # tarfile keeps every header it met: gigabytes for a large shard
        tar.members = []  # type: ignore[attr-defined]
    if size - expected < _END or _holds_data(path, size - _END, size):
        found.is_cut = True
        found.unread += size - expected
        found.damage.append(f"at byte {expected:,}, where it is cut: it ends without its end mark")
    elif _holds_data(path, expected, size):
        found.unread += max(0, size - expected - tarfile.RECORDSIZE)  # without zeros at the end
        found.damage.append(f"at byte {expected:,}")


def _note_gap(path: str, first: int, last: int, found: Found) -> None:
    """Note what lies between two members, where there should be nothing."""
    # the end of one shard, to which another was added
    joined = last - first == _END or last % tarfile.RECORDSIZE == 0
    if last > first and not (joined and not _holds_data(path, first, last)):
        found.unread += last - first
        found.damage.append(f"at byte {first:,}")


def _take(
    source: str, path: str, tar: tarfile.TarFile, member: tarfile.TarInfo, found: Found
) -> None:
    key, ending = _split_key(member.name)
    if not member.isfile():
        return
    if ending in EXTENSIONS:
        found.images[key] = (member.offset_data, member.size)
    elif ending == ".cls":
        found.labels[key] = _label(source, path, key, tar, member)


def _holds_data(path: str, first: int, last: int) -> bool:
    """Return whether bytes `first` to `last` of a file are other than zeros, which end a tar."""
    with Path(path).open("rb") as file:
        file.seek(first)
        while first < last:
            part = file.read(min(2**20, last - first))
            if part.strip(b"\0"):
                return True
            if not part:
                break
            first += len(part)
    return False


def _split_key(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    # webdataset's rule: the key ends at the first dot of the file's name
    stem, dot, ending = base.partition(".")
    return folder + slash + stem, (dot + ending).lower()


def _label(source: str, path: str, key: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(32) if file else b""
    if not text.strip().isdigit() or len(text) > 12 or int(text) >= _MOST_CLASSES:
        raise ValueError(
            f"--data.source {source}: {path} has {key}.cls = {text!r}; "
            f"a class index from 0 is needed, below {_MOST_CLASSES:,}"
        )
    return int(text)
