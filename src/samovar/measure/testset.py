"""The measurement `testset`: accuracy on published test sets, scored as their authors do.

Sets of 200 of ImageNet's classes are also scored over all 1,000, as the paper must have done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import torch
from torch import Tensor

from samovar.config import MeasureConfig
from samovar.data.splits import Arrays
from samovar.data.testsets import MAIN, SEVERITIES, Condition, TestSet, open_testset
from samovar.measure.accuracy import any_of, logits_of, share, top_k
from samovar.measure.subject import Subject
from samovar.runs.records import Record

ScoringRule: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [n, K] and labels [n] to which images are right, [n] bool."""

ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error on the published ImageNet-C, the mean over the five severities.

Source: arXiv:1903.12261 and its code."""


def testset(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """Measure the top-1 accuracy on the set of `--testset`, by each of its scoring rules.

    Sets of corruptions get the means over corruptions as well.

    Raises:
        ValueError: no such set, files that do not belong to it, a model of other classes."""
    tests = open_testset(config.testset, config.corruptions, config.severities)
    settings = {
        "testset": tests.title,
        "class_order": class_order(subject, tests, config.testset),
        "published_images": tests.size,
    }
    found: list[Record] = []
    for condition in tests.conditions:
        for record in _scored(subject, tests, condition, settings):
            found.append(record)
            yield record
    if tests.conditions[0].where:
        yield from _means(tests, found)


def class_order(subject: Subject, tests: TestSet, text: str) -> str:
    """Return how the order of the model's classes is known to be the set's, in words.

    Raises:
        ValueError: the model has other classes or another order, as far as names say, or reads grey
            images."""
    theirs, ours = tests.classes, subject.classes
    if len(ours) != tests.num_classes:
        raise ValueError(
            f"--testset {text} has {tests.num_classes} classes and {subject.name} has {len(ours)}; "
            f"give a model of the {tests.num_classes} classes"
        )
    if theirs == ours:
        return "the set's"
    if theirs and (sorted(ours) == sorted(theirs) or all(_is_wnid(name) for name in ours)):
        place = next(
            index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]
        )
        raise ValueError(
            f"--testset {text}: class {place} of {subject.name} is {ours[place]}, and of the set "
            f"{theirs[place]}; give a model of the set's classes in their order"
        )
    # names do not settle it, so only the number of channels can still be checked
    split = subject.batches.split
    if isinstance(split, Arrays) and split.images.shape[1] != 3:
        raise ValueError(
            f"--testset {text} is in colour and {subject.name} reads grey images; "
            "give a model for colour"
        )
    return "assumed to be the set's" + (
        ", sorted WordNet ids" if theirs and _is_wnid(theirs[0]) else ""
    )


def _is_wnid(name: str) -> bool:
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()


def _scored(
    subject: Subject, tests: TestSet, condition: Condition, settings: dict[str, Any]
) -> Iterator[Record]:
    """Yield a record for each scoring rule, from one pass over the images."""
    logits, labels = logits_of(subject.model, replace(subject.batches, split=condition.split))
    rules = _rules(tests)
    for scoring, rule in rules.items():
        # in `where` too, so that two scorings of one set are never taken for the same number
        where = (
            {"split": tests.title}
            | condition.where
            | ({"scoring": scoring} if len(rules) > 1 else {})
        )
        right = rule(logits, labels)
        yield share(
            "testset/corruption_accuracy" if condition.where else "testset/accuracy",
            int(right.sum()),
            len(right),
            where=where,
            settings=settings | {"scoring": scoring, "testset_images": len(condition.split)},
            source=tests.source,
        )


def _rules(tests: TestSet) -> dict[str, ScoringRule]:
    """Return the scoring rules of a set, by their names in the records."""
    if tests.label_sets is not None:
        scoring = f"any of the labels; {tests.left_out} images without labels left out"
        return {scoring: partial(_any_label, tests.label_sets)}
    rules: dict[str, ScoringRule] = {f"{tests.num_classes} classes": top_k}
    if tests.allowed is not None:
        rules[f"{len(tests.allowed)} classes"] = partial(masked, torch.tensor(tests.allowed))
    return rules


def _any_label(label_sets: Sequence[Sequence[int]], logits: Tensor, rows: Tensor) -> Tensor:
    """Score by ReaL's rule; the labels of an image are `label_sets[row]`."""
    return any_of(logits, [label_sets[row] for row in rows.tolist()])


def masked(allowed: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return True where the label has the highest logit among the allowed classes, [n] bool.

    Args:
        allowed: rising class indices; every label is among them.
        logits: [n, K].
        labels: [n]."""
    return top_k(logits[:, allowed], torch.searchsorted(allowed, labels))


def _means(tests: TestSet, found: list[Record]) -> Iterator[Record]:
    """Yield the plain mean over conditions, and the mCE where these are the published benchmark."""
    # mCE averages over severities first, relative to AlexNet, then over corruptions
    by_name: dict[str, list[Record]] = {}
    for record in found:
        by_name.setdefault(record.where["corruption"], []).append(record)
    severities = sorted({record.where["severity"] for record in found})
    settings = found[0].settings | {
        "average": f"{len(by_name)} corruptions x {len(severities)} severities",
        "corruption_names": list(by_name),
        "severities": severities,
        "missing": list(tests.missing),
    }
    fields: dict[str, Any] = {"n": min(r.n or 0 for r in found), "where": {"split": tests.title}}
    # all conditions are made of the same images, so their errors may be fully correlated: the mean
    # of standard errors is the most that the error of the mean can be
    yield Record(
        "testset/mean_corruption_accuracy",
        fmean(record.value for record in found),
        "1",
        fmean(record.stderr or 0 for record in found),
        settings=settings,
        source="plain mean over corruptions and severities: arXiv:2106.01548",
        **fields,
    )
    if tests.title == "ImageNet-C" and set(MAIN) <= set(by_name) and severities == list(SEVERITIES):
        relative = [fmean(1 - r.value for r in by_name[name]) / ALEXNET[name] for name in MAIN]
        errors = [fmean(r.stderr or 0 for r in by_name[name]) / ALEXNET[name] for name in MAIN]
        mce = {
            "average": "15 corruptions",
            "corruption_names": list(MAIN),
            "baseline": "AlexNet's published errors",
        }
        yield Record(
            "testset/mce",
            fmean(relative),
            "",
            fmean(errors),
            settings=settings | mce,
            source=tests.source,
            **fields,
        )
