"""Trees of folders that are no data set as they stand: say what each looks like and what to do.

Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

from samovar.data.folders import holds_images, is_flat, subfolders
from samovar.data.splitnames import is_filler, role_of, roles_of

_PICTURES = frozenset({"images", "image", "imgs", "img", "jpegimages"})
_LABELS = frozenset(
    (
        *("labels", "label", "labelstxt", "annotations", "annotation", "annos", "xmls", "bboxes"),
        *("masks", "mask", "gt", "groundtruth", "ground_truth", "segmentationclass"),
    )
)
"""Folders, in lower case, that make a set for detection or segmentation of the pictures beside."""

_NO_CLASSES = frozenset({"val", "validation", "test", "testing"})
"""Names that hardly any class has, unlike `train` (the vehicle) and `valid` (beside `invalid`)."""


class Misplaced(Exception):
    """A tree that cannot be used as it stands; the text says what to do."""


def class_root(split: Path) -> Path | None:
    """Return the folder that holds the class folders of a split; None if there are none.

    Archives repeat the name (seg_train/seg_train/CLASS) or put one folder between
    (train/images/CLASS), which is passed through."""
    while names := subfolders(split):
        inner = split / names[0]
        if len(names) > 1 or is_flat(split):
            return split
        role, repeated = role_of(split.name), role_of(inner.name)
        repeats = role is not None and repeated is not None and repeated.kind == role.kind
        between = len(subfolders(inner)) > 1 and not is_flat(inner)
        if not (repeats or between or is_filler(inner.name)):
            return split
        split = inner
    return None


def refuse_split_in_split(root: Path) -> None:
    """Refuse a split among the class folders of a split."""
    for name, role in roles_of(subfolders(root)).items():
        if not role.rest and class_root(root / name):
            raise Misplaced(
                f"{root / name} looks like a split inside of a split; move it beside {root}, or "
                "put its images directly into it if it is a class"
            )


def refuse_detection(path: Path, names: list[str]) -> None:
    """Refuse pictures beside their labels, the layout of sets for detection."""
    pictures = next((name for name in names if name.casefold() in _PICTURES), None)
    labels = next((name for name in names if name.casefold() in _LABELS), None)
    if not pictures or not labels:
        return
    inner = path / pictures
    below = subfolders(inner)
    splits = all(role_of(name) and not class_root(inner / name) for name in below)
    if len(below) > 1 and not splits and not is_flat(inner):
        raise Misplaced(
            f"{path} holds {pictures} beside {labels}, and the classes or splits are in {pictures};"
            f" give {inner}"
        )
    raise Misplaced(
        f"{path} holds {pictures} beside {labels}, which looks like a set for detection or "
        "segmentation; sort the images into one folder per class"
    )


def refuse_lone_splits(path: Path, names: list[str]) -> None:
    """Refuse splits among which none trains."""
    plain = {name: role.kind for name, role in roles_of(names).items() if not role.rest}
    if len(plain) == len(names) and len(set(plain.values())) > 1:
        raise Misplaced(
            f"{_few(names)} in {path} look like splits, but there is no training split with class "
            "folders; sort the images into PATH/train/CLASS"
        )
    for name, kind in plain.items():
        if len(names) > 1 and name.casefold() in _NO_CLASSES and holds_images(path / name):
            raise Misplaced(
                f"{path / name} looks like a split beside classes; move it elsewhere, or rename it "
                "if it is a class"
            )
        if kind in ("val", "test") and class_root(path / name):
            raise Misplaced(
                f"{path / name} holds folders and looks like a validation split, but there is no "
                f"training split beside it; name that train, or give {path / name} to use its "
                "folders as classes"
            )


def refuse_unknown_splits(path: Path, names: list[str]) -> None:
    """Refuse folders that hold the same subfolders: these are the classes, or the splits."""
    nested: list[str] = []
    for seen, name in enumerate(names):
        if not is_flat(path / name) and subfolders(path / name):
            nested.append(name)
        # most are classes that hold images, so not all of a thousand have to be opened
        elif 2 * (seen + 1 - len(nested)) > len(names):
            return
    common = set.intersection(*(set(subfolders(path / name)) for name in nested)) if nested else ()
    if len(nested) < 2 or len(common) < 2:
        return
    first = sorted(common)[0]
    holds = f"each of {_few(nested)} in {path} holds the same folders {_few(sorted(common))}"
    if len(roles_of(common)) < len(common):
        raise Misplaced(
            f"{holds}, so they look like splits of unknown names; name them train, val and "
            "test, or put the images of each directly into its folder if they are classes"
        )
    if class_root(path / nested[0] / first):
        raise Misplaced(
            f"{holds}, so they look like several data sets; give one of them, such as "
            f"{path / nested[0]}"
        )
    raise Misplaced(
        f"{holds}, so the images are sorted by class first; sort them by split first, as in "
        f"{path}/train/{nested[0]}"
    )


def refuse_too_high(path: Path, names: list[str]) -> None:
    """Refuse a path whose data set lies in a folder below, and name that folder."""
    below = _data_below(path, names)
    inside = subfolders(below)
    if below != path and (len(inside) > 1 or roles_of(inside)):
        raise Misplaced(f"the classes or splits of {path} are further down; give {below}")


def _data_below(path: Path, names: list[str]) -> Path:
    """Return the folder to give in place of `path`, or `path` itself."""
    if any(role.kind == "train" for role in roles_of(names).values()):
        return path
    inner = [name for name in names if not is_flat(path / name)]
    for name in inner:
        kinds = {role.kind for role in roles_of(subfolders(path / name)).values()}
        if "train" in kinds and kinds & {"val", "test"}:
            return path / name
    full = [name for name in inner if holds_images(path / name)]
    # a folder that holds images itself is a class, so `path` is the place
    if len(full) != 1 or len(inner) < len(names):
        return path
    return _data_below(path / full[0], subfolders(path / full[0]))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
