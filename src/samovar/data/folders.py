"""Folders of images, read with `os.scandir`: classes, files, what is left out, how many train.

Nothing here needs torch."""

from __future__ import annotations

import contextlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from samovar.data.sniff import is_readable_format

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".pgm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
"""Endings of images. A file with another one is opened to see whether its content is an image."""

_JUNK = frozenset(
    (
        *("__macosx", "network trash folder", "temporary items", "thumbs", "thumbnails"),
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", "#recycle", "#snapshot"),
        *("$recycle.bin", "recycler", "system volume information", "lost+found", "found.000"),
        *("__pycache__", "ipynb_checkpoints"),
    )
)
"""Folders that systems and tools leave beside data, in lower case; hidden ones count as well."""


@dataclass
class LeftOut:
    """What a reader of folders passed over, for one line to the user."""

    endings: Counter[str] = field(default_factory=Counter)
    """Number of files whose content no decoder reads, by ending."""
    folders: set[str] = field(default_factory=set)
    """Names of folders that hold no data of the user."""
    loops: set[str] = field(default_factory=set)
    """Links to a folder that was read already."""
    loose: int = 0
    """Images beside class folders, which have no class."""
    special: int = 0
    """Pipes, sockets and devices, which block whoever opens them."""

    def __bool__(self) -> bool:
        return bool(self.endings or self.folders or self.loops or self.loose or self.special)

    def __str__(self) -> str:
        parts = []
        if self.endings:
            counts = [f"{n:,} {ending}" for ending, n in self.endings.most_common()]
            parts.append(f"{_some(counts)} (files that no decoder reads)")
        if self.loose:
            images = "image" if self.loose == 1 else "images"
            parts.append(f"{self.loose:,} {images} outside of the class folders")
        if self.special:
            parts.append(f"{self.special:,} pipes, sockets or devices named as images")
        if self.folders:
            parts.append(f"folders {_some(sorted(self.folders))}")
        if self.loops:
            parts.append(f"links to folders already read {_some(sorted(self.loops))}")
        return f"left out: {'; '.join(parts)}"


def _some(items: list[str], most: int = 8) -> str:
    more = [f"{len(items) - most} more kinds"] if len(items) > most else []
    return ", ".join(items[:most] + more)


def num_held_out(count: int, val_share: float) -> int:
    """Return how many images of a class of `count` validate.

    It is the nearest number, at least one, but one image always stays to train on."""
    return min(max(1, round(val_share * count)), count - 1) if val_share > 0 else 0


def num_kept(count: int, fraction: float) -> int:
    """Return how many images of a class of `count` a `--data.fraction` keeps.

    It is the nearest number, at least one."""
    return max(1, round(fraction * count))


def list_classes(
    source: str, folder: Path, left_out: LeftOut | None = None
) -> dict[str, list[str]]:
    """Return the images of each class folder, as paths below `folder`.

    Classes and paths are sorted. Two spellings of one name in Unicode are one class.

    Args:
        source: the value of `--data.source`, for messages.
        folder: the folder that holds the class folders.
        left_out: counts what is passed over.

    Raises:
        ValueError: no class folders, or a class without images."""
    left = LeftOut() if left_out is None else left_out
    classes: dict[str, list[str]] = {}
    with readable(source):
        above = _above(folder)
        for name in subfolders(folder, left):
            # macOS writes é as two characters, Linux as one
            files = classes.setdefault(unicodedata.normalize("NFC", name), [])
            files += _images_below(folder / name, name, left, set(above))
        if classes:
            left.loose += sum(1 for _ in images_beside(folder))
    classes = {name: sorted(classes[name]) for name in sorted(classes)}
    if not classes:
        raise ValueError(
            f"--data.source {source}: {folder} holds no class folders; put each class into its own "
            "folder"
        )
    empty = [name for name, files in classes.items() if not files]
    endings = f"known endings: {' '.join(EXTENSIONS)}{f'; {left}' if left else ''}"
    if len(empty) == len(classes):
        raise ValueError(f"--data.source {source}: no images in {folder}; {endings}")
    if empty:
        raise ValueError(
            f"--data.source {source}: {folder / empty[0]} holds no images; add some or remove the "
            f"folder ({endings})"
        )
    return classes


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn an error of the file system inside into a ValueError of one line."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"--data.source {source}: cannot read {error.filename or 'it'}: "
            f"{error.strerror or error}"
        ) from error


def subfolders(path: Path, left_out: LeftOut | None = None) -> list[str]:
    """Return the sorted names of the folders in `path`, without hidden ones and leftovers."""
    with os.scandir(path) as entries:
        found = {entry.name: entry.is_symlink() for entry in entries if _is_dir(entry)}
    junk = {name for name in found if _is_junk(name)}
    above = _above(path) if any(found.values()) else set()
    loops = {name for name, link in found.items() if link and _identity(path / name) in above}
    if left_out is not None:
        left_out.folders |= junk
        left_out.loops |= loops - junk
    return sorted(set(found) - junk - loops)


def images_beside(path: Path) -> Iterator[str]:
    """Yield the names of the images in `path` itself, those with a known ending first."""
    unlisted = []
    with os.scandir(path) as entries:
        for entry in entries:
            if _is_junk(entry.name) or _is_dir(entry) or _is_special(entry):
                continue
            if entry.name.lower().endswith(EXTENSIONS):
                yield entry.name
            else:
                unlisted.append(entry)
    yield from (entry.name for entry in unlisted if _is_image(entry))


def images_in(path: Path, below: str, left_out: LeftOut | None = None) -> Iterator[str]:
    """Yield the images of a folder and its subfolders, as paths that begin with `below`.

    Hidden files and folders are left out, and so are folders that systems leave beside data. A
    folder that links make appear again is read once."""
    return _images_below(path, below, LeftOut() if left_out is None else left_out, _above(path))


def is_flat(path: Path) -> bool:
    """Return whether a folder itself holds an image, as that of a class does."""
    return next(images_beside(path), None) is not None


def holds_images(path: Path) -> bool:
    """Return whether there is an image anywhere below a folder."""
    return next(images_in(path, ""), None) is not None


def _images_below(
    path: Path, below: str, left: LeftOut, seen: set[tuple[int, int]]
) -> Iterator[str]:
    """Yield the images below `path`; `seen` holds the folders that must not be read again."""
    seen.add(_identity(path))
    inner = []
    with os.scandir(path) as entries:
        for entry in entries:
            if _is_dir(entry):
                inner.append((entry.is_symlink(), entry.name))
            # also skips the `._name.jpg` that macOS leaves beside an image
            elif not _is_junk(entry.name):
                if _is_special(entry):
                    left.special += 1
                elif _is_image(entry):
                    yield f"{below}/{entry.name}"
                else:
                    left.endings[_ending(entry.name)] += 1
    # real folders first, so that of a folder and a link to it the link is passed over
    for _, name in sorted(inner):
        if _is_junk(name):
            left.folders.add(name)
        elif _identity(path / name) in seen:
            left.loops.add(f"{below}/{name}")
        else:
            yield from _images_below(path / name, f"{below}/{name}", left, seen)


def _above(path: Path) -> set[tuple[int, int]]:
    """Return the identities of a folder and of all that hold it, to which a link would loop."""
    real = path.resolve()
    return {_identity(each) for each in (real, *real.parents)}


def _identity(path: Path) -> tuple[int, int]:
    """Return what identifies a folder, whichever links lead to it."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _JUNK


def _is_image(entry: os.DirEntry[str]) -> bool:
    if entry.name.lower().endswith(EXTENSIONS):
        return True
    with contextlib.suppress(OSError):
        return entry.is_file() and is_readable_format(entry.path)
    return False


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Return whether what has the name of an image is a pipe, a socket or a device.

    Those are never opened."""
    if not entry.name.lower().endswith(EXTENSIONS):
        return False
    with contextlib.suppress(OSError):
        # the kind of most entries comes with the list; only others are looked up
        if not entry.is_file():
            return not (stat.S_ISREG(mode := entry.stat().st_mode) or stat.S_ISDIR(mode))
    return False


def _ending(name: str) -> str:
    return Path(name).suffix.lower() or "without an ending"
