"""Unreadable images: named once, counted, and an error above a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from samovar.data.splits import Split

FLOOR = 5
"""Unreadable images of a split that are allowed whatever its size, so that a share of 0.1 % does
not end a run over one file of a few hundred."""


class BadImages(ValueError):
    """More images are unreadable than `--data.max-bad-share` allows."""


def allowed(images: int, max_share: float) -> float:
    """Return how many of the images of a split may be unreadable."""
    # a share of 0 asks for a run over whole data, so nothing is allowed then
    floor = min(FLOOR, images // 2) if max_share else 0
    return max(max_share * images, floor)


def summary(path: Path) -> tuple[str, ...]:
    """Return a line on the images that a file of unreadable ones lists, none if it lists none."""
    counts = Counter(role for role, _, _ in _rows(path))
    if not counts:
        return ()
    found = " and ".join(f"{count} {role}" for role, count in counts.items())
    images = "image" if counts.total() == 1 else "images"
    return (f"left out {found} {images} that cannot be read, listed in {path}",)


class BadFiles:
    """Unreadable images of one split, also listed in a file as `role TAB path TAB reason`.

    Images count that this process and, by way of the file, the other ranks met since the start.
    Lines from before a resume do not count, as the images may have been repaired. A name is listed
    once: ranks read the file again before they append, so a line is doubled only when two of them
    meet the same image at the same moment."""

    def __init__(self, split: Split, role: str, max_share: float, path: Path | None) -> None:
        self.split, self.role, self.max_share, self.path = split, role, max_share, path
        self.met: dict[str, str] = {}
        self._met_of_class: Counter[int] = Counter()
        self._earlier = self._listed()

    def add(self, found: Iterable[tuple[int, str]]) -> None:
        """Count images (index, reason) and list them in the file.

        Raises:
            BadImages: too many so far."""
        for index, reason in found:
            name = " ".join(self.split.name(index).split())
            if name in self.met:
                continue
            # another rank may have met more since
            listed = self._listed()
            self.met |= {other: why for other, why in listed.items() if other not in self._earlier}
            self.met[name] = " ".join(reason.split())
            self._met_of_class[int(self.split.labels[index])] += 1
            if self.path and name not in listed:
                with self.path.open("a", encoding="utf-8", errors="surrogateescape") as file:
                    # in one write, so that the lines of several ranks stay whole
                    file.write(f"{self.role}\t{name}\t{self.met[name]}\n")
        count = len(self.met)
        if count > allowed(len(self.split), self.max_share):
            raise self.error(f"more than --data.max-bad-share {self.max_share:g}")
        if count > self.max_share * len(self.split) and self._lost_class():
            raise self.error("and a class has no other image")

    def _lost_class(self) -> bool:
        """Return whether this process met every image of a class."""
        sizes = np.bincount(self.split.labels)
        return any(count >= sizes[label] for label, count in self._met_of_class.items())

    def error(self, why: str) -> BadImages:
        """Return the exception that names the problem, one of the images and the file."""
        name, reason = next(iter(self.met.items()))
        listed = f"; all are in {self.path}" if self.path else ""
        return BadImages(
            f"{len(self.met)} of {len(self.split)} {self.role} images cannot be read, {why}: "
            f"{name} ({reason}){listed}; repair or remove them, or raise the share"
        )

    def _listed(self) -> dict[str, str]:
        """Return the reason for each image that the file lists under this role."""
        return {name: why for role, name, why in _rows(self.path) if role == self.role}


def _rows(path: Path | None) -> list[tuple[str, str, str]]:
    """Return role, name and reason of each image that a file lists; none without a file."""
    if path is None or not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    fields = [line.split("\t", 2) for line in lines]
    return [(row[0], row[1], row[2]) for row in fields if len(row) == 3]
