"""What a network takes images for, the worst mistakes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samovar.report.drawing.pictures import COARSE, image_uri
from samovar.report.parts import Data, Gallery, Picture, Section, Strip, lacking, unfolded
from samovar.report.protocol import mismatch
from samovar.report.read import Array, RunData, UnreadableArrays
from samovar.report.run_names import MANY
from samovar.report.text import clean
from samovar.runs.records import Record

MOST_PICTURES = 12


def predictions(runs: Sequence[RunData]) -> Section:
    """Galleries of mistakes and of examples, one a run."""
    galleries, notes, records = [], [], {}
    most = MOST_PICTURES if len(runs) <= MANY else 5
    for run in runs:
        record = next(
            (r for r in reversed(run.records.get("predictions/accuracy", [])) if r.arrays), None
        )
        if record is None:
            continue
        try:
            galleries.append(gallery(run, record, run.arrays(record), most))
            records[run.label] = (record, run)
        except UnreadableArrays as error:
            notes.append(f"{run.label}: {error}; measure its predictions again")
    missing = lacking(
        (run for run in runs if run.label not in records), "example predictions", "predictions"
    )
    parts = unfolded("examples", "Mistakes and examples", galleries)
    lead = (
        "Mistakes with the highest loss first, then examples picked evenly over the classes."
        if galleries
        else ""
    )
    return Section(
        "predictions", "Predictions", lead, parts, missing, notes + mismatch("Predictions", records)
    )


def gallery(run: RunData, record: Record, arrays: Mapping[str, Array], most: int) -> Gallery:
    """The pictures of one run.

    Raises:
        UnreadableArrays: an array is missing or does not fit the others."""
    columns = _columns(record, arrays)
    order = np.argsort(-np.nan_to_num(columns["loss"], nan=np.inf), kind="stable")
    wrong = [int(i) for i in order if columns["worst"][i]]
    other = [i for i in range(len(columns["loss"])) if not columns["worst"][i]]
    strips = [
        Strip(title, [_picture(i, arrays, columns) for i in chosen[:most]])
        for title, chosen in (("Worst mistakes", wrong), ("Examples", other))
        if chosen
    ]
    names = ("labels", "predicted", "probability", "probability_true", "loss", "worst")
    rows = [
        (i, _name(columns, columns["labels"][i]), _name(columns, columns["predicted"][i]),
         *(_plain(columns[name][i]) for name in names))
        for i in (*wrong, *other)
    ]  # fmt: skip
    data = Data(("image", "class", "predicted_class", *names), rows)
    n = f"Accuracy {100 * record.value:.1f} %" + (f" of {record.n} images" if record.n else "")
    coarse = max(arrays["images"].shape[1:3]) <= COARSE
    return Gallery(f"predictions-{run.index}", run, strips, data, caption=n, coarse=coarse)


def _columns(record: Record, arrays: Mapping[str, Array]) -> dict[str, Array]:
    images = arrays.get("images")
    if (
        images is None
        or images.ndim != 4
        or images.shape[-1] != 3
        or images.dtype != np.uint8
        or images.size == 0
    ):
        raise UnreadableArrays(f"{record.arrays} holds no images")
    names = ("labels", "predicted", "probability", "probability_true", "loss", "worst")
    columns = {name: arrays[name] for name in names if name in arrays}
    short = [name for name in names if name not in columns or columns[name].shape != (len(images),)]
    if short:
        raise UnreadableArrays(
            f"{record.arrays} lacks {short[0]}, or holds another number of it than of images"
        )
    return columns | {"classes": arrays.get("classes", np.zeros(0, dtype=str))}


def _name(columns: Mapping[str, Array], index: Any) -> str:
    classes = columns["classes"]
    return clean(classes[int(index)]) if 0 <= int(index) < len(classes) else f"class {int(index)}"


def _plain(value: Any) -> Any:
    item = value.item()
    return item if not isinstance(item, float) or np.isfinite(item) else str(item)


def _picture(i: int, arrays: Mapping[str, Array], columns: Mapping[str, Array]) -> Picture:
    truth, guess = (_name(columns, columns[key][i]) for key in ("labels", "predicted"))
    right = int(columns["labels"][i]) == int(columns["predicted"][i])
    sure, believed = (_percent(columns[key][i]) for key in ("probability", "probability_true"))
    caption = guess if right else f"{guess}, not {truth}"
    detail = sure if right else f"{sure}, {believed} for the truth"
    alt = f"Image of class {truth}, predicted {guess} with probability {sure}"
    return Picture(
        alt, image_uri(arrays["images"][i]), "", caption, detail, "right" if right else "wrong"
    )


def _percent(share: Any) -> str:
    value = 100 * float(share)
    if not np.isfinite(value):
        return "?"
    return f"{value:.0f} %" if value >= 1 or value == 0 else "< 1 %"
