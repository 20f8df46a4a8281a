"""Where images come from: a table from the names `--data.source` takes to functions that open them.

torch and the packages behind a source are imported when it is opened, so that the table can be
listed without them."""

from __future__ import annotations

import difflib
import fcntl
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samovar.config import DataConfig
from samovar.data.draws import Purpose
from samovar.data.folders import SOURCE_NAMES, find_layout, list_classes, readable
from samovar.data.splits import Arrays, Encoded, Source, Split, encoded, hold_out, keep_fraction

Opener = Callable[[DataConfig, str], Source]


def open_source(config: DataConfig) -> Source:
    """Open `config.source`: its splits, its classes, the fraction of the training images that is
    asked for.

    The held-out share and the fraction are drawn per class by `split_seed` alone, so runs of every
    seed share them. Under `tune_share` part of what would have trained takes the place of the
    validation split. Nothing is decoded or augmented here.

    Raises:
        ValueError: an unknown source, files that are missing or damaged, classes or labels nobody
            can train on."""
    name, colon, argument = config.source.partition(":")
    if name + colon not in SOURCES or bool(colon) != bool(argument):
        raise ValueError(f"--data.source {config.source} is unknown; {_nearest(config.source)}")
    with readable(config.source):
        source = SOURCES[name + colon](config, argument)
    _check(source, config)
    source = _with_val(source, config)
    kept = keep_fraction(source.train.labels, config.fraction, config.split_seed)
    source = (
        source if len(kept) == len(source.train) else replace(source, train=source.train.take(kept))
    )
    return _tuned(source, config) if config.tune_share else source


def _nearest(name: str) -> str:
    known = f"known: {', '.join(SOURCE_NAMES)}"
    if Path(name).is_dir():
        return f"did you mean folder:{name}? {known}"
    names = {known.partition(":")[0]: known for known in SOURCE_NAMES}
    near = difflib.get_close_matches(name.partition(":")[0].lower(), names, n=2)
    return f"did you mean {' or '.join(names[key] for key in near)}? {known}" if near else known


def _with_val(source: Source, config: DataConfig) -> Source:
    """Hold out a share of the training images where the source has no validation split."""
    if len(source.val):
        return source
    train, val = hold_out(source.train.labels, config.val_share, config.split_seed)
    if not len(val):
        raise ValueError(
            f"--data.val-share {config.val_share} holds out no image of --data.source {config.source}, which has no "
            "validation split of its own; give a larger share or more images"
        )
    return replace(source, train=source.train.take(train), val=source.train.take(val))


def _tuned(source: Source, config: DataConfig) -> Source:
    """Validate on a share of each class of the training images, drawn after `fraction` and apart
    from it."""
    labels = source.train.labels
    single = np.flatnonzero(np.bincount(labels) == 1)
    if len(single):
        raise ValueError(
            f"--data.tune-share {config.tune_share} holds out images of each class, and class "
            f"{source.classes[single[0]]!r} of --data.source {config.source} has one training image; add images "
            "to it or remove it"
        )
    train, val = hold_out(labels, config.tune_share, config.split_seed, Purpose.TUNE)
    return replace(source, train=source.train.take(train), val=source.train.take(val))


def _check(source: Source, config: DataConfig) -> None:
    num_classes = len(source.classes)
    if num_classes < 2:
        raise ValueError(
            f"--data.source {config.source} has only the class {source.classes[0]!r}; training needs two or more"
        )
    for split, where in ((source.train, "training"), (source.val, "validation")):
        bad = split.labels[(split.labels < 0) | (split.labels >= num_classes)]
        if len(bad):
            raise ValueError(
                f"--data.source {config.source}: {where} label {bad[0]} is outside 0 to {num_classes - 1}; "
                "images without a label cannot be used"
            )
    present = np.bincount(source.train.labels, minlength=num_classes)
    if not present.all():
        absent = source.classes[int(np.flatnonzero(present == 0)[0])]
        raise ValueError(
            f"--data.source {config.source}: class {absent!r} has no training images; add some"
        )


# --- embedded and downloaded
# -----------------------------------------------------------------------------------------


def _digits(config: DataConfig, _: str) -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[
        :, None
    ]  # grey levels are 0 to 16
    train = _arrays(images, digits.target, config.source)
    return Source(
        config.source, tuple(map(str, range(10))), train, _none_of(train), channels=1, image_size=8
    )


def _cifar(config: DataConfig, name: str) -> Source:
    # torchvision unpickles these files, and checks their MD5 against the official archive's before
    # it does
    parts = [_fetch(config, name, train=flag) for flag in (True, False)]
    train, val = (
        _arrays(part.data.transpose(0, 3, 1, 2), part.targets, config.source) for part in parts
    )
    return Source(config.source, tuple(parts[0].classes), train, val, channels=3, image_size=32)


def _fashion_mnist(config: DataConfig, _: str) -> Source:
    parts = [_fetch(config, "FashionMNIST", train=flag) for flag in (True, False)]
    train, val = (
        _arrays(part.data.numpy()[:, None], part.targets, config.source) for part in parts
    )
    return Source(config.source, tuple(parts[0].classes), train, val, channels=1, image_size=28)


def _flowers102(config: DataConfig, _: str) -> Source:
    # Train on the official train and val splits together (2,040), validate on test: the transfer
    # task of ViT papers.
    parts = [_fetch(config, "Flowers102", split=split) for split in ("train", "val", "test")]
    train, val = (
        _files(
            [path for part in these for path in part._image_files],
            [k for part in these for k in part._labels],
        )
        for these in (parts[:2], parts[2:])
    )
    classes = getattr(parts[0], "classes", None) or [f"flower {k + 1}" for k in range(102)]
    return Source(config.source, tuple(classes), train, val, channels=3, image_size=None)


def _pets(config: DataConfig, _: str) -> Source:
    parts = [_fetch(config, "OxfordIIITPet", split=split) for split in ("trainval", "test")]
    train, val = (_files(part._images, part._labels) for part in parts)
    return Source(config.source, tuple(parts[0].classes), train, val, channels=3, image_size=None)


def _fetch(config: DataConfig, name: str, **which: Any) -> Any:
    """A torchvision data set from `config.root`, downloaded there when it is absent."""
    from torchvision import datasets

    dataset = getattr(datasets, name)
    try:
        return dataset(config.root, download=False, **which)
    except (
        RuntimeError,
        OSError,
        EOFError,
    ):  # absent or damaged; what follows checks again and says which
        pass
    try:
        config.root.mkdir(parents=True, exist_ok=True)
        with (config.root / ".download.lock").open("w") as lock:
            fcntl.flock(
                lock, fcntl.LOCK_EX
            )  # ranks and runs beside this one wait, then find the files there
            return dataset(config.root, download=True, **which)
    except (RuntimeError, OSError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"--data.source {config.source} is not in --data.root {config.root} and cannot be downloaded ({reason}); "
            "connect once, or give the folder that holds it"
        ) from error


# --- one's own
# -------------------------------------------------------------------------------------------------------


def _folder(config: DataConfig, path: str) -> Source:
    return _class_folders(config, path, needs_val=False)


def _imagenet(config: DataConfig, path: str) -> Source:
    return _class_folders(config, path, needs_val=True)


def _class_folders(config: DataConfig, path: str, *, needs_val: bool) -> Source:
    layout = find_layout(config.source, Path(path), needs_val=needs_val)
    listed = list_classes(config.source, layout.train)
    classes = tuple(listed)
    train = _files_of(layout.train, listed, classes)
    val: Split = _none_of(train)
    if layout.val:
        listed = list_classes(config.source, layout.val)
        strange = sorted(set(listed) - set(classes))
        if strange:
            raise ValueError(
                f"--data.source {config.source}: class {strange[0]!r} is in {layout.val} but not in {layout.train}; "
                "add training images of it or remove it"
            )
        val = _files_of(layout.val, listed, classes)
    return Source(config.source, classes, train, val, channels=3, image_size=None)


def _shards(config: DataConfig, pattern: str) -> Source:
    from samovar.data.shards import index_shards

    train_pattern, colons, val_pattern = pattern.partition("::")
    train = index_shards(config.source, train_pattern)
    val = index_shards(config.source, val_pattern) if colons else _none_of(train)
    classes = tuple(map(str, range(int(train.labels.max()) + 1)))
    return Source(config.source, classes, train, val, channels=3, image_size=None)


def _hub(config: DataConfig, name: str) -> Source:
    from samovar.data.hub import open_hub

    train, val, classes = open_hub(config.source, name)
    return Source(
        config.source, classes, train, val or _none_of(train), channels=3, image_size=None
    )


# --- pieces
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """Image files below a folder."""

    folder: str
    paths: npt.NDArray[np.bytes_]
    """[n] paths below `folder`, as the file system spells them; one array, since workers get a
    copy."""

    def read(self, row: int) -> bytes:
        """The bytes of one file."""
        with open(self.name(row), "rb") as file:  # noqa: PTH123 (a Path costs as much as the open itself)
            return file.read()

    def name(self, row: int) -> str:
        """Its path."""
        return os.path.join(self.folder, os.fsdecode(self.paths[row]))  # noqa: PTH118


def _files(paths: Iterable[str | Path], labels: Any, folder: str = "") -> Encoded:
    return encoded(Files(folder, np.array([os.fsencode(path) for path in paths])), labels)


def _files_of(folder: Path, listed: dict[str, list[str]], classes: tuple[str, ...]) -> Encoded:
    paths = [path for files in listed.values() for path in files]
    places = {name: label for label, name in enumerate(classes)}
    labels = np.repeat([places[name] for name in listed], [len(files) for files in listed.values()])
    return _files(paths, labels, str(folder))


def _arrays(images: npt.NDArray[np.uint8], labels: Any, title: str) -> Arrays:
    return Arrays(np.asarray(labels, np.int64), np.ascontiguousarray(images), title)


def _none_of(split: Split) -> Split:
    return split.take(np.empty(0, np.int64))


SOURCES: dict[str, Opener] = {
    "digits": _digits,
    "cifar10": lambda config, _: _cifar(config, "CIFAR10"),
    "cifar100": lambda config, _: _cifar(config, "CIFAR100"),
    "fashion-mnist": _fashion_mnist,
    "flowers102": _flowers102,
    "pets": _pets,
    "folder:": _folder,
    "imagenet:": _imagenet,
    "hf:": _hub,
    "shards:": _shards,
}
"""Openers by name; those whose name ends in a colon take the rest of `--data.source` as their
argument."""
