"""What a model makes of image files: a run, a model by name, an exported folder or ONNX file of
one.

Images go the way that the run's own evaluation sends them, at any size, orientation and colour
mode."""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from samovar.data.decode import UnreadableImage
from samovar.data.folders import EXTENSIONS, images_in
from samovar.data.pipeline import to_floats
from samovar.export.onnx_file import MODEL, interface_in, open_session, run
from samovar.export.original import open_original
from samovar.export.preprocessing import Interface, probabilities, read_image
from samovar.export.program import PROGRAM
from samovar.runtime import resolve_device


@dataclass(frozen=True)
class Predictor:
    """A model that is ready for images."""

    name: str
    interface: Interface
    logits: Callable[[Tensor], Tensor]
    """Images [B, C, S, S] in [0, 1] to logits [B, K], both on the host."""


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one image: the classes of highest probability first."""

    image: Path
    classes: tuple[str, ...]
    indices: tuple[int, ...]
    probabilities: tuple[float, ...]
    """Softmax over all classes; of a model trained by sigmoid loss each class's own, which need not
    add up to 1."""


def open_predictor(
    what: str, *, checkpoint: str = "best", name: str = "", device: str = "auto"
) -> Predictor:
    """Open what predicts.

    Args:
        what: a run, a timm name, a folder that was exported, an ONNX file, or a file of weights.
        checkpoint: of a run: `best`, `last` or a step.
        name: the network of a bare file of weights.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Raises:
        ValueError: nothing of this name, or a program whose reader would run what is in it."""
    path, place = Path(what), resolve_device(device)
    if path.suffix == ".onnx" or (path / MODEL).is_file():
        file = path / MODEL if path.is_dir() else path
        session = open_session(file, place.type)
        return _checked(
            Predictor(what, interface_in(session, file), lambda images: run(session, images))
        )
    if path.suffix == ".pt2" or (path / PROGRAM).is_file():
        raise ValueError(
            f"{what} is a program of torch.export, which is not opened here since its reader runs code that is in a "
            "file; give the run, or an export to timm or onnx"
        )
    original = open_original(what, checkpoint=checkpoint, name=name)
    model = original.opened.model.to(place)

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(images.to(place)).float().cpu()
        return found

    return _checked(Predictor(original.title, original.interface, logits))


def _checked(predictor: Predictor) -> Predictor:
    if predictor.interface.channels not in (1, 3):
        raise ValueError(
            f"{predictor.name} takes {predictor.interface.channels} channels, and image files are read as grey or RGB"
        )
    return predictor


def find_images(words: Sequence[str]) -> list[Path]:
    """The files of a command line: files as they are, folders with all below them, patterns; each
    once, in order.

    Raises:
        ValueError: a name of nothing, a folder without images."""
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        matched = (
            [path]
            if path.exists()
            else [Path(each) for each in sorted(glob.glob(word, recursive=True))]
        )
        if not matched:
            raise ValueError(
                f"there is no image {word}; give files, folders, or patterns such as 'photos/**/*.jpg'"
            )
        for each in matched:
            files = sorted(images_in(each, str(each))) if each.is_dir() else [str(each)]
            if not files and path.is_dir():
                raise ValueError(f"{word} holds no images; known endings: {' '.join(EXTENSIONS)}")
            found |= dict.fromkeys(map(Path, files))
    if not found:
        raise ValueError(
            f"there is no image among {' '.join(words)}; known endings: {' '.join(EXTENSIONS)}"
        )
    return list(found)


def predict(
    predictor: Predictor,
    images: Sequence[Path],
    *,
    top_k: int = 5,
    batch_size: int = 64,
    on_bad: Callable[[Path, str], None],
) -> Iterator[Prediction]:
    """The predictions on image files, in their order, without those that cannot be read.

    Args:
        predictor: the model.
        images: files.
        top_k: classes of each; at most all.
        batch_size: images per forward pass.
        on_bad: told of each file that cannot be read, and why.

    Raises:
        ValueError: logits that are not finite."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders leave Python's lock
        for first in range(0, len(images), batch_size):
            files = images[first : first + batch_size]
            read = list(pool.map(lambda path: _try(path, predictor.interface), files))
            for path, found in zip(files, read, strict=True):
                if isinstance(found, str):
                    on_bad(path, found)
            good = {
                path: found
                for path, found in zip(files, read, strict=True)
                if isinstance(found, Tensor)
            }
            if good:
                yield from _best(
                    list(good), predictor, to_floats(torch.stack(list(good.values()))), top_k
                )


def _try(path: Path, interface: Interface) -> Tensor | str:
    """The image, or why it cannot be read."""
    try:
        return read_image(path, interface)
    except UnreadableImage as error:
        return " ".join(str(error).split())
    except OSError as error:
        return error.strerror or str(error)


def _best(
    paths: Sequence[Path], predictor: Predictor, images: Tensor, top_k: int
) -> Iterator[Prediction]:
    logits = predictor.logits(images)
    bad = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"logits of {paths[bad[0]]} are not finite; look at the weights of {predictor.name}"
        )
    order = logits.sort(dim=1, descending=True, stable=True).indices[
        :, :top_k
    ]  # of equal ones the lower class first
    values = probabilities(logits.double(), predictor.interface).gather(1, order)
    for path, indices, row in zip(paths, order.tolist(), values.tolist(), strict=True):
        names = tuple(predictor.interface.classes[index] for index in indices)
        yield Prediction(path, names, tuple(indices), tuple(row))


# --- for a person, for a program, for a spreadsheet
# ------------------------------------------------------------------


def show(
    what: str,
    words: Sequence[str],
    *,
    checkpoint: str = "best",
    name: str = "",
    device: str = "auto",
    top_k: int = 5,
    batch_size: int = 64,
    as_json: bool = False,
    csv_file: str = "",
) -> None:
    """Predict and write: a table, a JSON object a line, or CSV to a file or (`-`) to stdout.

    Raises:
        ValueError: a model or images that are not there, a file that cannot be written.
        SystemExit: 2 at the end where images could not be read; each is named on stderr, the others
            are predicted."""
    images = find_images(words)
    predictor = open_predictor(what, checkpoint=checkpoint, name=name, device=device)
    bad: list[Path] = []

    def on_bad(path: Path, reason: str) -> None:
        bad.append(path)
        print(f"samovar: {_shown(path)} cannot be read: {reason}", file=sys.stderr)

    found = predict(predictor, images, top_k=top_k, batch_size=batch_size, on_bad=on_bad)
    try:
        if as_json:
            write_json(found, sys.stdout)
        elif csv_file == "-":
            write_csv(found, sys.stdout)
        elif csv_file:
            _save_csv(found, Path(csv_file))
        else:
            Console(width=None if sys.stdout.isatty() else 120).print(table_of(found, predictor))
    except KeyboardInterrupt:
        print("samovar: interrupted; what is written is whole", file=sys.stderr)
        raise SystemExit(130) from None
    if bad:
        raise SystemExit(2)


def write_json(found: Iterator[Prediction], file: IO[str]) -> None:
    """A JSON object a line, as soon as it is known."""
    for each in found:
        columns = zip(each.classes, each.indices, each.probabilities, strict=True)
        best = [
            {"class": name, "index": index, "probability": value} for name, index, value in columns
        ]
        print(json.dumps({"image": _shown(each.image), "predictions": best}), file=file, flush=True)


def write_csv(found: Iterator[Prediction], file: IO[str]) -> None:
    """A row an image: its path, then class and probability of the best, the second best and so
    on."""
    rows = csv.writer(file, lineterminator="\n")
    for number, each in enumerate(found):
        if number == 0:
            ranks = range(1, len(each.classes) + 1)
            rows.writerow(
                [
                    "image",
                    *(f"{column}{rank}" for rank in ranks for column in ("class", "probability")),
                ]
            )
        pairs = zip(each.classes, each.probabilities, strict=True)
        rows.writerow(
            [
                _shown(each.image),
                *(cell for name, value in pairs for cell in (name, f"{value:.6g}")),
            ]
        )
        file.flush()


def _save_csv(found: Iterator[Prediction], path: Path) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            write_csv(found, file)
    except OSError as error:
        raise ValueError(
            f"cannot write to --csv {path}: {error.strerror or error}; give another file"
        ) from error
    print(f"predictions: {path}")


def table_of(found: Iterator[Prediction], predictor: Predictor) -> Table:
    """The predictions for a person."""
    kind = "softmax" if predictor.interface.loss == "softmax" else "sigmoid, each class on its own"
    table = Table(
        "image", "class", "probability", "then", title=f"{predictor.name}: probabilities by {kind}"
    )
    for each in found:
        rest = zip(each.classes[1:], each.probabilities[1:], strict=True)
        then = ", ".join(f"{name} {value:.3f}" for name, value in rest)
        row = (_shown(each.image), each.classes[0], f"{each.probabilities[0]:.3f}", then)
        table.add_row(
            *(Text(cell, overflow="fold") for cell in row)
        )  # a name in brackets is no markup
    return table


def _shown(path: Path) -> str:
    """A path as text that any terminal takes, whatever bytes the file system has."""
    return os.fsencode(path).decode("utf-8", "replace")
