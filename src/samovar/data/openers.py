"""Functions that open each kind of data set; the table in `catalog` names them.

Each takes the settings and the part of `--data.source` after the colon, empty if there is none.
torch and the packages behind a data set are imported when it is opened."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samovar.config import DataConfig
from samovar.data.folders import LeftOut, list_classes
from samovar.data.layout import find_layout
from samovar.data.splits import Arrays, Encoded, Source, Split, encoded
from samovar.words import read_regular

# --- embedded and downloaded ---


def open_digits(config: DataConfig, argument: str) -> Source:
    """Open scikit-learn's digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # grey levels are 0 to 16
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    train = _arrays(images, digits.target, config.source)
    classes = tuple(map(str, range(10)))
    return Source(config.source, classes, train, _none_of(train), channels=1, image_size=8)


def open_cifar10(config: DataConfig, argument: str) -> Source:
    """Open CIFAR-10."""
    return _open_cifar(config, "CIFAR10")


def open_cifar100(config: DataConfig, argument: str) -> Source:
    """Open CIFAR-100."""
    return _open_cifar(config, "CIFAR100")


def _open_cifar(config: DataConfig, name: str) -> Source:
    # torchvision unpickles these files, but first checks their MD5 against the official archive's
    parts = [_fetch(config, name, train=flag) for flag in (True, False)]
    train, val = (
        _arrays(part.data.transpose(0, 3, 1, 2), part.targets, config.source) for part in parts
    )
    return Source(config.source, tuple(parts[0].classes), train, val, channels=3, image_size=32)


def open_fashion_mnist(config: DataConfig, argument: str) -> Source:
    """Open Fashion-MNIST."""
    parts = [_fetch(config, "FashionMNIST", train=flag) for flag in (True, False)]
    train, val = (
        _arrays(part.data.numpy()[:, None], part.targets, config.source) for part in parts
    )
    return Source(config.source, tuple(parts[0].classes), train, val, channels=1, image_size=28)


def open_flowers102(config: DataConfig, argument: str) -> Source:
    """Open Oxford Flowers: the official train and val splits train (2,040), test validates."""
    # the transfer task of ViT papers
    parts = [_fetch(config, "Flowers102", split=split) for split in ("train", "val", "test")]
    train, val = (
        _files(
            [path for part in these for path in part._image_files],
            [k for part in these for k in part._labels],
        )
        for these in (parts[:2], parts[2:])
    )
    # older versions of torchvision have no names of the flowers
    classes = getattr(parts[0], "classes", None) or [f"flower {k + 1}" for k in range(102)]
    return Source(config.source, tuple(classes), train, val, channels=3, image_size=None)


def open_pets(config: DataConfig, argument: str) -> Source:
    """Open Oxford-IIIT Pets: trainval trains, test validates."""
    parts = [_fetch(config, "OxfordIIITPet", split=split) for split in ("trainval", "test")]
    train, val = (_files(part._images, part._labels) for part in parts)
    return Source(config.source, tuple(parts[0].classes), train, val, channels=3, image_size=None)


def _fetch(config: DataConfig, name: str, **which: Any) -> Any:
    """Return a torchvision data set from `config.root`, downloaded first if it is not there."""
    from torchvision import datasets

    dataset = getattr(datasets, name)
    try:
        return dataset(config.root, download=False, **which)
    except (RuntimeError, OSError, EOFError):
        pass  # absent or damaged; the download below checks again and says which
    try:
        config.root.mkdir(parents=True, exist_ok=True)
        with (config.root / ".download.lock").open("w") as lock:
            # other ranks and runs wait here, then find the files
            fcntl.flock(lock, fcntl.LOCK_EX)
            return dataset(config.root, download=True, **which)
    except (RuntimeError, OSError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"--data.source {config.source} is not in --data.root {config.root} and cannot be "
            f"downloaded ({reason}); connect once, or give the folder that holds it"
        ) from error


# --- the user's own ---


def open_class_folders(config: DataConfig, argument: str, *, needs_val: bool) -> Source:
    """Open a folder of class folders, with or without splits.

    Args:
        config: the settings.
        argument: the folder.
        needs_val: refuse a folder without a validation split."""
    left_out = LeftOut()
    layout = find_layout(config.source, Path(argument), needs_val=needs_val, left_out=left_out)
    # the training split defines the classes; validation may lack some
    listed = list_classes(config.source, layout.train, left_out)
    classes = tuple(listed)
    train = _files_of(layout.train, listed, classes)
    val: Split = _none_of(train)
    if layout.val:
        listed = list_classes(config.source, layout.val, left_out)
        strange = sorted(set(listed) - set(classes))
        if strange:
            raise ValueError(
                f"--data.source {config.source}: class {strange[0]!r} is in {layout.val} but not "
                f"in {layout.train}; add training images of it or remove it"
            )
        val = _files_of(layout.val, listed, classes)
    notes = (layout.note, *([str(left_out)] if left_out else []))
    return Source(config.source, classes, train, val, channels=3, image_size=None, notes=notes)


def open_shards(config: DataConfig, argument: str) -> Source:
    """Open webdataset shards; a second pattern after `::` is the validation split."""
    from samovar.data.shards import index_shards

    train_pattern, colons, val_pattern = argument.partition("::")
    # shards name no classes, so a label is its own name
    train, damage = index_shards(config.source, train_pattern, config.max_bad_share)
    val: Split = _none_of(train)
    if colons:
        val, more = index_shards(config.source, val_pattern, config.max_bad_share)
        damage += more
    classes = tuple(map(str, range(int(train.labels.max()) + 1)))
    return Source(config.source, classes, train, val, channels=3, image_size=None, notes=damage)


def open_hub(config: DataConfig, argument: str) -> Source:
    """Open a Hugging Face data set."""
    from samovar.data.hub import load_hub

    train, val, classes = load_hub(config.source, argument)
    return Source(
        config.source, classes, train, val or _none_of(train), channels=3, image_size=None
    )


# --- pieces ---


@dataclass(frozen=True)
class Files:
    """A store of image files below a folder."""

    folder: str
    paths: npt.NDArray[np.bytes_]
    """[n] paths below `folder`, as the file system spells them; one array, since workers get a
    copy."""

    def read(self, row: int) -> bytes:
        """Return the bytes of one file."""
        return read_regular(self.name(row))

    def name(self, row: int) -> str:
        """Return the path of one file."""
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
