"""Show predictions for single images, the worst mistakes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samovar.report.chapters.image_arrays import check_entries, checked_images, class_name
from samovar.report.drawing.pictures import COARSE, LARGE, TILE, image_uri
from samovar.report.outcomes import outcomes
from samovar.report.parts import Chapter, Data, Gallery, Picture, Strip, lacking, unfolded
from samovar.report.protocol import mismatch
from samovar.report.read import Array, RunData, UnreadableArrays
from samovar.report.run_names import MANY
from samovar.report.text import count
from samovar.runs.records import Record

MOST_PICTURES = 12
"""The most pictures in a strip; fewer where runs are many."""

MOST_PAIRS, MOST_OF_PAIR = 6, 6
"""The most pairs of classes that are shown as confused, and pictures of each."""

_COLUMNS = ("labels", "predicted", "probability", "probability_true", "loss", "worst")

_LEAD = (
    "Recorded mistakes by their classes; then those with the highest loss, and examples picked "
    "evenly over the classes. Each picture opens large."
)


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

    @property
    def key(self) -> bytes:
        """Return the pixels, by which an image is found again."""
        return self.image.tobytes()


def predictions(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: a gallery of mistakes and examples for each run."""
    galleries, pairs, notes, records = [], [], [], {}
    # Pictures are most of the size of a page.
    few = len(runs) <= MANY
    most, side = (MOST_PICTURES, LARGE) if few else (5, TILE)
    for run in runs:
        record = run.latest_with_arrays("predictions/accuracy")
        if record is None:
            continue
        try:
            arrays = run.arrays(record)
            galleries.append(gallery(run, record, arrays, most, side))
            pairs += confused(run, record, arrays, side) if few else []
            records[run.label] = (record, run)
        except UnreadableArrays as error:
            notes.append(f"{run.label}: {error}; measure its predictions again")
    return Chapter(
        "predictions",
        "Predictions",
        _LEAD if galleries else "",
        [
            *unfolded("confused-classes", "Classes that are confused most", pairs),
            *unfolded("examples", "Mistakes and examples", galleries),
        ],
        lacking(
            (run for run in runs if run.label not in records), "example predictions", "predictions"
        ),
        notes + mismatch("Predictions", records),
    )


def gallery(
    run: RunData, record: Record, arrays: Mapping[str, Array], most: int, side: int = TILE
) -> Gallery:
    """Return the pictures of one run.

    Args:
        run: the run.
        record: the record of its predictions.
        arrays: the arrays of the record.
        most: pictures in a strip.
        side: the longest side of a mistake, in pixels.

    Raises:
        UnreadableArrays: an array is missing or does not fit the others."""
    found = _read(record, arrays)
    # A loss that is not finite is the worst of all.
    by_loss = sorted(found, key=lambda p: -np.nan_to_num(p.values["loss"], nan=np.inf))
    wrong = [prediction for prediction in by_loss if prediction.values["worst"]]
    other = [prediction for prediction in found if not prediction.values["worst"]]
    strips = [
        Strip(title, [_picture(p, TILE if p.right else side) for p in chosen[:most]])
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
        opens=True,
    )


def confused(
    run: RunData, record: Record, arrays: Mapping[str, Array], side: int = TILE
) -> list[Gallery]:
    """Return the recorded mistakes of a run by true and predicted class; nothing without mistakes.

    The pairs of classes that are confused most come first: of all held-out images where their
    outcomes are known, else of the recorded ones.

    Raises:
        UnreadableArrays: an array is missing or does not fit the others."""
    pairs: dict[tuple[str, str], list[Prediction]] = {}
    for each in sorted(_read(record, arrays), key=lambda p: not p.values["worst"]):
        if not each.right:
            pairs.setdefault((each.truth, each.guess), []).append(each)
    # An image may be among the worst and among the examples.
    pairs = {pair: list({p.key: p for p in found}.values()) for pair, found in pairs.items()}
    if not pairs:
        return []
    total = _confusions(run, record)
    known = [pair for pair in pairs if pair in total] if total else list(pairs)
    first = sorted(known, key=lambda pair: -(total[pair] if total else len(pairs[pair])))
    strips, rows = [], []
    for truth, guess in first[:MOST_PAIRS]:
        found = pairs[truth, guess]
        images = (
            f"{count(total[truth, guess], 'image')} of {record.n or '?'}"
            if total
            else f"{count(len(found), 'image')} of those recorded"
        )
        shown = [_picture(p, side) for p in found[:MOST_OF_PAIR]]
        strips.append(Strip(f"{truth} taken for {guess}: {images}", shown))
        rows += [(truth, guess, total.get((truth, guess), ""), p.index) for p in found]
    return [
        Gallery(
            f"confused-{run.index}",
            run,
            strips,
            Data(("class", "predicted_class", "images", "picture"), rows),
            coarse=max(arrays["images"].shape[1:3]) <= COARSE,
            opens=True,
            columns=True,
        )
    ]


def _confusions(run: RunData, record: Record) -> dict[tuple[str, str], int]:
    """Return how many images of a pair of classes are confused; nothing where it is not known."""
    try:
        found = outcomes(run)
    except UnreadableArrays:
        # The chapter of classes says that the file is damaged.
        return {}
    if found is None or found.record.where.get("step") != record.where.get("step"):
        return {}
    same = all(found.record.settings.get(k) == record.settings.get(k) for k in ("split", "source"))
    if not same or len(found.labels) != record.n:
        return {}
    names = np.asarray(found.classes)
    wrong = zip(found.labels[~found.right], found.predicted[~found.right], strict=True)
    return dict(Counter((class_name(names, a), class_name(names, b)) for a, b in wrong))


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


def _picture(prediction: Prediction, side: int) -> Picture:
    truth, guess, right = prediction.truth, prediction.guess, prediction.right
    sure = _percent(prediction.values["probability"])
    believed = _percent(prediction.values["probability_true"])
    return Picture(
        f"Image of class {truth}, predicted {guess} with probability {sure}",
        image_uri(prediction.image, side),
        caption=guess if right else f"{guess}, not {truth}",
        detail=sure if right else f"{sure}, {believed} for the true class",
        tone="right" if right else "wrong",
    )


def _percent(share: Any) -> str:
    value = 100 * float(share)
    if not np.isfinite(value):
        return "?"
    return f"{value:.0f} %" if value >= 1 or value == 0 else "< 1 %"
