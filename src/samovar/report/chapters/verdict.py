"""Say in sentences which of the runs is better, and what is not decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from samovar.report.chapters.verdict_words import (
    accuracy_sentence,
    alone,
    corruption_sentence,
    flatness_sentence,
    lambda_max_sentence,
    not_compared,
    seeds_sentence,
)
from samovar.report.outcomes import (
    CORRUPTED,
    TOP1,
    comparable,
    condition_tests,
    corrupted_outcomes,
    outcomes,
    same_images,
)
from samovar.report.parts import Chapter, Statement, Statements
from samovar.report.protocol import disagreements
from samovar.report.read import RunData, UnreadableArrays
from samovar.report.run_names import Recipe, recipes
from samovar.report.significance import (
    LEVEL,
    Difference,
    mcnemar,
    normal,
    over_images,
    over_seeds,
    shares,
)
from samovar.runs.records import Record

FLATNESS = "flatness/average_flatness"
CLEAN_LOSS = "flatness/clean_loss"
LAMBDA_MAX = "hessian/lambda_max"

_LEAD = (
    "What these runs decide and what they leave open, by the tests named in each line. Held-out "
    "images are those that training did not see."
)


@dataclass(frozen=True)
class Pair:
    """Two recipes to compare, and the level of the intervals."""

    first: Recipe
    second: Recipe
    level: float = LEVEL

    @property
    def seeded(self) -> bool:
        """Return whether both have two runs or more, so that seeds can be tested."""
        return min(len(self.first.runs), len(self.second.runs)) > 1

    @property
    def matched(self) -> tuple[list[RunData], list[RunData], bool]:
        """Return the runs of both, and whether entries of one place share a seed."""
        a, b = ({run.config.get("seed"): run for run in r.runs} for r in (self.first, self.second))
        if a.keys() == b.keys() and len(a) == len(self.first.runs) == len(self.second.runs):
            return list(a.values()), [b[seed] for seed in a], True
        return list(self.first.runs), list(self.second.runs), False

    @property
    def one_of_each(self) -> tuple[RunData, RunData]:
        """Return a run of each, of one seed if they share one."""
        seeds = {run.config.get("seed"): run for run in self.second.runs}
        same = next((r for r in self.first.runs if r.config.get("seed") in seeds), None)
        if same is not None:
            return same, seeds[same.config.get("seed")]
        return self.first.runs[0], self.second.runs[0]


def verdict(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: sentences on accuracy, corruptions and flatness of each recipe."""
    found = _recipes(runs)
    if len(found) < 2:
        statements = alone(found[0], _accuracies(found[0].runs)) if found else []
        return _chapter(statements)
    # The first is what the others are compared with; the level holds for all of them together.
    level = 1 - (1 - LEVEL) / (len(found) - 1)
    statements = []
    for other in found[1:]:
        pair = Pair(found[0], other, level)
        about = (_accuracy, _corruptions, _curvature, _flatness)
        statements += [said for make in about if (said := make(pair))]
    return _chapter(statements)


def _chapter(statements: Sequence[Statement]) -> Chapter:
    parts = [Statements("verdicts", "Verdict", statements)] if statements else []
    return Chapter("verdict", "Verdict", _LEAD if parts else "", parts)


def _recipes(runs: Sequence[RunData]) -> list[Recipe]:
    """Return the recipes of trained runs; a network that was only measured stands alone."""
    trained = recipes(runs)
    return [*trained, *(Recipe(run.label, (run,)) for run in runs if not run.trained)]


# --- what is compared


def _share(
    pair: Pair,
    find: Callable[[Sequence[RunData]], list[Record]],
    what: tuple[str, str],
    one_each: Callable[[Pair], Statement | None],
) -> Statement | None:
    """Return what is decided on a share of images; nothing if a run lacks its record.

    Args:
        pair: the recipes.
        find: return the record of each run; nothing if one has none.
        what: the name of the share, and what follows it where it is named in full.
        one_each: compare one run of each, where there are no seeds to test."""
    a, b, paired = pair.matched
    found = find([*a, *b])
    if not found:
        return None
    different = _differs(pair, found, [*a, *b], "".join(what).capitalize())
    if different:
        return different
    if not pair.seeded:
        return one_each(pair)
    values = [record.value for record in found]
    gap = over_seeds(values[: len(a)], values[len(a) :], pair.level, paired=paired)
    return seeds_sentence(pair, what[0], gap, found[0].n, points=True)


def _accuracies(runs: Sequence[RunData]) -> list[Record]:
    """Return the measured accuracy of all runs, or else what training recorded as best."""
    measured = [record for run in runs if (record := run.latest(TOP1))]
    if len(measured) == len(runs):
        return measured
    best = []
    for run in runs:
        known = [r for r in run.series("val/accuracy") if math.isfinite(r.value)]
        best += [max(known, key=lambda record: record.value)] if known else []
    return best if len(best) == len(runs) else []


def _accuracy(pair: Pair) -> Statement | None:
    return _share(pair, _accuracies, ("accuracy", " on held-out images"), _accuracy_of_one)


def _accuracy_of_one(pair: Pair) -> Statement | None:
    one, two = pair.one_of_each
    tested = _tested(one, two, pair.level)
    if tested is None:
        first, second = _accuracies([one]), _accuracies([two])
        if not first or not second or not first[0].n or not second[0].n:
            return None
        tested = shares((first[0].value, first[0].n), (second[0].value, second[0].n), pair.level)
    return accuracy_sentence(pair, one, two, tested)


def _tested(one: RunData, two: RunData, level: float) -> Difference | None:
    """Compare two runs image by image; None where there are no outcomes of the same images."""
    try:
        a, b = outcomes(one), outcomes(two)
    except UnreadableArrays:
        # The chapter of classes says that the file is damaged.
        return None
    return mcnemar(a.right, b.right, level) if a and b and same_images(a, b) else None


def _corruptions(pair: Pair) -> Statement | None:
    what = ("accuracy under corruptions", "")
    return _share(pair, partial(_all, CORRUPTED), what, _corruptions_of_one)


def _corruptions_of_one(pair: Pair) -> Statement | None:
    one, two = pair.one_of_each
    try:
        first, second = corrupted_outcomes(one), corrupted_outcomes(two)
    except UnreadableArrays:
        return None
    if not (first and second and comparable(first, second)):
        return not_compared(
            pair,
            "Accuracy under corruptions",
            "there are no outcomes of the same images; runs measured before they were kept have "
            "none",
        )
    level = over_images(first.right.mean(0), second.right.mean(0), pair.level)
    fall = over_images(
        first.clean - first.right.mean(0), second.clean - second.right.mean(0), pair.level
    )
    tests = condition_tests(first, second, pair.level)
    better = sum(yes and test.value > 0 for test, yes in tests)
    worse = sum(yes and test.value < 0 for test, yes in tests)
    return corruption_sentence(pair, level, fall, (better, worse, len(tests)))


def _curvature(pair: Pair) -> Statement | None:
    a, b, paired = pair.matched
    found = _all(LAMBDA_MAX, [*a, *b])
    if not found:
        return None
    different = _differs(pair, found, [*a, *b], "λ_max")
    if different:
        return different
    if not all(math.isfinite(record.value) and record.value > 0 for record in found):
        why = "it is not a positive number in each run; where it is negative, there is no minimum"
        return not_compared(pair, "λ_max", why)
    # Curvature differs by factors, so its logarithms are compared.
    logs = [math.log(record.value) for record in found]
    gap = None
    if pair.seeded:
        gap = over_seeds(logs[: len(a)], logs[len(a) :], pair.level, paired=paired)
    return lambda_max_sentence(pair, found[: len(a)], found[len(a) :], gap)


def _flatness(pair: Pair) -> Statement | None:
    a, b, paired = pair.matched
    noisy, clean = _all(FLATNESS, [*a, *b]), _all(CLEAN_LOSS, [*a, *b])
    if not noisy or not clean:
        return None
    different = _differs(pair, noisy, [*a, *b], "Loss under weight noise")
    if different:
        return different
    # The rise and not the level: a run whose loss is lower everywhere is no flatter for that.
    rises = [x.value - y.value for x, y in zip(noisy, clean, strict=True)]
    if not all(map(math.isfinite, rises)):
        return not_compared(pair, "Flatness", "a loss under weight noise is not finite")
    if pair.seeded:
        k = len(a)
        gap = over_seeds(rises[:k], rises[k:], pair.level, paired=paired)
        return seeds_sentence(pair, "rise of the loss under weight noise", gap, noisy[0].n)
    one, two = pair.one_of_each
    at = {run.label: k for k, run in enumerate([*a, *b])}
    ends = [(rises[at[run.label]], noisy[at[run.label]].stderr or 0.0) for run in (one, two)]
    gap = normal(ends[0], ends[1], noisy[0].n or 1, pair.level)
    return flatness_sentence(pair, ends[0][0], ends[1][0], gap, noisy[0].settings.get("sigma"))


def _all(name: str, runs: Sequence[RunData]) -> list[Record]:
    """Return the newest record of each run; nothing if one has none."""
    found = [record for run in runs if (record := run.latest(name))]
    return found if len(found) == len(runs) else []


def _differs(
    pair: Pair, records: Sequence[Record], runs: Sequence[RunData], what: str
) -> Statement | None:
    """Return why the records must not be compared: other data, or another protocol."""
    tasks = dict.fromkeys(run.task for run in runs)
    if len(tasks) > 1:
        return not_compared(pair, what, f"the runs have different data: {', '.join(tasks)}")
    # The step of a checkpoint is a result of training; which of them was measured is a choice.
    pairs = {run.label: (record, run) for run, record in zip(runs, records, strict=True)}
    measured = (TOP1, CORRUPTED, FLATNESS, LAMBDA_MAX)
    but = () if records[0].name in measured else ("checkpoint",)
    found = disagreements(pairs, but)
    if not found:
        return None
    return not_compared(pair, what, f"measured differently: {'; '.join(found)}")
