"""The chapters of a report in their order, and what has to be said before the first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from samovar.report.chapters.attention import attention
from samovar.report.chapters.blocks import activations, blocks
from samovar.report.chapters.comparison import comparison, is_comparison
from samovar.report.chapters.headline import headline
from samovar.report.chapters.landscape import landscape
from samovar.report.chapters.predictions import predictions
from samovar.report.chapters.provenance import provenance, settings
from samovar.report.chapters.reproduction import NUMBER, is_study, reproduction
from samovar.report.chapters.robustness import robustness
from samovar.report.chapters.spectrum import spectrum
from samovar.report.chapters.training import training, watch
from samovar.report.chapters.tuning import is_search, tuning
from samovar.report.parts import Section, labels_of
from samovar.report.read import RunData
from samovar.report.text import count, setting

SECTIONS: dict[str, Callable[[Sequence[RunData]], Section]] = {
    "headline": headline,
    "training": training,
    "watch": watch,
    "landscape": landscape,
    "spectrum": spectrum,
    "blocks": blocks,
    "activations": activations,
    "attention": attention,
    "predictions": predictions,
    "robustness": robustness,
    "settings": settings,
    "provenance": provenance,
}


ABOUT_FOLDERS = ("settings", "provenance")
"""Chapters that a search has as well as a run."""

SEVERAL: dict[Callable[[Sequence[RunData]], Section], Callable[[RunData], bool]] = {
    reproduction: is_study,
    comparison: is_comparison,
    tuning: is_search,
}
"""Chapters on folders that sum up several runs, and which folders those are."""


def is_summary(run: RunData) -> bool:
    """Whether a folder only sums up runs that have folders of their own."""
    return is_study(run) or is_comparison(run)


def chapters(runs: Sequence[RunData]) -> list[Section]:
    """The chapters of a report; a folder that is of several runs has its own, first, and no place
    in those on trained networks."""
    several = {build: [run for run in runs if is_one(run)] for build, is_one in SEVERAL.items()}
    first = [build(found) for build, found in several.items() if found]
    others = [run for run in runs if not any(run in found for found in several.values())]
    if not others:
        return first + [SECTIONS[name](runs) for name in ABOUT_FOLDERS]
    about = others if any(map(is_summary, runs)) else runs
    return first + [
        build(about if name in ABOUT_FOLDERS else others) for name, build in SECTIONS.items()
    ]


def title(runs: Sequence[RunData]) -> str:
    """What the report is about, in a line."""
    for run in runs:
        if is_study(run):
            return f"{run.path.name} of the paper, at {run.records[NUMBER][0].settings.get('scale', 'unknown')} scale"
        if is_comparison(run):
            return f"SAM and its relatives on {run.task}"
    tasks = list(dict.fromkeys(run.task for run in runs if run.task))
    about = ", ".join(tasks[:3]) + (" and others" if len(tasks) > 3 else "")
    what = " and ".join(labels_of(runs)) if len(runs) <= 2 else count(len(runs), "run")
    return f"{what} on {about}" if about else what


def notices(runs: Sequence[RunData]) -> list[str]:
    """What a reader has to know before comparing numbers."""
    found = []
    tasks: dict[str, list[str]] = {}
    for run in runs:
        tasks.setdefault(run.task or "unknown", []).append(run.label)
    if len(tasks) > 1:
        groups = "; ".join(f"{task}: {', '.join(labels)}" for task, labels in tasks.items())
        found.append(
            f"These runs are of different tasks, so their accuracies and losses do not compare ({groups})."
        )
    found += [f"{run.label} has no records yet: {run.path}" for run in runs if not run.records]
    found += [
        f"{run.label}: left out {count(run.bad_lines, 'line')} of records.jsonl that cannot be read."
        for run in runs
        if run.bad_lines
    ]
    return found + [text for run in runs if (text := _diverged(run))]


def _diverged(run: RunData) -> str:
    losses = run.series("train/loss")
    if losses and not math.isfinite(losses[-1].value):
        return f"{run.label} diverged: its training loss is not finite at step {setting(losses[-1].where['step'])}."
    return ""
