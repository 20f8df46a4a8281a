"""Read what a network predicted of each image, and tell whether two networks saw the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samovar.report.read import Array, RunData, UnreadableArrays
from samovar.report.significance import LEVEL, Difference, holm, mcnemar
from samovar.runs.records import Record

TOP1 = "accuracy/top1"
CORRUPTED = "robustness/mean_corruption_accuracy"

# Settings on which the choice of images depends, in records and in a run's config.
_CHOICE = ("source", "split", "images", "tune_share", "seed")
_SPLIT = ("data.split_seed", "data.val_share", "data.tune_share", "data.fraction")

_ENTRIES = ("labels", "predicted", "probability", "probability_true")


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Predictions of a run for every image of a split, in the order of the split."""

    run: RunData
    record: Record
    labels: Array
    """[n] class indices."""
    predicted: Array
    """[n] class indices."""
    probability: Array
    """[n] of the predicted class."""
    probability_true: Array
    """[n] of the true class."""
    classes: tuple[str, ...]

    @property
    def right(self) -> Array:
        """Return whether each image is classified rightly, [n] bool."""
        return np.asarray(self.labels == self.predicted)


@dataclass(frozen=True, eq=False)
class CorruptedOutcomes:
    """Whether a run classifies each image rightly, clean and under each corruption."""

    run: RunData
    record: Record
    labels: Array
    """[n] class indices."""
    clean: Array
    """[n] bool."""
    right: Array
    """[conditions, n] bool."""
    conditions: tuple[tuple[str, int], ...]
    """Corruption and severity, as the rows of `right`."""


def _newest(run: RunData, name: str) -> tuple[Record, dict[str, Array]] | None:
    """Return the newest record of a name with its arrays; None where it has none."""
    record = run.latest(name)
    return (record, run.arrays(record)) if record is not None and record.arrays else None


def outcomes(run: RunData) -> Outcomes | None:
    """Return the newest outcomes of a run; None if its accuracy was measured without them.

    Raises:
        UnreadableArrays: the file is damaged, or its parts do not fit each other."""
    found = _newest(run, TOP1)
    if found is None:
        return None
    record, arrays = found
    names = arrays.get("classes", np.zeros(0))
    entries = [arrays.get(name, np.zeros(0)) for name in _ENTRIES]
    n = len(np.atleast_1d(entries[0]))
    highest = max((int(np.max(entry)) for entry in entries[:2] if entry.size), default=0)
    if not n or any(entry.shape != (n,) for entry in entries) or highest >= len(names):
        raise UnreadableArrays(f"{record.arrays} holds no predictions that fit each other")
    labels, predicted, probability, probability_true = entries
    classes = tuple(str(name) for name in names)
    return Outcomes(run, record, labels, predicted, probability, probability_true, classes)


def corrupted_outcomes(run: RunData) -> CorruptedOutcomes | None:
    """Return the newest outcomes under corruptions; None if they were measured without them.

    Raises:
        UnreadableArrays: the file is damaged, or its parts do not fit each other."""
    found = _newest(run, CORRUPTED)
    if found is None or "outcomes" not in found[1]:
        return None
    record, arrays = found
    try:
        labels, clean, right = (
            arrays[name] for name in ("outcome_labels", "outcome_clean", "outcomes")
        )
        pairs = zip(arrays["outcome_corruptions"], arrays["outcome_severities"], strict=True)
        conditions = tuple((str(name), int(severity)) for name, severity in pairs)
    except (KeyError, ValueError, TypeError) as error:
        raise UnreadableArrays(f"{record.arrays} holds no outcomes ({error})") from None
    if right.shape != (len(conditions), len(labels)) or clean.shape != labels.shape:
        raise UnreadableArrays(f"{record.arrays} holds outcomes that do not fit each other")
    return CorruptedOutcomes(run, record, labels, clean, right, conditions)


def same_images(first: Outcomes | CorruptedOutcomes, second: Outcomes | CorruptedOutcomes) -> bool:
    """Return whether two runs were measured on the same images in the same order."""
    a, b = first.record.settings, second.record.settings
    one, two = first.run.config, second.run.config
    return (
        all(a.get(name) == b.get(name) for name in _CHOICE)
        and all(one.get(name) == two.get(name) for name in _SPLIT)
        and bool(np.array_equal(first.labels, second.labels))
    )


def condition_tests(
    first: CorruptedOutcomes, second: CorruptedOutcomes, level: float = LEVEL
) -> list[tuple[Difference, bool]]:
    """Return McNemar's test of each condition, and whether it is significant among them all.

    Args:
        first, second: outcomes of the same images under the same conditions.
        level: of all tests together.

    Source: McNemar (1947); Holm (1979)."""
    pairs = zip(first.right, second.right, strict=True)
    found = [mcnemar(a, b, level) for a, b in pairs]
    # Of many conditions some would differ by chance alone.
    real = holm([1.0 if test.p is None else test.p for test in found], level)
    return list(zip(found, real, strict=True))


def comparable(first: CorruptedOutcomes | None, second: CorruptedOutcomes | None) -> bool:
    """Return whether both have outcomes, of the same images under the same conditions."""
    return bool(
        first and second and same_images(first, second) and first.conditions == second.conditions
    )
