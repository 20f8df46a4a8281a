"""What a report is made of: sections of figures, tables and galleries, each with its data as
CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from samovar.report.read import RunData
from samovar.report.run_names import command


@dataclass(frozen=True)
class Data:
    """The numbers of a figure, as a table for other programs."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @property
    def csv(self) -> str:
        """With a header; numbers in full, missing ones empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([["" if value is None else value for value in row] for row in self.rows])
        return text.getvalue()


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend."""

    label: str
    color: int
    dashed: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot: Plotly's `data` and `layout` as plain dicts; colours are CSS variables, resolved in
    the page."""

    kind: ClassVar[str] = "figure"
    id: str
    title: str
    plot: dict[str, Any]
    data: Data
    caption: str = ""
    keys: tuple[Key, ...] = ()
    run: RunData | None = None
    """Where a figure is of one run alone."""
    poster: str = ""
    """Image to show in place of a 3-D plot: in print, without JavaScript or WebGL."""
    height: int = 320
    wide: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A cell of a table for people."""

    text: str
    error: str = ""
    details: Sequence[str] = ()
    hollow: bool = False
    """An iteration stopped before its tolerance."""
    missing: str = ""
    """The command that adds it."""


@dataclass(frozen=True)
class Row:
    """A row of a table; its head may be a run."""

    head: str
    cells: Sequence[Cell]
    run: RunData | None = None
    detail: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table; `note` goes below the table."""

    title: str
    note: str = ""
    flags: tuple[str, ...] = ()
    """Why its numbers do not compare; shown beside the title and below."""


@dataclass(frozen=True)
class Table:
    """A table for people, with its data for programs."""

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
    """An image, with a small map laid over it."""

    alt: str
    image: str = ""
    overlay: str = ""
    caption: str = ""
    detail: str = ""
    tone: str = ""
    """`right` or `wrong`."""


@dataclass(frozen=True)
class Strip:
    """Pictures in a row."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Gallery:
    """Pictures of one run."""

    kind: ClassVar[str] = "gallery"
    id: str
    run: RunData
    strips: Sequence[Strip]
    data: Data
    title: str = ""
    caption: str = ""
    wide: bool = False
    coarse: bool = False
    """Its images have few pixels, which are shown as such."""


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
    """Ends and title of the colour scale that the parts share."""
    notes: tuple[str, ...] = ()
    wide: bool = True

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return columns_of(len(self.parts))


Part = Figure | Table | Gallery | Group


@dataclass(frozen=True)
class Missing:
    """A measurement that runs lack, with the commands that add it."""

    what: str
    labels: tuple[str, ...]
    commands: tuple[str, ...]
    hint: str = ""


@dataclass(frozen=True)
class Section:
    """A chapter of the report."""

    id: str
    title: str
    lead: str = ""
    parts: Sequence[Part] = ()
    missing: Sequence[Missing] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    """Warnings: protocols that differ, files that cannot be read, values left out."""


def lacking(runs: Iterable[RunData], what: str, *words: str, hint: str = "") -> list[Missing]:
    """The note for runs without a measurement, if there are any."""
    runs = list(runs)
    if not runs:
        return []
    return [Missing(what, labels_of(runs), tuple(command(run, *words) for run in runs), hint)]


def columns_of(count: int) -> int:
    """How many tiles to put in a row, so that rows are full and tiles not too small."""
    return 2 if count in (1, 2, 4) else 3 if count <= 9 else 4


def unfolded(id: str, title: str, galleries: Sequence[Gallery], most: int = 6) -> list[Group]:
    """The first galleries, and the rest folded away."""
    rest = galleries[most:]
    groups = [Group(id, title, galleries[:most])] if galleries else []
    return groups + (
        [Group(f"{id}-more", f"{title}, {len(rest)} more runs", rest, folded=True)] if rest else []
    )


def balanced(figures: Sequence[Figure]) -> list[Figure]:
    """Figures in two columns: of an odd number the first takes a row of its own."""
    odd = len(figures) % 2 and not any(figure.wide for figure in figures)
    return [
        replace(figure, wide=figure.wide or (not k and bool(odd)))
        for k, figure in enumerate(figures)
    ]


def labels_of(runs: Iterable[RunData]) -> tuple[str, ...]:
    """What the runs are called."""
    return tuple(run.label for run in runs)
