"""Define the chapters of a report in their order, its title, and the notices above the chapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from samovar.report.chapters.activations import activations
from samovar.report.chapters.attention import attention
from samovar.report.chapters.blocks import blocks
from samovar.report.chapters.classes import classes
from samovar.report.chapters.comparison import comparison, is_comparison
from samovar.report.chapters.headline import headline
from samovar.report.chapters.landscape import landscape
from samovar.report.chapters.predictions import predictions
from samovar.report.chapters.provenance import provenance
from samovar.report.chapters.reproduction import NUMBER, is_study, reproduction
from samovar.report.chapters.robustness import robustness
from samovar.report.chapters.settings import settings
from samovar.report.chapters.spectrum import spectrum
from samovar.report.chapters.training import training
from samovar.report.chapters.tuning import is_search, tuning
from samovar.report.chapters.unmeasured import unmeasured
from samovar.report.chapters.verdict import verdict
from samovar.report.chapters.watch import watch
from samovar.report.parts import Chapter, labels_of
from samovar.report.read import RunData
from samovar.report.text import count, setting

Runs = Sequence[RunData]


def studies(runs: Runs) -> Runs:
    """Return the folders that `samovar reproduce` wrote."""
    return [run for run in runs if is_study(run)]


def comparisons(runs: Runs) -> Runs:
    """Return the folders that `samovar compare` wrote."""
    return [run for run in runs if is_comparison(run)]


def searches(runs: Runs) -> Runs:
    """Return the folders that `samovar tune` wrote."""
    return [run for run in runs if is_search(run)]


def networks(runs: Runs) -> Runs:
    """Return the folders that hold one network, trained or measured."""
    return [run for run in runs if not (is_summary(run) or is_search(run))]


def folders(runs: Runs) -> Runs:
    """Return the folders whose settings are compared.

    A summary has no settings of its own: beside one, only the networks are compared."""
    return (networks(runs) or runs) if any(map(is_summary, runs)) else runs


def is_summary(run: RunData) -> bool:
    """Return whether a folder only summarizes runs that have folders of their own."""
    return is_study(run) or is_comparison(run)


@dataclass(frozen=True)
class Entry:
    """An entry of the table of contents."""

    build: Callable[[Runs], Chapter]
    about: Callable[[Runs], Runs] = networks
    """Select the folders that the chapter is about; without any it is left out."""


CHAPTERS: dict[str, Entry] = {
    # Summaries come first: they hold the answer for which their runs were made.
    "reproduction": Entry(reproduction, studies),
    "comparison": Entry(comparison, comparisons),
    "tuning": Entry(tuning, searches),
    # Then the networks, from numbers to pictures.
    "verdict": Entry(verdict),
    "headline": Entry(headline),
    "training": Entry(training),
    "watch": Entry(watch),
    "landscape": Entry(landscape),
    "spectrum": Entry(spectrum),
    "blocks": Entry(blocks),
    "activations": Entry(activations),
    "attention": Entry(attention),
    "classes": Entry(classes),
    "predictions": Entry(predictions),
    "robustness": Entry(robustness),
    # Last come the facts that one looks up.
    "settings": Entry(settings, folders),
    "provenance": Entry(provenance, folders),
}
"""All chapters by their id in the page, in the order of the page and of its navigation."""


def chapters(runs: Runs) -> list[Chapter]:
    """Build the chapters of a report on these folders.

    A chapter that has nothing to show is left out; the last one lists what was not measured."""
    found = [entry.build(about) for entry in CHAPTERS.values() if (about := entry.about(runs))]
    shown = [
        replace(chapter, missing=())
        for chapter in found
        if chapter.parts or chapter.notes or chapter.lead
    ]
    return [*shown, *unmeasured(found, runs)]


def title(runs: Runs) -> str:
    """Return the title of the report."""
    for run in runs:
        if is_study(run):
            scale = run.records[NUMBER][0].settings.get("scale", "unknown")
            return f"{run.path.name} of the paper, at {scale} scale"
        if is_comparison(run):
            return f"SAM and its relatives on {run.task}"
    tasks = list(dict.fromkeys(run.task for run in runs if run.task))
    about = ", ".join(tasks[:3]) + (" and others" if len(tasks) > 3 else "")
    what = " and ".join(labels_of(runs)) if len(runs) <= 2 else count(len(runs), "run")
    return f"{what} on {about}" if about else what


def notices(runs: Runs) -> list[str]:
    """Return what a reader has to know before comparing numbers."""
    return [
        *_tasks(runs),
        *(f"{run.label} has no records yet: {run.path}" for run in runs if not run.records),
        *(
            f"{run.label}: skipped {count(run.bad_lines, 'unreadable line')} of records.jsonl."
            for run in runs
            if run.bad_lines
        ),
        *(text for run in runs if (text := _diverged(run))),
    ]


def _tasks(runs: Runs) -> list[str]:
    """Return a warning if the runs have different data."""
    tasks: dict[str, list[str]] = {}
    for run in runs:
        tasks.setdefault(run.task or "unknown", []).append(run.label)
    if len(tasks) <= 1:
        return []
    groups = "; ".join(f"{task}: {', '.join(labels)}" for task, labels in tasks.items())
    return [
        "These runs solve different tasks, so their accuracies and losses cannot be compared "
        f"({groups})."
    ]


def _diverged(run: RunData) -> str:
    """Return a notice if the last training loss is not finite, else an empty text."""
    losses = run.series("train/loss")
    if not losses or math.isfinite(losses[-1].value):
        return ""
    step = setting(losses[-1].where["step"])
    return f"{run.label} diverged: its training loss is not finite at step {step}."
