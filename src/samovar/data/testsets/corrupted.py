"""Test sets of corrupted images: ImageNet-C and CIFAR-10/100-C."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samovar.data.corruptions import EXTRA, MAIN, SEVERITIES
from samovar.data.openers import Files
from samovar.data.splits import Arrays
from samovar.data.testsets import imagenet
from samovar.data.testsets.kinds import Chosen, Condition, TestSet
from samovar.words import suggest

GROUPS = ("", "noise", "blur", "weather", "digital", "extra")
"""Folders that may hold the corruptions: none, or one for each archive."""
CIFAR_IMAGES = 10_000
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def open_imagenet_c(path: str, chosen: Chosen) -> TestSet:
    """Open ImageNet-C: CORRUPTION/SEVERITY/WNID, with or without the folders of the archives."""
    title, names = "ImageNet-C", imagenet.classes()
    found = {name: _find(Path(path), name) for name in MAIN + EXTRA}
    corruptions, missing = _choose({name for name, folder in found.items() if folder}, chosen)
    parts = [
        (name, level, (found[name] or Path()) / str(level))
        for name in corruptions
        for level in chosen.severities
    ]
    absent = [f"{name}/{level}" for name, level, folder in parts if not folder.is_dir()]
    if absent:
        raise ValueError(
            f"the severities {', '.join(absent)} are missing; a mean over fewer is another number, "
            "so add them or say with --severities which to score"
        )
    # all conditions hold the same images, so the first one's list serves for all
    reference = parts[0][2]
    listed = imagenet.list_named(title, reference, names)
    _check_jpeg(reference, listed)
    split, paths = imagenet.encoded_classes(reference, listed, names), imagenet.paths_of(listed)
    conditions = []
    for name, level, folder in parts:
        _check_same(reference, listed, folder, imagenet.list_named(title, folder, names))
        # one list of paths for all conditions, since there are 95 of 50,000
        there = replace(split, store=Files(str(folder), paths))
        conditions.append(Condition({"corruption": name, "severity": level}, there))
    return TestSet(
        title,
        "arXiv:1903.12261",
        50_000,
        tuple(conditions),
        len(names),
        tuple(names),
        missing=missing,
    )


def _find(path: Path, name: str) -> Path | None:
    return next((path / group / name for group in GROUPS if (path / group / name).is_dir()), None)


def _choose(there: Container[str], chosen: Chosen) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the corruptions to score, and the published parts that will not be scored.

    Raises:
        ValueError: a corruption asked for is unknown or absent, or, if none is asked for, the
            benchmark is not whole."""
    known = MAIN + EXTRA
    strange = next((name for name in chosen.corruptions if name not in known), None)
    if strange is not None:
        raise ValueError(f"--corruptions {strange} is unknown; {suggest(strange, known)}")
    wanted = chosen.corruptions or (known if any(name in there for name in EXTRA) else MAIN)
    absent = [name for name in wanted if name not in there]
    if absent:
        raise ValueError(
            f"the corruptions {', '.join(absent)} are missing; a mean over fewer is another "
            "number, so add them or say with --corruptions which to score"
        )
    missing = [name for name in known if name not in wanted]
    unscored = [f"severity {k}" for k in SEVERITIES if k not in chosen.severities]
    return tuple(wanted), (*missing, *unscored)


def _check_jpeg(folder: Path, listed: Mapping[str, list[str]]) -> None:
    paths = (path for files in listed.values() for path in files)
    other = next((path for path in paths if not path.lower().endswith((".jpg", ".jpeg"))), "")
    if other:
        raise ValueError(
            f"{folder / other} is no JPEG, as all of the published ImageNet-C are, so these were "
            "made otherwise; give the published set, or measure `robustness` of your own images"
        )


def _check_same(
    one: Path, images: Mapping[str, list[str]], other: Path, others: Mapping[str, list[str]]
) -> None:
    name = next((name for name in images if images[name] != others[name]), None)
    if name is not None:
        raise ValueError(
            f"{other / name} and {one / name} do not hold the same images ({len(others[name])} and "
            f"{len(images[name])}); unpack the set anew"
        )


def open_cifar_c(
    title: str, classes: tuple[str, ...], num_classes: int, path: str, chosen: Chosen
) -> TestSet:
    """Open CIFAR-10-C or CIFAR-100-C: CORRUPTION.npy with five blocks, one a severity."""
    folder, n = Path(path), CIFAR_IMAGES
    corruptions, missing = _choose({file.stem for file in folder.glob("*.npy")}, chosen)
    labels = _labels(folder / "labels.npy", title, num_classes)
    conditions = []
    for name in corruptions:
        images = _load(folder / f"{name}.npy", (5 * n, 32, 32, 3), np.uint8).transpose(0, 3, 1, 2)
        for level in chosen.severities:
            block = slice((level - 1) * n, level * n)
            split = Arrays(labels[block], images[block], f"{name}.npy, severity {level}, image")
            conditions.append(Condition({"corruption": name, "severity": level}, split))
    return TestSet(
        title, "arXiv:1903.12261", n, tuple(conditions), num_classes, classes, 32, missing=missing
    )


def _labels(file: Path, title: str, num_classes: int) -> npt.NDArray[np.int64]:
    labels = np.array(_load(file, (5 * CIFAR_IMAGES,), np.integer), np.int64)
    bad = labels[(labels < 0) | (labels >= num_classes)]
    if len(bad):
        raise ValueError(
            f"{file} holds the label {bad[0]}; {title} has classes 0 to {num_classes - 1}"
        )
    absent = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if len(absent):
        raise ValueError(
            f"{file} holds no image of class {absent[0]}; {title} has {num_classes} classes"
        )
    if (labels.reshape(5, -1) != labels[:CIFAR_IMAGES]).any():
        raise ValueError(
            f"{file} differs between severities, which show the same images; give the published "
            "file"
        )
    return labels


def _load(file: Path, shape: tuple[int, ...], kind: Any) -> npt.NDArray[Any]:
    """Return the array in a file, memory-mapped.

    Raises:
        ValueError: no such file, or another shape or kind of numbers."""
    try:
        array = np.lib.format.open_memmap(file, mode="r")  # refuses pickles
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{file} cannot be read ({str(error).splitlines()[0]}); download it again"
        ) from error
    if array.shape != shape or not np.issubdtype(array.dtype, kind):
        raise ValueError(
            f"{file} is {array.dtype} {list(array.shape)}; the published one is {kind.__name__} "
            f"{list(shape)}"
        )
    return array
