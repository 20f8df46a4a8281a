"""Write predictions as a table for people, as JSON lines for programs, or as CSV."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.table import Table
from rich.text import Text

from samovar.export.preprocessing import Interface
from samovar.words import csv_cell, visible


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, the most probable first."""

    image: Path
    classes: tuple[str, ...]
    indices: tuple[int, ...]
    probabilities: tuple[float, ...]
    """Softmax over all classes; for a model trained by the sigmoid loss each class has its own
    probability, and they need not add up to 1."""


def write_json(found: Iterator[Prediction], file: IO[str]) -> None:
    """Write a JSON object a line, each as soon as it is known."""
    for each in found:
        columns = zip(each.classes, each.indices, each.probabilities, strict=True)
        best = [
            {"class": name, "index": index, "probability": value} for name, index, value in columns
        ]
        line = json.dumps({"image": path_text(each.image), "predictions": best})
        print(line, file=file, flush=True)


def write_csv(found: Iterator[Prediction], file: IO[str]) -> None:
    """Write a row an image: its path, then class and probability of the best, second best, ..."""
    rows = csv.writer(file, lineterminator="\n")
    for number, each in enumerate(found):
        if number == 0:
            ranks = range(1, len(each.classes) + 1)
            header = (f"{column}{rank}" for rank in ranks for column in ("class", "probability"))
            rows.writerow(["image", *header])
        pairs = zip(each.classes, each.probabilities, strict=True)
        cells = (cell for name, value in pairs for cell in (csv_cell(name), f"{value:.6g}"))
        # a path with ./ before it is the same path, and no formula
        path = visible(path_text(each.image))
        rows.writerow([path if csv_cell(path) == path else f"./{path}", *cells])
        file.flush()  # an interruption leaves whole rows


def save_csv(found: Iterator[Prediction], path: Path) -> None:
    """Write the rows of `write_csv` to a file, and print its path.

    Raises:
        ValueError: the file cannot be written."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            write_csv(found, file)
    except OSError as error:
        raise ValueError(
            f"cannot write to --csv {path}: {error.strerror or error}; give another file"
        ) from error
    print(f"predictions: {path}")


def common_folder(images: Sequence[Path]) -> Path | None:
    """Return the deepest folder that holds all images; None for one image or no such folder."""
    if len(images) < 2 or len({image.is_absolute() for image in images}) > 1:
        return None
    common = os.path.commonpath([image.parent for image in images])
    return Path(common) if common else None


def table_of(
    found: Iterator[Prediction], name: str, interface: Interface, below: Path | None = None
) -> Table:
    """Return the predictions of the model `name` as a table.

    Args:
        below: a folder of all images, which the title names in place of every row."""
    kind = "softmax" if interface.loss == "softmax" else "sigmoid, each class on its own"
    images = f"images in {path_text(below)}, " if below else ""
    title = Text(visible(f"{name}: {images}probabilities by {kind}"))
    table = Table("image", "class", "probability", "then", title=title)
    for each in found:
        rest = zip(each.classes[1:], each.probabilities[1:], strict=True)
        then = ", ".join(f"{name} {value:.3f}" for name, value in rest)
        path = each.image.relative_to(below) if below else each.image
        row = (path_text(path), each.classes[0], f"{each.probabilities[0]:.3f}", then)
        # Text, not str: rich would take a class name in brackets for markup
        table.add_row(*(Text(visible(cell), overflow="fold") for cell in row))
    return table


def path_text(path: Path) -> str:
    """Return a path as text that every terminal accepts, whatever bytes the file system holds."""
    return os.fsencode(path).decode("utf-8", "replace")
