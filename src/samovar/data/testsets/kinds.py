"""A published test set, and the groups of images in it that are scored together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from samovar.data.splits import Split


@dataclass(frozen=True)
class Condition:
    """Images that are scored together."""

    where: dict[str, str | int]
    """Corruption and severity; empty if the test set has no such parts."""
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
    """Names in the order of the classes, if the set has names."""
    image_size: int | None = None
    """Side in pixels of every image; None if sizes vary."""
    allowed: tuple[int, ...] | None = None
    """Rising indices of the classes that the set covers; None: all."""
    label_sets: tuple[tuple[int, ...], ...] | None = None
    """ReaL's labels of each validation image."""
    left_out: int = 0
    """Images without a label, which are in no condition."""
    missing: tuple[str, ...] = ()
    """Published corruptions and severities that are in no condition."""


class Chosen(NamedTuple):
    """Parts of a corruption set to score."""

    corruptions: tuple[str, ...]
    """Names; empty: all that are there, if they make up the benchmark."""
    severities: tuple[int, ...]
