"""Published test sets as their authors hand them out: ImageNet-C, -R, -A, -V2, -Sketch, ReaL
labels, CIFAR-10/100-C.

Copies corrupted here are read by `robustness`, never as one of these. Nothing here needs torch."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from samovar.data.folders import images_in, list_classes, readable
from samovar.data.openers import Files
from samovar.data.splits import Arrays, Encoded, Split, encoded

MAIN = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The corruptions of the benchmark of arXiv:1903.12261, by the names of their folders."""
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Those it gives for validation, which the paper's mean over 19 includes."""
SEVERITIES = (1, 2, 3, 4, 5)
GROUPS = ("", "noise", "blur", "weather", "digital", "extra")
"""Folders that may hold the corruptions: none, or one for each archive."""
CIFAR_IMAGES = 10_000
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Condition:
    """Images that are scored together."""

    where: dict[str, str | int]
    """Corruption and severity; empty where the set is one."""
    split: Split
    """Read when its images are asked for. Under ReaL a label is a row of `label_sets`."""


@dataclass(frozen=True)
class TestSet:
    """A published test set."""

    title: str
    source: str
    size: int
    """Images of each condition as published."""
    conditions: tuple[Condition, ...]
    num_classes: int
    classes: tuple[str, ...] = ()
    """Names in the order of the classes, where the set has names."""
    image_size: int | None = None
    """Side in pixels of every image; None where sizes vary."""
    allowed: tuple[int, ...] | None = None
    """Rising indices of the classes it is about; None: all."""
    label_sets: tuple[tuple[int, ...], ...] | None = None
    """ReaL's labels of each validation image."""
    left_out: int = 0
    """Images without a label, which are not among the conditions'."""
    missing: tuple[str, ...] = ()
    """Published corruptions and severities that are not among the conditions."""


class Chosen(NamedTuple):
    """What is asked of a corruption set; no names: what is there, if that is the benchmark."""

    corruptions: tuple[str, ...]
    severities: tuple[int, ...]


def open_testset(
    text: str, corruptions: Sequence[str] = (), severities: Sequence[int] = SEVERITIES
) -> TestSet:
    """Open `--testset`; images are not read yet.

    Args:
        text: NAME:PATH, with NAME one of TESTSETS.
        corruptions: the ones to score of a corruption set; none: all 19, or the main 15 where there
            are no others.
        severities: the ones to score.

    Raises:
        ValueError: an unknown name, or files that are not the published set, whole."""
    name, colon, argument = text.partition(":")
    if name + colon not in TESTSETS or not argument:
        known = ", ".join(f"{known}PATH" for known in TESTSETS).replace(
            "real:PATH", "real:VAL::REAL.json"
        )
        raise ValueError(
            f"--testset {text or '(empty)'} is no published test set; give one of {known}"
        )
    folder = Path(argument.partition("::")[0])
    try:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}; check the path")
        with readable(""):
            return TESTSETS[name + colon](
                argument, Chosen(tuple(dict.fromkeys(corruptions)), tuple(sorted(set(severities))))
            )
    except ValueError as error:
        reason = str(error).removeprefix(
            "--data.source : "
        )  # which the readers of folders begin with
        raise ValueError(f"--testset {text}: {reason}") from error


@functools.cache
def wnids() -> dict[str, str]:
    """ImageNet's WordNet ids in the order of its classes, each with the sets of 200 that hold it:
    A, R."""
    lines = Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="ascii").splitlines()
    return {wnid: sets for wnid, _, sets in (line.partition(" ") for line in lines)}


def _classes(only: str = "") -> dict[str, int]:
    return {wnid: index for index, (wnid, sets) in enumerate(wnids().items()) if only in sets}


# --- one folder a class
# ----------------------------------------------------------------------------------------------


def _folders(title: str, source: str, size: int, path: str, names: Mapping[str, int]) -> TestSet:
    split = _encoded(Path(path), _listed(title, Path(path), names), names)
    allowed = tuple(sorted(names.values())) if len(names) < len(wnids()) else None
    return TestSet(
        title, source, size, (Condition({}, split),), len(wnids()), tuple(wnids()), allowed=allowed
    )


def _listed(title: str, folder: Path, names: Mapping[str, int]) -> dict[str, list[str]]:
    """Images of each class folder; the folders are those of `names`, all of them.

    Raises:
        ValueError: they are not."""
    listed = list_classes("", folder)
    strange = next((name for name in listed if name not in names), None)
    if strange is not None:
        first, *_, last = names
        raise ValueError(
            f"{folder / strange} is no class of {title}, which has {len(names)} folders, {first} to {last}; "
            "give the folder that holds them, as it was published"
        )
    missing = [name for name in names if name not in listed]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of the {len(names)} classes of {title}, among them {missing[0]}; a score "
            "over fewer is another number, so add them"
        )
    return listed


def _encoded(folder: Path, listed: Mapping[str, list[str]], names: Mapping[str, int]) -> Encoded:
    labels = np.repeat([names[name] for name in listed], [len(files) for files in listed.values()])
    return encoded(Files(str(folder), _paths(listed)), labels)


def _paths(listed: Mapping[str, list[str]]) -> npt.NDArray[np.bytes_]:
    return np.array([os.fsencode(path) for files in listed.values() for path in files])


# --- ReaL
# ------------------------------------------------------------------------------------------------------------


def _real(argument: str, _: Chosen) -> TestSet:
    folder, file = (*argument.split("::", 1), "")[:2]
    if not file:
        raise ValueError(
            "the labels are missing; give imagenet-real:VAL::REAL.json, the validation images and labels"
        )
    label_sets = _label_sets(Path(file))
    paths = _by_number(Path(folder), len(label_sets))
    kept = [number for number in sorted(paths) if label_sets[number - 1]]
    if not kept:
        raise ValueError(
            f"{file} has no label for any of the {len(paths)} images in {folder}; give those of this set"
        )
    split = encoded(
        Files(folder, _paths({"": [paths[number] for number in kept]})), np.array(kept) - 1
    )
    return TestSet(
        "ImageNet ReaL", "arXiv:2006.07159", 50_000, (Condition({}, split),), len(wnids()), tuple(wnids()),
        label_sets=label_sets, left_out=len(paths) - len(kept),
    )  # fmt: skip


def _label_sets(file: Path) -> tuple[tuple[int, ...], ...]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is no JSON ({str(error).splitlines()[0]}); give ReaL's real.json"
        ) from error
    if not isinstance(found, list) or not all(isinstance(each, list) for each in found):
        raise ValueError(
            f"{file} is no list of lists; give ReaL's real.json, a list of classes for each image"
        )
    bad = next(
        (k for each in found for k in each if type(k) is not int or not 0 <= k < len(wnids())), None
    )
    if bad is not None:
        raise ValueError(
            f"{file} holds the label {bad!r}; labels are classes from 0 to {len(wnids()) - 1}"
        )
    return tuple(map(tuple, found))


def _by_number(folder: Path, count: int) -> dict[int, str]:
    """Paths of validation images by the number in their name, whatever folders they are sorted
    into."""
    paths: dict[int, str] = {}
    for path in images_in(folder, "."):
        found = re.search(r"ILSVRC2012_val_(\d{8})[^/]*$", path)
        if found is None or not 1 <= int(found[1]) <= count:
            raise ValueError(
                f"{folder / path} is none of the {count} validation images that have labels, "
                f"ILSVRC2012_val_00000001 to {count:08}; give the folder of these alone"
            )
        other = paths.setdefault(int(found[1]), path)
        if other != path:
            raise ValueError(
                f"{folder / other} and {folder / path} are the same image; remove one of them"
            )
    if not paths:
        raise ValueError(f"no images in {folder}; give ImageNet's validation folder")
    return paths


# --- corruptions
# -----------------------------------------------------------------------------------------------------


def _imagenet_c(path: str, chosen: Chosen) -> TestSet:
    title, names = "ImageNet-C", _classes()
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
            f"the severities {', '.join(absent)} are missing; a mean over fewer is another number, so add them or "
            "say with --severities which to score"
        )
    reference = parts[0][2]
    listed = _listed(title, reference, names)
    _check_jpeg(reference, listed)
    split, paths = _encoded(reference, listed, names), _paths(listed)
    conditions = []
    for name, level, folder in parts:
        _check_same(reference, listed, folder, _listed(title, folder, names))
        there = replace(split, store=Files(str(folder), paths))  # one list of paths for all of them
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
    """The corruptions to score, and what is missing from the published ones.

    Raises:
        ValueError: one that is asked for is unknown or absent; without asking, the benchmark is not
            whole."""
    known = MAIN + EXTRA
    strange = next((name for name in chosen.corruptions if name not in known), None)
    if strange is not None:
        raise ValueError(f"--corruptions {strange} is unknown; give some of: {', '.join(known)}")
    wanted = chosen.corruptions or (known if any(name in there for name in EXTRA) else MAIN)
    absent = [name for name in wanted if name not in there]
    if absent:
        raise ValueError(
            f"the corruptions {', '.join(absent)} are missing; a mean over fewer is another number, so add them or "
            "say with --corruptions which to score"
        )
    missing = [name for name in known if name not in wanted]
    return tuple(wanted), (
        *missing,
        *(f"severity {k}" for k in SEVERITIES if k not in chosen.severities),
    )


def _check_jpeg(folder: Path, listed: Mapping[str, list[str]]) -> None:
    other = next(
        (
            path
            for files in listed.values()
            for path in files
            if not path.lower().endswith((".jpg", ".jpeg"))
        ),
        "",
    )
    if other:
        raise ValueError(
            f"{folder / other} is no JPEG, as all of the published ImageNet-C are, so these were made otherwise; "
            "give the published set, or measure `robustness` of your own images"
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


def _cifar_c(
    title: str, classes: tuple[str, ...], num_classes: int, path: str, chosen: Chosen
) -> TestSet:
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
            f"{file} differs between severities, which are of the same images; give the published file"
        )
    return labels


def _load(file: Path, shape: tuple[int, ...], kind: Any) -> npt.NDArray[Any]:
    """An array in a file, mapped, not read.

    Raises:
        ValueError: no such file, or not the shape, or not the kind of numbers."""
    try:
        array = np.lib.format.open_memmap(file, mode="r")  # refuses pickles
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{file} cannot be read ({str(error).splitlines()[0]}); download it again"
        ) from error
    if array.shape != shape or not np.issubdtype(array.dtype, kind):
        raise ValueError(
            f"{file} is {array.dtype} {list(array.shape)}; the published one is {kind.__name__} {list(shape)}"
        )
    return array


Opener = Callable[[str, Chosen], TestSet]
TESTSETS: dict[str, Opener] = {
    "imagenet-r:": lambda path, _: _folders(
        "ImageNet-R", "arXiv:2006.16241", 30_000, path, _classes("R")
    ),
    "imagenet-a:": lambda path, _: _folders(
        "ImageNet-A", "arXiv:1907.07174", 7_500, path, _classes("A")
    ),
    "imagenet-v2:": lambda path, _: _folders(
        "ImageNet-V2",
        "arXiv:1902.10811",
        10_000,
        path,
        {str(index): index for index in range(len(wnids()))},
    ),
    "imagenet-sketch:": lambda path, _: _folders(
        "ImageNet-Sketch", "arXiv:1905.13549", 50_889, path, _classes()
    ),
    "imagenet-real:": _real,
    "imagenet-c:": _imagenet_c,
    "cifar10-c:": lambda path, chosen: _cifar_c("CIFAR-10-C", CIFAR10, 10, path, chosen),
    "cifar100-c:": lambda path, chosen: _cifar_c("CIFAR-100-C", (), 100, path, chosen),
}
"""Openers by name; they take the rest of `--testset` as their argument."""
