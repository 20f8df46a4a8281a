"""Folders of images, read with `os.scandir`: classes, files and how many of them train. Nothing
here needs torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE_NAMES = {
    "digits": "1,797 grey 8 x 8 digits, embedded; 10 classes, a share held out",
    "cifar10": "CIFAR-10: 50,000 + 10,000 colour 32 x 32, 10 classes; downloaded to --data.root",
    "cifar100": "CIFAR-100: 50,000 + 10,000 colour 32 x 32, 100 classes; downloaded to --data.root",
    "fashion-mnist": "Fashion-MNIST: 60,000 + 10,000 grey 28 x 28, 10 classes; downloaded to --data.root",
    "flowers102": "Oxford Flowers: 2,040 + 6,149 photos, 102 classes; downloaded to --data.root",
    "pets": "Oxford-IIIT Pets: 3,680 + 3,669 photos, 37 classes; downloaded to --data.root",
    "folder:PATH": "your photos: PATH/train/CLASS and PATH/val/CLASS, or PATH/CLASS with a share held out",
    "imagenet:PATH": "ImageNet: PATH/train/WNID and PATH/val/WNID",
    "hf:NAME": "a Hugging Face data set by name or path; needs samovar[hf]",
    "shards:PATTERN": "webdataset tar shards, shards:train-{000..146}.tar::val-{00..06}.tar, or one pattern",
}
"""What `--data.source` takes, with a line on each."""
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
VAL_NAMES = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class Layout:
    """Where the images of a folder source are."""

    train: Path
    val: Path | None
    """None: a share of `train` is held out."""


def num_held_out(count: int, val_share: float) -> int:
    """Images of a class of `count` that validate: the nearest number, at least one, but one stays
    to train on."""
    return min(max(1, round(val_share * count)), count - 1) if val_share > 0 else 0


def num_kept(count: int, fraction: float) -> int:
    """Images of a class of `count` that `--data.fraction` leaves: the nearest number, at least
    one."""
    return max(1, round(fraction * count))


NUM_TRAIN = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "fashion-mnist": 60_000,
    "flowers102": 2040,
    "pets": 3680,
}
"""Training images of the sources that have a fixed number."""


def can_count(source: str) -> bool:
    """Whether the number of training images is known without opening any."""
    return source in NUM_TRAIN or source.partition(":")[0] in ("folder", "imagenet")


def count_images(source: str, val_share: float, fraction: float = 1.0) -> int:
    """Training images of a source, for folders as `open_source` would give them; opens no image.

    Raises:
        ValueError: a kind of source whose number is not known beforehand, or a folder that cannot
            train."""
    if source in NUM_TRAIN:
        return round(NUM_TRAIN[source] * fraction)
    kind, _, path = source.partition(":")
    if not can_count(source):
        raise ValueError(
            f"--data.source {source} is not a folder of images; give folder:PATH or imagenet:PATH"
        )
    layout = find_layout(source, Path(path), needs_val=kind == "imagenet")
    counts = [len(files) for files in list_classes(source, layout.train).values()]
    if layout.val is None:
        counts = [count - num_held_out(count, val_share) for count in counts]
    return sum(num_kept(count, fraction) for count in counts)


def find_layout(source: str, path: Path, *, needs_val: bool = False) -> Layout:
    """Tell PATH/train + PATH/val from one folder of class folders.

    `train` counts as the training split when it holds folders; validation is the first there is of
    val, valid, validation and test.

    Raises:
        ValueError: PATH is missing or no folder, or has no split where one is needed."""
    with readable(source):
        if not path.exists():
            raise ValueError(f"--data.source {source}: there is no folder {path}; check the path")
        if not path.is_dir():
            raise ValueError(
                f"--data.source {source}: {path} is a file; give the folder that holds the class folders"
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
    """Images of each class folder, as paths below `folder`; classes and paths sorted, hidden ones
    left out.

    Raises:
        ValueError: no class folders, or a class without images."""
    with readable(source):
        classes = {
            name: sorted(images_in(folder / name, name)) for name in sorted(_subfolders(folder))
        }
    if not classes:
        raise ValueError(
            f"--data.source {source}: {folder} holds no class folders; put each class into its own folder"
        )
    empty = [name for name, files in classes.items() if not files]
    if len(empty) == len(classes):
        raise ValueError(
            f"--data.source {source}: no images in {folder}; known endings: {' '.join(EXTENSIONS)}"
        )
    if empty:
        raise ValueError(
            f"--data.source {source}: {folder / empty[0]} holds no images; add some or remove the folder "
            f"(known endings: {' '.join(EXTENSIONS)})"
        )
    return classes


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn what the file system refuses inside into a ValueError of one line."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"--data.source {source}: cannot read {error.filename or 'it'}: {error.strerror or error}"
        ) from error


def _subfolders(path: Path) -> Iterator[str]:
    if path.is_dir():
        with os.scandir(path) as entries:
            yield from (
                entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
            )


def images_in(path: Path, below: str) -> Iterator[str]:
    """Images of a folder and of those inside it, hidden ones left out, as paths that begin with
    `below`."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(
                "."
            ):  # also the `._name.jpg` that macOS leaves beside an image
                continue
            if entry.is_dir():
                yield from images_in(path / entry.name, f"{below}/{entry.name}")
            elif entry.name.lower().endswith(EXTENSIONS):
                yield f"{below}/{entry.name}"
