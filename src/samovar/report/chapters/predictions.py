"""Show predictions for single images, the worst mistakes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samovar.report.chapters.image_arrays import check_entries, checked_images, class_name
from samovar.report.drawing.pictures import COARSE, image_uri
from samovar.report.parts import Chapter, Data, Gallery, Picture, Strip, lacking, unfolded
from samovar.report.protocol import mismatch
from samovar.report.read import Array, RunData, UnreadableArrays
from samovar.report.run_names import MANY
from samovar.runs.records import Record

MOST_PICTURES = 12
"""The most pictures in a strip; fewer where runs are many."""

_COLUMNS = ("labels", "predicted", "probability", "probability_true", "loss", "worst")

_LEAD = "Mistakes with the highest loss first, then examples picked evenly over the classes."


@dataclass(frozen=True, eq=False)
class Prediction:
    """An image and what the network predicts for it."""

    index: int
    image: Array
    """Pixels uint8 [H, W, 3]."""
    values: dict[str, Any]
    """Its entry in each of `_COLUMNS`."""
    truth: str
    guess: str

    @property
    def right(self) -> bool:
        """Return whether the predicted class is the true one."""
        return int(self.values["labels"]) == int(self.values["predicted"])


def predictions(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: a gallery of mistakes and examples for each run."""
    galleries, notes, records = [], [], {}
    # Pictures are most of the size of a page.
    most = MOST_PICTURES if len(runs) <= MANY else 5
    for run in runs:
        record = run.latest_with_arrays("predictions/accuracy")
        if record is None:
            continue
        try:
            galleries.append(gallery(run, record, run.arrays(record), most))
            records[run.label] = (record, run)
        except UnreadableArrays as error:
            notes.append(f"{run.label}: {error}; measure its predictions again")
    return Chapter(
        "predictions",
        "Predictions",
        _LEAD if galleries else "",
        unfolded("examples", "Mistakes and examples", galleries),
        lacking(
            (run for run in runs if run.label not in records), "example predictions", "predictions"
        ),
        notes + mismatch("Predictions", records),
    )


def gallery(run: RunData, record: Record, arrays: Mapping[str, Array], most: int) -> Gallery:
    """Return the pictures of one run, at most `most` in a strip.

    Raises:
        UnreadableArrays: an array is missing or does not fit the others."""
    found = _read(record, arrays)
    # A loss that is not finite is the worst of all.
    by_loss = sorted(found, key=lambda p: -np.nan_to_num(p.values["loss"], nan=np.inf))
    wrong = [prediction for prediction in by_loss if prediction.values["worst"]]
    other = [prediction for prediction in found if not prediction.values["worst"]]
    strips = [
        Strip(title, [_picture(prediction) for prediction in chosen[:most]])
        for title, chosen in (("Worst mistakes", wrong), ("Examples", other))
        if chosen
    ]
    rows = [
        (p.index, p.truth, p.guess, *(_for_csv(p.values[name]) for name in _COLUMNS))
        for p in (*wrong, *other)
    ]
    images = f" on {record.n} images" if record.n else ""
    return Gallery(
        f"predictions-{run.index}",
        run,
        strips,
        Data(("image", "class", "predicted_class", *_COLUMNS), rows),
        caption=f"Accuracy {100 * record.value:.1f} %{images}",
        coarse=max(arrays["images"].shape[1:3]) <= COARSE,
    )


def _read(record: Record, arrays: Mapping[str, Array]) -> list[Prediction]:
    """Return the predictions in the order of the arrays.

    Raises:
        UnreadableArrays: an array is missing or does not fit the others."""
    images = checked_images(record, arrays, dims=4)
    check_entries(record, arrays, dict.fromkeys(_COLUMNS, (len(images),)))
    classes = arrays.get("classes")
    return [
        Prediction(
            index,
            images[index],
            {name: arrays[name][index] for name in _COLUMNS},
            class_name(classes, arrays["labels"][index]),
            class_name(classes, arrays["predicted"][index]),
        )
        for index in range(len(images))
    ]


def _for_csv(value: Any) -> Any:
    """Return a number of numpy as one of Python; those that are not finite become text."""
    item = value.item()
    return item if not isinstance(item, float) or np.isfinite(item) else str(item)


def _picture(prediction: Prediction) -> Picture:
    truth, guess, right = prediction.truth, prediction.guess, prediction.right
    sure = _percent(prediction.values["probability"])
    believed = _percent(prediction.values["probability_true"])
    return Picture(
        f"Image of class {truth}, predicted {guess} with probability {sure}",
        image_uri(prediction.image),
        caption=guess if right else f"{guess}, not {truth}",
        detail=sure if right else f"{sure}, {believed} for the true class",
        tone="right" if right else "wrong",
    )


def _percent(share: Any) -> str:
    value = 100 * float(share)
    if not np.isfinite(value):
        return "?"
    return f"{value:.0f} %" if value >= 1 or value == 0 else "< 1 %"
