"""Word the sentences of the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from samovar.report.parts import Statement
from samovar.report.read import RunData
from samovar.report.run_names import Recipe
from samovar.report.significance import LEVEL, Difference, wilson
from samovar.report.text import count, number, setting, short
from samovar.runs.records import Record

if TYPE_CHECKING:
    from samovar.report.chapters.verdict import Pair

_SEEDS = "train each recipe with two more seeds (`--seed 1`, `--seed 2`) and report on them all"


def alone(recipe: Recipe, found: Sequence[Record]) -> list[Statement]:
    """Return the sentence on a report of one recipe; nothing if its accuracy is not known."""
    if not found or not found[0].n:
        return []
    values = [record.value for record in found]
    n = found[0].n
    if len(values) == 1:
        low, high = wilson(values[0], n)
        text = (
            f"{100 * values[0]:.1f} % of {count(n, 'held-out image')} are classified rightly "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)."
        )
    else:
        mean = 100 * sum(values) / len(values)
        text = (
            f"{mean:.1f} % of {count(n, 'held-out image')} are classified rightly on average over "
            f"{count(len(values), 'seed')} ({100 * min(values):.1f} to {100 * max(values):.1f} %)."
        )
    more = "Nothing is compared: name a second run to compare it with."
    return [Statement("alone", recipe.label, text, more)]


def not_compared(pair: Pair, what: str, why: str) -> Statement:
    """Return that a number of two recipes is not compared, and why."""
    return Statement("apart", _topic(pair), f"{what} is not compared: {why}.")


def accuracy_sentence(pair: Pair, one: RunData, two: RunData, gap: Difference) -> Statement:
    """Return the sentence on the accuracy of one network of each recipe."""
    images = count(gap.n, "held-out image")
    least = f"{100 * gap.least:.1f}"
    if gap.decided and gap.value < 0:
        # The sentence names the better network first, so its interval is positive.
        gap = replace(gap, value=-gap.value, low=-gap.high, high=-gap.low)
        one, two = two, one
    evidence = f"{_interval(pair, gap, 100)} points, {gap.test}{_p(gap)}"
    if gap.decided:
        text = (
            f"{two.label} classifies {100 * gap.value:.1f} points more of "
            f"{images} rightly ({evidence}). This is decided for these two networks."
        )
        more = f"It is one seed of each: to decide it for the recipes, {_SEEDS}."
        return Statement("decided", _topic(pair), text, more)
    text = (
        f"Accuracy is not decided: {two.label} minus {one.label} is {_signed(100 * gap.value, 1)} "
        f"points on {images} ({evidence})."
    )
    more = (
        f"One seed of each on {images}: a difference under {least} points is noise. To decide it, "
        f"{_SEEDS}, or hold out more images."
    )
    if "separate" in gap.test:
        more += (
            " A test image by image tells smaller differences; `samovar measure RUN accuracy` "
            "keeps what it needs."
        )
    return Statement("open", _topic(pair), text, more)


def seeds_sentence(
    pair: Pair, what: str, gap: Difference, n: int | None, *, points: bool = False
) -> Statement:
    """Return the sentence on a number that was tested over seeds."""
    scale, unit = (100, "points") if points else (1, "nats")
    a, b = (len(recipe.runs) for recipe in (pair.first, pair.second))
    seeds = count(a, "seed") if a == b else f"{a} and {b} seeds"
    of = f", {count(n, 'image')} each" if n and points else ""
    evidence = f"{_interval(pair, gap, scale)} {unit}, {gap.test}, {seeds}{of}"
    size = f"{scale * abs(gap.value):.2f} {unit}"
    higher = "higher" if gap.value > 0 else "lower"
    if gap.decided:
        text = f"The {what} of {pair.second.label} is {size} {higher} than that of "
        text += f"{pair.first.label} ({evidence}). This is decided for the recipes."
        return Statement("decided", _topic(pair), text)
    text = f"The {what} is not decided: {pair.second.label} is {size} {higher} than "
    text += f"{pair.first.label} ({evidence})."
    more = (
        f"With {seeds} a difference under {scale * gap.least:.2f} {unit} is noise; "
        "more seeds would tell smaller ones."
    )
    return Statement("open", _topic(pair), text, more)


def corruption_sentence(
    pair: Pair, level: Difference, fall: Difference, cells: tuple[int, int, int]
) -> Statement:
    """Return the sentence on accuracy under corruptions, and on how far it falls."""
    better, worse, tested = cells
    sign = "more" if level.value > 0 else "fewer"
    text = (
        f"Under corruptions {pair.second.label} classifies {abs(100 * level.value):.1f} points "
        f"{sign} rightly than {pair.first.label} ({_interval(pair, level, 100)} points, "
        f"{level.test}, {count(level.n, 'image')}). "
    )
    less = "less" if fall.value < 0 else "more"
    text += (
        f"From clean to corrupted it loses {abs(100 * fall.value):.1f} points {less} "
        f"({_interval(pair, fall, 100)}), so "
        + ("robustness differs." if fall.decided else "robustness itself is not decided.")
    )
    more = (
        f"Of {count(tested, 'condition')} it is better in {better} and worse in {worse}; the rest "
        "are within noise (McNemar’s exact tests, corrected by Holm). One seed of each."
    )
    tone = "decided" if level.decided and fall.decided else "open"
    return Statement(tone, _topic(pair), text, more)


def flatness_sentence(
    pair: Pair, first: float, second: float, gap: Difference, sigma: Any
) -> Statement:
    """Return the sentence on how much weight noise raises the loss of one network of each."""
    noise = f" of {short(sigma)}" if isinstance(sigma, int | float) else ""
    text = (
        f"Weight noise{noise} raises the loss of {pair.second.label} by {number(second, 3)} nats "
        f"and that of {pair.first.label} by {number(first, 3)}: a difference of "
        f"{_signed(gap.value)} ({_interval(pair, gap, 1)} nats, {gap.test}, "
        f"{count(gap.n, 'draw')}). "
    )
    text += _flatter(pair, gap, "these two networks")
    more = f"One seed of each: to decide it for the recipes, {_SEEDS}."
    return Statement("decided" if gap.decided else "open", _topic(pair), text, more)


def _flatter(pair: Pair, gap: Difference, what: str) -> str:
    """Say which side has the smaller number, and for what that is decided."""
    if not gap.decided:
        return "Which is flatter is not decided."
    side = pair.second if gap.value < 0 else pair.first
    return f"{side.label} is flatter; this is decided for {what}."


def lambda_max_sentence(
    pair: Pair, first: Sequence[Record], second: Sequence[Record], gap: Difference | None
) -> Statement:
    """Return the sentence on the largest eigenvalue of the Hessian.

    Args:
        pair: the recipes.
        first, second: a record of each run, in the order of the seeds that the test pairs.
        gap: of the logarithms over seeds; None where one recipe has one run, which decides
            nothing."""
    ratio = math.exp(_mean_log(second) - _mean_log(first))
    size = f"{short(ratio)} times that of {pair.first.label}"
    images = _images_of(first[0])
    loose = sum(not record.converged for record in (*first, *second))
    more = f" {count(loose, 'value')} did not converge." if loose else ""
    if gap is None:
        text = (
            f"λ_max, the largest eigenvalue of the Hessian, is {_values(second)} for "
            f"{pair.second.label} ({_seeds(pair.second)}), {size} ({_values(first)}, "
            f"{_seeds(pair.first)}){images}. This decides nothing: λ_max differs from seed to seed."
        )
        return Statement("open", _topic(pair), text, f"To decide it, {_SEEDS}.{more}")
    ends = f"{short(math.exp(gap.low))} to {short(math.exp(gap.high))}"
    text = (
        f"λ_max, the largest eigenvalue of the Hessian, of {pair.second.label} is {size} "
        f"({_kind(pair)} {ends}, {gap.test}, of logarithms; {_seeds(pair.first)} against "
        f"{_seeds(pair.second)}{images}). {_flatter(pair, gap, 'the recipes')}"
    )
    if gap.decided:
        return Statement("decided", _topic(pair), text, more.strip())
    noise = f"With so few seeds a ratio below {short(math.exp(gap.least))} is noise.{more}"
    return Statement("open", _topic(pair), text, noise)


def _mean_log(records: Sequence[Record]) -> float:
    return math.fsum(math.log(record.value) for record in records) / len(records)


def _values(records: Sequence[Record]) -> str:
    return ", ".join(number(record.value, 3) for record in records[:4])


def _images_of(record: Record) -> str:
    """Return on which images a record was measured; empty where it does not say so."""
    images, split = record.settings.get("images"), record.settings.get("split")
    kind = {"train": "training image", "val": "held-out image"}.get(str(split), "image")
    return f", on {count(images, kind)}" if type(images) is int else ""


def _seeds(recipe: Recipe) -> str:
    """Name the seeds of a recipe."""
    seeds = [setting(run.config.get("seed", "?")) for run in recipe.runs]
    some = f"{', '.join(seeds[:5])}{' and more' if len(seeds) > 5 else ''}"
    return f"seed{'s' if len(seeds) > 1 else ''} {some}"


def _topic(pair: Pair) -> str:
    return f"{pair.second.label} against {pair.first.label}"


def _interval(pair: Pair, gap: Difference, scale: float) -> str:
    """Return the interval; several comparisons share the error, which is then said."""
    return f"{_kind(pair)} {_signed(scale * gap.low)} to {_signed(scale * gap.high)}"


def _kind(pair: Pair) -> str:
    if pair.level > LEVEL:
        return f"{100 * pair.level:.3g} % interval, so that all comparisons hold at 95 %:"
    return "95 % interval"


def _signed(value: float, digits: int | None = None) -> str:
    digits = digits if digits is not None else 1 if abs(value) >= 10 else 2
    return f"{value:+.{digits}f}".replace("-", "−")


def _p(gap: Difference) -> str:
    if gap.p is None:
        return ""
    return ", p < 0.0001" if gap.p < 1e-4 else f", p {gap.p:.2g}"
