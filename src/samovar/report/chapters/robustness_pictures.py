"""Show corrupted and attacked images with their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samovar.report.chapters.image_arrays import check_entries, checked_images, class_name
from samovar.report.chapters.robustness_curves import PGD
from samovar.report.chapters.robustness_heat_maps import MEAN
from samovar.report.drawing.pictures import COARSE, image_uri
from samovar.report.drawing.plots import finite
from samovar.report.parts import Data, Gallery, Picture, Strip
from samovar.report.read import Array, RunData, UnreadableArrays
from samovar.report.text import clean
from samovar.runs.records import Record

Arrays = Mapping[str, Array]
"""Images uint8 [V, n, H, W, 3] in V versions; labels [n]; predictions and probabilities [V, n]."""


def galleries(runs: Sequence[RunData]) -> tuple[list[Gallery], list[str]]:
    """Return a gallery for each run that has images, and notes on unreadable arrays."""
    found, notes = [], []
    for run in runs:
        strips: list[Strip] = []
        rows: list[Sequence[Any]] = []
        coarse = False
        for name in (MEAN, PGD):
            record = run.latest_with_arrays(name)
            if record is None:
                continue
            try:
                arrays = _checked(record, run.arrays(record))
            except UnreadableArrays as error:
                notes.append(f"{run.label}: {error}; measure it again")
                continue
            strips += _attacked(arrays) if name == PGD else _corrupted(arrays)
            rows += _rows(arrays)
            coarse = coarse or max(arrays["images"].shape[2:4]) <= COARSE
        if strips:
            data = Data(("as", "image", "class", "predicted_class", "probability"), rows)
            found.append(Gallery(f"spoilt-{run.index}", run, strips, data, coarse=coarse))
    return found, notes


def _checked(record: Record, arrays: Arrays) -> Arrays:
    """Return the arrays if their shapes fit each other.

    Raises:
        UnreadableArrays: an array is missing or has another shape."""
    versions, n = checked_images(record, arrays, dims=5).shape[:2]
    # Labels are the same in all versions of an image, predictions are not.
    each = (versions, n)
    shapes = {"labels": (n,), "predicted": each, "probability": each, "names": (versions,)}
    check_entries(record, arrays, shapes)
    return arrays


def _attacked(arrays: Arrays) -> list[Strip]:
    """Return a strip of all images before the attack, and one for each attack."""
    _, images = arrays["images"].shape[:2]
    return [
        Strip(clean(name, 60), [_picture(arrays, k, i) for i in range(images)])
        for k, name in enumerate(arrays["names"])
    ]


def _corrupted(arrays: Arrays) -> list[Strip]:
    """Return a strip of the first image under each corruption."""
    severity = int(arrays["severity"]) if "severity" in arrays else 0
    pictures = [_picture(arrays, k, 0, named=True) for k in range(len(arrays["names"]))]
    return [Strip(f"Corruptions at severity {severity}" if severity else "Corruptions", pictures)]


def _picture(arrays: Arrays, k: int, i: int, *, named: bool = False) -> Picture:
    """Return version `k` of image `i` with its prediction, captioned by the version if `named`."""
    label, predicted = int(arrays["labels"][i]), int(arrays["predicted"][k, i])
    truth, guess = (class_name(arrays.get("classes"), index) for index in (label, predicted))
    sure = f"{100 * float(arrays['probability'][k, i]):.0f} %"
    title = clean(arrays["names"][k], 40).replace("_", " ")
    said = guess if label == predicted else f"{guess}, not {truth}"
    return Picture(
        f"Image of class {truth}, {title}, predicted {guess} with probability {sure}",
        image_uri(arrays["images"][k, i]),
        caption=title if named else said,
        detail=f"{said}, {sure}" if named else sure,
        tone="right" if label == predicted else "wrong",
    )


def _rows(arrays: Arrays) -> list[Sequence[Any]]:
    classes = arrays.get("classes")
    versions, images = arrays["images"].shape[:2]
    return [
        (
            clean(arrays["names"][k], 60),
            i,
            class_name(classes, arrays["labels"][i]),
            class_name(classes, arrays["predicted"][k, i]),
            finite(float(arrays["probability"][k, i])),
        )
        for k in range(versions)
        for i in range(images)
    ]
