"""Define what a report consists of: chapters of figures, tables and galleries, as plain data."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from samovar.report.read import RunData
from samovar.report.run_names import command
from samovar.words import csv_cell


@dataclass(frozen=True)
class Data:
    """The numbers of a part as a table for other programs."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @property
    def csv(self) -> str:
        """Return the table as CSV with a header: numbers in full, no formulas."""
        # The same bytes on every system: line feeds alone, and no rounding.
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(csv_cell, self.columns))
        writer.writerows([["" if v is None else csv_cell(v) for v in row] for row in self.rows])
        return text.getvalue()


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend."""

    label: str
    color: int
    dashed: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot: Plotly's `data` and `layout` as plain dicts.

    Colours are CSS variables, which the page resolves, so that plots follow its theme."""

    kind: ClassVar[str] = "figure"
    id: str
    title: str
    plot: dict[str, Any]
    data: Data
    caption: str = ""
    keys: tuple[Key, ...] = ()
    run: RunData | None = None
    """The run, if the figure shows only one."""
    poster: str = ""
    """Image in place of a 3-D plot: for print, and without JavaScript or WebGL."""
    poster_labels: str = ""
    """Image of its labels as a mask, which the page fills with its ink."""
    height: int = 320
    wide: bool = False
    notes: tuple[str, ...] = ()
    sense: str = ""
    """What is good, such as `higher is better`; shown below the title."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table for readers."""

    text: str
    error: str = ""
    details: Sequence[str] = ()
    hollow: bool = False
    """True if the iteration stopped before it reached its tolerance."""
    missing: str = ""
    """The command that adds the missing value."""


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    head: str
    cells: Sequence[Cell]
    run: RunData | None = None
    """The run, if the row shows one: its colour stands beside the head."""
    detail: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    note: str = ""
    """How the numbers were measured; shown below the table."""
    flags: tuple[str, ...] = ()
    """Reasons why its numbers cannot be compared; shown beside the title and below the table."""


@dataclass(frozen=True)
class Table:
    """A table for readers, with its data for programs."""

    kind: ClassVar[str] = "table"
    id: str
    title: str
    head: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    data: Data | None = None
    caption: str = ""
    footnote: str = ""
    numeric: bool = True
    wide: bool = True


@dataclass(frozen=True)
class Picture:
    """An image, or a map of one."""

    alt: str
    image: str = ""
    caption: str = ""
    detail: str = ""
    tone: str = ""
    """`right` or `wrong`: whether the prediction is correct."""
    map: bool = False
    """True if the image is a heat map, whose cells are shown as they are."""


@dataclass(frozen=True)
class Strip:
    """Pictures in a row."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Gallery:
    """Strips of pictures of one run."""

    kind: ClassVar[str] = "gallery"
    id: str
    run: RunData
    strips: Sequence[Strip]
    data: Data
    title: str = ""
    caption: str = ""
    wide: bool = False
    coarse: bool = False
    """True if its images have so few pixels that they are shown as squares."""
    beside: int = 0
    """The first so many strips stand side by side: each image of the first with its maps."""
    scale: tuple[str, str, str] | None = None
    """Low end, high end and title of the colour scale of its maps."""
    opens: bool = False
    """True if its images open large."""
    columns: bool = False
    """True if its strips have few pictures, so that several strips stand side by side."""

    @property
    def sets(self) -> list[tuple[Picture, ...]]:
        """Return the pictures that stand side by side."""
        return list(zip(*(strip.pictures for strip in self.strips[: self.beside]), strict=False))


@dataclass(frozen=True)
class Group:
    """Parts side by side under one heading, or folded away."""

    kind: ClassVar[str] = "group"
    id: str
    title: str
    parts: Sequence[Figure | Table | Gallery]
    caption: str = ""
    folded: bool = False
    tiles: bool = False
    scale: tuple[str, str, str] | None = None
    """Low end, high end and title of the colour scale that the parts share."""
    ramp: str = "heights"
    """Colours of the scale: `heights`, or `shares` for cells that hold numbers."""
    sense: str = ""
    """What is good in all parts, such as `higher is better`."""
    notes: tuple[str, ...] = ()
    wide: bool = True

    @property
    def columns(self) -> int:
        """Return the number of tiles in a row."""
        return columns_of(len(self.parts))


@dataclass(frozen=True)
class Statement:
    """A sentence on what the runs decide."""

    tone: str
    """`decided`; `open` if not decided; `apart` if the numbers must not be compared; `alone`
    if there is nothing to compare."""
    about: str
    text: str
    more: str = ""
    """What would decide it, or what the sentence does not say."""


@dataclass(frozen=True)
class Statements:
    """Sentences in the order of their weight."""

    kind: ClassVar[str] = "statements"
    id: str
    title: str
    statements: Sequence[Statement]


Part = Figure | Table | Gallery | Group | Statements


@dataclass(frozen=True)
class Missing:
    """A measurement that runs lack, with the commands that add it."""

    what: str
    labels: tuple[str, ...]
    commands: tuple[str, ...]
    hint: str = ""


@dataclass(frozen=True)
class Chapter:
    """A chapter of the report."""

    id: str
    title: str
    lead: str = ""
    parts: Sequence[Part] = ()
    missing: Sequence[Missing] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    """Warnings: different protocols, unreadable files, values left out."""


def lacking(runs: Iterable[RunData], what: str, *words: str) -> list[Missing]:
    """Return a note with the `samovar measure` commands for runs without a measurement, if any."""
    runs = list(runs)
    if not runs:
        return []
    return [Missing(what, labels_of(runs), tuple(command(run, *words) for run in runs))]


def columns_of(count: int) -> int:
    """Return how many of `count` tiles stand in a row: full rows, tiles that are not too small."""
    return 2 if count in (1, 2, 4) else 3 if count <= 9 else 4


def unfolded(id: str, title: str, galleries: Sequence[Gallery], most: int = 6) -> list[Group]:
    """Group the first `most` galleries, and fold the rest away in a second group."""
    # Folded pictures need no layout, so that a page of many runs opens fast.
    rest = galleries[most:]
    groups = [Group(id, title, galleries[:most])] if galleries else []
    if rest:
        groups.append(Group(f"{id}-more", f"{title}, {len(rest)} more runs", rest, folded=True))
    return groups


def balanced(figures: Sequence[Figure]) -> list[Figure]:
    """Arrange figures in two columns: the first of an odd number gets a row of its own."""
    odd = len(figures) % 2 == 1 and not any(figure.wide for figure in figures)
    return [
        replace(figure, wide=figure.wide or (odd and index == 0))
        for index, figure in enumerate(figures)
    ]


def labels_of(runs: Iterable[RunData]) -> tuple[str, ...]:
    """Return the labels of runs."""
    return tuple(run.label for run in runs)
