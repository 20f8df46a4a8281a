"""Predict the classes of image files with a run, a named model, an exported folder or an ONNX file.

Images are prepared as in the run's own evaluation, at any size, orientation and color mode."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samovar.anymodel.devices import to_device
from samovar.data.decode import UnreadableImage
from samovar.data.folders import EXTENSIONS, images_in
from samovar.data.pipeline import to_floats
from samovar.export.by_class import Copies, Tally
from samovar.export.onnx_file import MODEL, interface_in, open_session, run
from samovar.export.original import open_original
from samovar.export.prediction_output import (
    Prediction,
    common_folder,
    path_text,
    save_csv,
    table_of,
    write_csv,
    write_json,
)
from samovar.export.preprocessing import Interface, probabilities, read_image
from samovar.export.program import PROGRAM
from samovar.runtime import resolve_device
from samovar.runtime.terminal import console
from samovar.words import visible


@dataclass(frozen=True)
class Predictor:
    """A model that is ready for images."""

    name: str
    interface: Interface
    logits: Callable[[Tensor], Tensor]
    """Maps images [B, C, S, S] in [0, 1] to logits [B, K], both on the CPU."""
    note: str = ""
    """A line on the normalization that is assumed; empty where the run or the file has it."""


def open_predictor(
    what: str, *, checkpoint: str = "best", name: str = "", device: str = "auto"
) -> Predictor:
    """Open a model for predictions.

    Args:
        what: a run, a timm name, an exported folder, an ONNX file, or a file of weights.
        checkpoint: for a run: `best`, `last` or a step.
        name: the network of a bare file of weights.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Raises:
        ValueError: an unknown name, or a program of torch.export, whose reader would run its
            code."""
    path, place = Path(what), resolve_device(device, flag="--device")
    if path.suffix == ".onnx" or (path / MODEL).is_file():
        file = path / MODEL if path.is_dir() else path
        session = open_session(file, place.type)
        return _checked(
            Predictor(what, interface_in(session, file), lambda images: run(session, images))
        )
    if path.suffix == ".pt2" or (path / PROGRAM).is_file():
        raise ValueError(
            f"{what} is a program of torch.export, which is not opened here, since its reader runs "
            "code from the file; give the run, or an export to timm or onnx"
        )
    original = open_original(what, checkpoint=checkpoint, name=name)
    model = original.opened.model.to(place)

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(to_device(images, place)).float().cpu()
        return found

    return _checked(Predictor(original.title, original.interface, logits, original.note))


def _checked(predictor: Predictor) -> Predictor:
    if predictor.interface.channels not in (1, 3):
        raise ValueError(
            f"{predictor.name} takes {predictor.interface.channels} channels, and image files are "
            "read as gray (1) or RGB (3); use the model in Python"
        )
    return predictor


def find_images(words: Sequence[str]) -> list[Path]:
    """Return the image files that the words of a command line name, each once, in order.

    Args:
        words: files (taken as they are), folders (with all images below), or patterns.

    Raises:
        ValueError: a word that matches nothing, or a folder without images."""
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        # not Path.glob, which takes no absolute patterns
        names = [word] if path.exists() else sorted(glob.glob(word, recursive=True))  # noqa: PTH207
        matched = [Path(name) for name in names]
        if not matched:
            raise ValueError(
                f"there is no image {word}; "
                "give files, folders, or patterns such as 'photos/**/*.jpg'"
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
    """Yield the predictions on image files, in order, without the files that cannot be read.

    Args:
        predictor: the model.
        images: files.
        top_k: classes per image; at most all.
        batch_size: images per forward pass.
        on_bad: called with each file that cannot be read, and the reason.

    Raises:
        ValueError: logits that are not finite."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders release the GIL
        for first in range(0, len(images), batch_size):
            files = images[first : first + batch_size]
            read = list(pool.map(lambda path: _try(path, predictor.interface), files))
            for path, found in zip(files, read, strict=True):
                if isinstance(found, str):
                    on_bad(path, found)
            # one bad file must not cost its batch
            good = {
                path: found
                for path, found in zip(files, read, strict=True)
                if isinstance(found, Tensor)
            }
            if good:
                batch = to_floats(torch.stack(list(good.values())))
                yield from _best(list(good), predictor, batch, top_k)


def _try(path: Path, interface: Interface) -> Tensor | str:
    """Return the image, or the reason why it cannot be read."""
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
    # a stable sort puts the lower class first among equal logits
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    values = probabilities(logits.double(), predictor.interface).gather(1, order)
    for path, indices, row in zip(paths, order.tolist(), values.tolist(), strict=True):
        names = tuple(predictor.interface.classes[index] for index in indices)
        yield Prediction(path, names, tuple(indices), tuple(row))


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
    copy_to: Path | None = None,
) -> None:
    """Predict and write a table, JSON lines, or CSV to a file or (`-`) to stdout.

    Images in subfolders that are named after classes give an accuracy. It and all else that is no
    prediction goes to stderr where stdout is for programs.

    Args:
        copy_to: folder that gets a copy of each image, in a folder of its predicted class.

    Raises:
        ValueError: a missing model or image, or a file that cannot be written.
        SystemExit: 2 at the end if images could not be read; each is named on stderr, and all
            others are predicted. 130 after an interruption."""
    images = find_images(words)
    copies = Copies(copy_to) if copy_to else None
    predictor = open_predictor(what, checkpoint=checkpoint, name=name, device=device)
    if predictor.note:
        print(f"samovar: {visible(predictor.note)}", file=sys.stderr)
    bad: list[Path] = []

    def on_bad(path: Path, reason: str) -> None:
        bad.append(path)
        print(
            f"samovar: {visible(path_text(path))} cannot be read: {visible(reason)}",
            file=sys.stderr,
        )

    found = predict(predictor, images, top_k=top_k, batch_size=batch_size, on_bad=on_bad)
    tally = Tally(words, predictor.interface.classes)
    found = tally.watch(copies.watch(found) if copies else found)
    try:
        if as_json:
            write_json(found, sys.stdout)
        elif csv_file == "-":
            write_csv(found, sys.stdout)
        elif csv_file:
            save_csv(found, Path(csv_file))
        else:
            # a pipe has no width of its own; 120 columns keep most rows on one line
            console(columns=120).print(
                table_of(found, predictor.name, predictor.interface, common_folder(images))
            )
    except KeyboardInterrupt:
        print("samovar: interrupted; all lines written are complete", file=sys.stderr)
        raise SystemExit(130) from None
    for line in (tally.line(), copies.line() if copies else ""):
        if line:
            print(visible(line), file=sys.stderr if as_json or csv_file == "-" else sys.stdout)
    if bad:
        raise SystemExit(2)
