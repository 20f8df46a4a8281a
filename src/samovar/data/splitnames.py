"""Read the role of a folder or split from its name: `Training`, `seg_test`, `valset`, `dev`.

A name is cut into words. One word must stand for a role; words such as `images` or `set` add
nothing; every other word is the *rest*, by which the folders of one set are matched: `seg_train`
and `seg_test` have the rest `seg`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["train", "val", "test", "unlabelled"]

_STEMS: dict[Kind, tuple[str, ...]] = {
    "train": ("train", "training", "trn", "trainval"),
    "val": (
        *("val", "valid", "validation", "validate", "validating", "validations"),
        *("dev", "devel", "development", "eval", "evaluation", "evaluate", "evaluating"),
        *("holdout", "heldout"),
    ),
    "test": ("test", "testing", "tests", "tst"),
    "unlabelled": (
        *("pred", "predict", "prediction", "predictions", "unlabelled", "unlabeled"),
        *("infer", "inference", "submission"),
    ),
}
"""Words of each role; of several validation folders the one whose word is first is used."""

FILLERS = frozenset(
    (
        *("set", "sets", "data", "dataset", "datasets", "split", "splits", "folder", "folders"),
        *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "dir"),
    )
)
"""Words that add nothing to the name of a split."""


@dataclass(frozen=True)
class Role:
    """Meaning of a name."""

    kind: Kind
    rest: str
    """The words that say nothing about the role; empty for a plain `train`, `Test_Images`, ..."""
    order: tuple[int, int]
    """Sorts names by how well they serve for validation."""


def role_of(name: str) -> Role | None:
    """Return the role that a name states, or None.

    A name that states `train` and `val` trains; one that states `train` and `test` holds both and
    has no role."""
    found: dict[Kind, tuple[int, int]] = {}
    rest = []
    for word in _words(name):
        stated = _stated(word)
        if stated:
            found.setdefault(*stated)
        elif word not in FILLERS:
            rest.append(word)
    if not found or {"train", "test"} <= set(found):
        return None
    # the test set of `test-dev` is for testing, the training set of `train_val` for training
    kind = next(kind for kind in ("train", "test", "val", "unlabelled") if kind in found)
    return Role(kind, " ".join(rest), found[kind])


def is_filler(name: str) -> bool:
    """Return whether a name says nothing: `images`, `Data_Set`."""
    words = _words(name)
    return bool(words) and all(word in FILLERS for word in words)


def best_for_validation(names: Iterable[str]) -> list[str]:
    """Return the names of validation and test splits, the best one first."""
    roles = roles_of(names)
    held = [name for name, role in roles.items() if role.kind in ("val", "test")]
    return sorted(held, key=lambda name: (bool(roles[name].rest), roles[name].order, name))


def roles_of(names: Iterable[str]) -> dict[str, Role]:
    """Return the roles of those names that state one."""
    return {name: role for name in names if (role := role_of(name))}


def _words(name: str) -> list[str]:
    # `trainSet` is two words, `TRAIN` is one
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFC", name))
    return re.findall(r"[^\W\d_]+", apart.casefold())


def _stated(word: str) -> tuple[Kind, tuple[int, int]] | None:
    """Return the role that a word states, also with a filler glued to it (`trainset`)."""
    for number, (kind, stems) in enumerate(_STEMS.items()):
        for order, stem in enumerate(stems):
            alone = {word.removeprefix(stem), word.removesuffix(stem)} - {word}
            if alone & (FILLERS | {""}):
                return kind, (number, order)
    return None
