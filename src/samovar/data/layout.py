"""Read from names and contents what the folders below a path are: splits, classes, or neither.

The rules, in docs/howto-folders.md: a split has a name that says so and holds class folders; a
class holds images. What could be either is refused, so that no split is ever taken for a class and
no class is dropped. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samovar.data import misplaced
from samovar.data.folders import (
    LeftOut,
    holds_images,
    is_flat,
    list_classes,
    num_held_out,
    num_kept,
    readable,
    subfolders,
)
from samovar.data.misplaced import Misplaced, class_root
from samovar.data.splitnames import best_for_validation, role_of, roles_of


@dataclass(frozen=True)
class Layout:
    """Locations of the splits of a folder source."""

    train: Path
    val: Path | None
    """None: a share of `train` is held out."""
    note: str
    """One line: which folder was taken as what, and which were left alone."""


def count_class_folders(
    source: str, path: Path, val_share: float, fraction: float, *, needs_val: bool
) -> int:
    """Return the number of training images below a folder.

    Raises:
        ValueError: a folder that cannot train."""
    layout = find_layout(source, path, needs_val=needs_val)
    classes = list_classes(source, layout.train)
    refuse_one_class(source, tuple(classes))
    counts = [len(files) for files in classes.values()]
    if layout.val is None:
        counts = [count - num_held_out(count, val_share) for count in counts]
    return sum(num_kept(count, fraction) for count in counts)


def find_layout(
    source: str, path: Path, *, needs_val: bool = False, left_out: LeftOut | None = None
) -> Layout:
    """Distinguish a folder of splits, PATH/train + PATH/val, from one of class folders.

    Args:
        source: the value of `--data.source`, for messages.
        path: the folder.
        needs_val: refuse a folder without a validation split.
        left_out: names the folders that systems left beside the data.

    Raises:
        ValueError: PATH is missing, no folder, neither splits nor classes, or has no validation
            split where one is needed."""
    with readable(source):
        refuse_missing(source, path)
        try:
            layout = _read(path, subfolders(path, left_out))
        except Misplaced as reason:
            raise ValueError(f"--data.source {source}: {reason}") from None
    if needs_val and layout.val is None:
        missing = "train" if layout.train == path else "val"
        raise ValueError(
            f"--data.source {source}: {path / missing} with one folder per class is missing; "
            "sort the images into PATH/train/WNID and PATH/val/WNID"
        )
    return layout


def refuse_one_class(source: str, classes: Sequence[str]) -> None:
    """Refuse images of a single class, among which there is nothing to tell apart."""
    if len(classes) < 2:
        raise ValueError(
            f"--data.source {source} has only the class {classes[0]!r}; training needs two or more"
        )


def refuse_missing(source: str, path: Path) -> None:
    """Refuse a folder that is not there.

    Raises:
        ValueError: says what is there."""
    with readable(source):
        if not path.exists():
            raise ValueError(f"--data.source {source}: there is no folder {path}; check the path")
        if not path.is_dir():
            raise ValueError(
                f"--data.source {source}: {path} is a file; give the folder that holds the class "
                "folders"
            )


def _read(path: Path, names: list[str]) -> Layout:
    misplaced.refuse_detection(path, names)
    train = _training_split(path, names)
    if train:
        return _with_splits(path, names, train)
    misplaced.refuse_lone_splits(path, names)
    misplaced.refuse_unknown_splits(path, names)
    misplaced.refuse_too_high(path, names)
    return Layout(path, None, f"{path}: each folder is a class; a share of each validates")


def _training_split(path: Path, names: list[str]) -> str | None:
    """Return the name of the folder that trains, or None where the folders are classes.

    A folder trains if its name says so, it holds class folders, and either a validation or test
    split of the same set stands beside it, or its name says nothing else, or it stands alone."""
    roles = roles_of(names)
    found = []
    for name, role in roles.items():
        if role.kind != "train":
            continue
        others = [other for other in roles if roles[other].kind in ("val", "test")]
        partners = [other for other in others if roles[other].rest == role.rest]
        if class_root(path / name):
            if partners or not role.rest or len(names) == 1:
                found.append(name)
        # without a partner a `train` that holds images is a class, the vehicle
        elif partners and holds_images(path / name):
            raise Misplaced(
                f"{name} and {partners[0]} in {path} look like splits, but {name} holds its images "
                f"without class folders; sort them into {path / name}/CLASS, or rename the folders "
                "if they are classes"
            )
    if len(found) > 1:
        raise Misplaced(
            f"{found[0]} and {found[1]} in {path} both look like training splits; keep one there, "
            "or give a folder that holds one training and one validation folder"
        )
    return found[0] if found else None


def _with_splits(path: Path, names: list[str], train: str) -> Layout:
    """Return the layout of a folder whose training split is known; account for all others."""
    roots = {name: class_root(path / name) for name in names}
    roles = roles_of(names)
    held = [name for name in best_for_validation(names) if roots[name]]
    # a split of the same set first: seg_train goes with seg_test
    held.sort(key=lambda name: roles[name].rest != roles[train].rest)
    val = held[0] if held else None
    others = [name for name in names if name not in (train, val)]
    for name in others:
        _refuse_unknown(path, name, train, val)
    root, val_root = roots[train], roots[val] if val else None
    assert root
    for each in filter(None, (root, val_root)):
        misplaced.refuse_detection(each, subfolders(each))
    misplaced.refuse_split_in_split(root)
    validates = "holds out a share of each class to validate"
    if val and val_root:
        why = " (there is no other validation folder)" if roles[val].kind == "test" else ""
        validates = f"validates on {val_root.relative_to(path)}{why}"
    alone = f"; left alone: {', '.join(others)}" if others else ""
    note = f"{path}: trains on {root.relative_to(path)}, {validates}{alone}"
    return Layout(root, val_root, note)


def _refuse_unknown(path: Path, name: str, train: str, val: str | None) -> None:
    """Refuse a folder beside the splits that might be a class; other splits are left alone."""
    role = role_of(name)
    if role and role.kind != "train":
        return
    # beside two splits only a folder of images may be a class, beside one any may be
    if is_flat(path / name) if val and not role else holds_images(path / name):
        raise Misplaced(
            f"{path / train} looks like the training split, but {name} beside it holds images too; "
            f"name it val or test if it is a split, rename {train} if both are classes, or move "
            f"{name} elsewhere"
        )
