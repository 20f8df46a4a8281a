"""Table of sources: all facts about a value of `--data.source` that are known in advance.

Nothing here needs torch or NumPy, so `samovar list` answers at once. Other packages add sources
through the entry point group `samovar.sources`: a function of a `DataConfig` that returns a
`Source`. NAME and NAME:REST both reach it, as `config.source`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from samovar import plugins
from samovar.config import DataConfig
from samovar.data.layout import count_class_folders, refuse_missing
from samovar.words import suggest

if TYPE_CHECKING:
    from samovar.data.splits import Source


@dataclass(frozen=True)
class SourceEntry:
    """One kind of source."""

    help: str
    """One line of help."""
    opener: str
    """Name of the function in `openers` that opens it; by name, since its file needs NumPy."""
    argument: str = ""
    """Name of the part after the colon, such as PATH; empty for a source without one."""
    one_size: bool = False
    """True: all images have one size, so evaluation scales them whole and crops nothing."""
    num_train: int | None = None
    """Number of training images, where it is fixed."""
    class_folders: bool = False
    """True: the argument is a folder whose images can be counted without opening them."""
    needs_val: bool = False
    """True: that folder must hold a validation split."""


SOURCES: dict[str, SourceEntry] = {
    "digits": SourceEntry(
        "1,797 grey 8 x 8 digits, embedded; 10 classes, a share held out",
        "open_digits",
        one_size=True,
    ),
    "cifar10": SourceEntry(
        "CIFAR-10: 50,000 + 10,000 colour 32 x 32, 10 classes; downloaded to --data.root",
        "open_cifar10",
        one_size=True,
        num_train=50_000,
    ),
    "cifar100": SourceEntry(
        "CIFAR-100: 50,000 + 10,000 colour 32 x 32, 100 classes; downloaded to --data.root",
        "open_cifar100",
        one_size=True,
        num_train=50_000,
    ),
    "fashion-mnist": SourceEntry(
        "Fashion-MNIST: 60,000 + 10,000 grey 28 x 28, 10 classes; downloaded to --data.root",
        "open_fashion_mnist",
        one_size=True,
        num_train=60_000,
    ),
    "flowers102": SourceEntry(
        "Oxford Flowers: 2,040 + 6,149 photos, 102 classes; downloaded to --data.root",
        "open_flowers102",
        num_train=2040,
    ),
    "pets": SourceEntry(
        "Oxford-IIIT Pets: 3,680 + 3,669 photos, 37 classes; downloaded to --data.root",
        "open_pets",
        num_train=3680,
    ),
    "folder": SourceEntry(
        "your photos: PATH/train/CLASS and PATH/val/CLASS, or PATH/CLASS with a share held out",
        "open_class_folders",
        argument="PATH",
        class_folders=True,
    ),
    "imagenet": SourceEntry(
        "ImageNet: PATH/train/WNID and PATH/val/WNID",
        "open_class_folders",
        argument="PATH",
        class_folders=True,
        needs_val=True,
    ),
    "hf": SourceEntry(
        "a Hugging Face data set by name or path; needs samovar[hf]",
        "open_hub",
        argument="NAME",
    ),
    "shards": SourceEntry(
        "webdataset tar shards, shards:train-{000..146}.tar::val-{00..06}.tar, or one pattern",
        "open_shards",
        argument="PATTERN",
    ),
}
"""Our own sources by name."""


def listed() -> dict[str, str]:
    """Return each source as `--data.source` takes it, with its line of help."""
    own = {_written(name): entry.help for name, entry in SOURCES.items()}
    added = [name for name in plugins.names("sources") if name not in SOURCES]
    return own | dict.fromkeys(added, "added by an installed package")


def find(source: str) -> Callable[[DataConfig], Source]:
    """Return the function that opens a value of `--data.source`.

    Raises:
        ValueError: an unknown source, an argument that is missing or one too many, a package whose
            source cannot be imported."""
    name, _, argument = source.partition(":")
    entry = _entry(source)
    if entry is None:
        added: Callable[[DataConfig], Source] = plugins.load("sources", name)
        return added
    from samovar.data import openers

    needed = {"needs_val": entry.needs_val} if entry.class_folders else {}
    return functools.partial(getattr(openers, entry.opener), argument=argument, **needed)


def _entry(source: str) -> SourceEntry | None:
    """Return the row of a value of `--data.source`; None for a source that a package adds.

    Raises:
        ValueError: an unknown source, an argument that is missing or one too many."""
    name, colon, argument = source.partition(":")
    entry = SOURCES.get(name)
    if entry is None and name in plugins.names("sources"):
        return None
    if entry is None or bool(argument) != bool(entry.argument) or (colon and not argument):
        raise ValueError(f"--data.source {source} is unknown; {_nearest(source)}")
    return entry


def refuse_missing_source(source: str) -> None:
    """Refuse a value of `--data.source` that is unknown, or a folder that is not there.

    Raises:
        ValueError: suggests the closest source, or says what is there in place of the folder."""
    entry = _entry(source)
    if entry and entry.class_folders:
        refuse_missing(source, Path(source.partition(":")[2]))


def can_count(source: str) -> bool:
    """Return whether the number of training images is known without opening any."""
    entry = SOURCES.get(source.partition(":")[0])
    return entry is not None and (entry.class_folders or entry.num_train is not None)


def count_images(source: str, val_share: float, fraction: float = 1.0) -> int:
    """Return the number of training images `open_source` would give; opens no image.

    Raises:
        ValueError: a source whose number is not known in advance, or a folder that cannot
            train."""
    name, _, path = source.partition(":")
    entry = SOURCES.get(name)
    if entry and entry.num_train is not None:
        return round(entry.num_train * fraction)
    if entry and entry.class_folders:
        return count_class_folders(
            source, Path(path), val_share, fraction, needs_val=entry.needs_val
        )
    folders = " or ".join(_written(name) for name, known in SOURCES.items() if known.class_folders)
    raise ValueError(f"--data.source {source} is not a folder of images; give {folders}")


def _written(name: str) -> str:
    argument = SOURCES[name].argument
    return f"{name}:{argument}" if argument else name


def _nearest(source: str) -> str:
    known = listed()
    if Path(source).is_dir():
        return f"did you mean folder:{source}? known: {', '.join(known)}"
    name = source.partition(":")[0].lower()
    if name in SOURCES:
        return f"did you mean {_written(name)}?"
    return suggest(name, known, instead=f"known: {', '.join(known)}")
