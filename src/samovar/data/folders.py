"""Folders of images, read with `os.scandir`: classes, files, and how many of them train.

Nothing here needs torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
VAL_NAMES = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class Layout:
    """Locations of the splits of a folder source."""

    train: Path
    val: Path | None
    """None: a share of `train` is held out."""


def num_held_out(count: int, val_share: float) -> int:
    """Return how many images of a class of `count` validate.

    It is the nearest number, at least one, but one image always stays to train on."""
    return min(max(1, round(val_share * count)), count - 1) if val_share > 0 else 0


def num_kept(count: int, fraction: float) -> int:
    """Return how many images of a class of `count` a `--data.fraction` keeps.

    It is the nearest number, at least one."""
    return max(1, round(fraction * count))


def count_class_folders(
    source: str, path: Path, val_share: float, fraction: float, *, needs_val: bool
) -> int:
    """Return the number of training images below a folder; opens no image.

    Raises:
        ValueError: a folder that cannot train."""
    layout = find_layout(source, path, needs_val=needs_val)
    counts = [len(files) for files in list_classes(source, layout.train).values()]
    if layout.val is None:
        counts = [count - num_held_out(count, val_share) for count in counts]
    return sum(num_kept(count, fraction) for count in counts)


def find_layout(source: str, path: Path, *, needs_val: bool = False) -> Layout:
    """Distinguish PATH/train + PATH/val from one folder of class folders.

    `train` counts as the training split when it holds folders; validation is the first that exists
    of val, valid, validation and test.

    Raises:
        ValueError: PATH is missing or no folder, or has no split where one is needed."""
    with readable(source):
        if not path.exists():
            raise ValueError(f"--data.source {source}: there is no folder {path}; check the path")
        if not path.is_dir():
            raise ValueError(
                f"--data.source {source}: {path} is a file; give the folder that holds the class "
                "folders"
            )
        has_train = any(_subfolders(path / "train"))
        val = next((path / name for name in VAL_NAMES if any(_subfolders(path / name))), None)
    if needs_val and not (has_train and val):
        missing = "train" if not has_train else "val"
        raise ValueError(
            f"--data.source {source}: {path / missing} with one folder per class is missing; "
            "sort the images into PATH/train/WNID and PATH/val/WNID"
        )
    return Layout(path / "train", val) if has_train else Layout(path, None)


def list_classes(source: str, folder: Path) -> dict[str, list[str]]:
    """Return the images of each class folder, as paths below `folder`.

    Classes and paths are sorted; hidden ones are left out.

    Raises:
        ValueError: no class folders, or a class without images."""
    with readable(source):
        classes = {
            name: sorted(images_in(folder / name, name)) for name in sorted(_subfolders(folder))
        }
    if not classes:
        raise ValueError(
            f"--data.source {source}: {folder} holds no class folders; put each class into its own "
            "folder"
        )
    empty = [name for name, files in classes.items() if not files]
    endings = f"known endings: {' '.join(EXTENSIONS)}"
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


def _subfolders(path: Path) -> Iterator[str]:
    if path.is_dir():
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir():
                    yield entry.name


def images_in(path: Path, below: str) -> Iterator[str]:
    """Yield the images of a folder and its subfolders, as paths that begin with `below`.

    Hidden files and folders are left out."""
    with os.scandir(path) as entries:
        for entry in entries:
            # also skips the `._name.jpg` that macOS leaves beside an image
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from images_in(path / entry.name, f"{below}/{entry.name}")
            elif entry.name.lower().endswith(EXTENSIONS):
                yield f"{below}/{entry.name}"
