"""Test sets of ImageNet's classes: one folder a class, or ReaL's labels of validation images."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samovar.data.folders import images_in, list_classes
from samovar.data.openers import Files
from samovar.data.splits import Encoded, encoded
from samovar.data.testsets.kinds import Chosen, Condition, TestSet


@functools.cache
def wnids() -> dict[str, str]:
    """Return ImageNet's WordNet ids in the order of its classes.

    The value names the sets of 200 classes that hold the id: A, R."""
    lines = Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="ascii").splitlines()
    return {wnid: sets for wnid, _, sets in (line.partition(" ") for line in lines)}


def classes(only: str = "") -> dict[str, int]:
    """Return the class index of each WordNet id, of one set of 200 alone if `only` names it."""
    return {wnid: index for index, (wnid, sets) in enumerate(wnids().items()) if only in sets}


# --- one folder a class ---


def open_folders(
    title: str, source: str, size: int, path: str, names: Mapping[str, int]
) -> TestSet:
    """Open a test set of one folder a class; `names` maps folders to class indices."""
    split = encoded_classes(Path(path), list_named(title, Path(path), names), names)
    allowed = tuple(sorted(names.values())) if len(names) < len(wnids()) else None
    return TestSet(
        title, source, size, (Condition({}, split),), len(wnids()), tuple(wnids()), allowed=allowed
    )


def list_named(title: str, folder: Path, names: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the images of each class folder, after a check that the folders are `names`.

    Raises:
        ValueError: a folder too many or one missing."""
    listed = list_classes("", folder)
    strange = next((name for name in listed if name not in names), None)
    if strange is not None:
        first, *_, last = names
        raise ValueError(
            f"{folder / strange} is no class of {title}, which has {len(names)} folders, {first} "
            f"to {last}; give the folder that holds them, as it was published"
        )
    missing = [name for name in names if name not in listed]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of the {len(names)} classes of {title}, among them "
            f"{missing[0]}; a score over fewer is another number, so add them"
        )
    return listed


def encoded_classes(
    folder: Path, listed: Mapping[str, list[str]], names: Mapping[str, int]
) -> Encoded:
    """Return the listed images below a folder, labelled by the name of their class."""
    labels = np.repeat([names[name] for name in listed], [len(files) for files in listed.values()])
    return encoded(Files(str(folder), paths_of(listed)), labels)


def paths_of(listed: Mapping[str, list[str]]) -> npt.NDArray[np.bytes_]:
    """Return the paths of all classes, one after the other."""
    return np.array([os.fsencode(path) for files in listed.values() for path in files])


# --- ReaL ---


def open_real(argument: str, _: Chosen) -> TestSet:
    """Open ImageNet's validation images with ReaL's labels; `argument` is VAL::REAL.json."""
    folder, file = (*argument.split("::", 1), "")[:2]
    if not file:
        raise ValueError(
            "the labels are missing; give imagenet-real:VAL::REAL.json, the validation images and "
            "labels"
        )
    label_sets = _label_sets(Path(file))
    paths = _by_number(Path(folder), len(label_sets))
    kept = [number for number in sorted(paths) if label_sets[number - 1]]
    if not kept:
        raise ValueError(
            f"{file} has no label for any of the {len(paths)} images in {folder}; give those of "
            "this set"
        )
    files = Files(folder, paths_of({"": [paths[number] for number in kept]}))
    split = encoded(files, np.array(kept) - 1)
    return TestSet(
        "ImageNet ReaL",
        "arXiv:2006.07159",
        50_000,
        (Condition({}, split),),
        len(wnids()),
        tuple(wnids()),
        label_sets=label_sets,
        left_out=len(paths) - len(kept),
    )


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
    count = len(wnids())
    bad = [k for each in found for k in each if type(k) is not int or not 0 <= k < count]
    if bad:
        raise ValueError(
            f"{file} holds the label {bad[0]!r}; labels are classes from 0 to {count - 1}"
        )
    return tuple(map(tuple, found))


def _by_number(folder: Path, count: int) -> dict[int, str]:
    """Return the paths of validation images by the number in their name.

    They may be sorted into any folders."""
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
