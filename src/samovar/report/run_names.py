"""Name and colour runs in a report, and find runs that differ only in their seed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from samovar.report.read import RunData
from samovar.report.text import clean, setting

MANY = 8
"""With more runs, curves are drawn by recipe, and a colour stands for a recipe."""

LABEL_LENGTH = 40

# Settings that say where a run is stored or how it was executed, not what was computed.
_ASIDE = ("output", "name", "seed", "run.")


@dataclass(frozen=True)
class Recipe:
    """Trained runs that differ only in their seed."""

    label: str
    runs: tuple[RunData, ...]

    @property
    def color(self) -> int:
        """Return the colour index of the first run."""
        return self.runs[0].color


def command(run: RunData, *words: str) -> str:
    """Return a shell command that measures a run."""
    return " ".join(["samovar measure", shlex.quote(clean(run.path, 4000)), *words])


def named(runs: Sequence[RunData]) -> list[RunData]:
    """Return the runs with unique labels and with colours.

    Each run has a colour of its own; with more than `MANY` runs, each recipe has one."""
    labels = _labels(runs)
    runs = [replace(run, label=labels[i], index=i, color=i) for i, run in enumerate(runs)]
    if len(runs) <= MANY:
        return runs
    # People tell about eight colours apart: more runs share the colour of their recipe.
    colors: dict[Any, int] = {}
    groups = {run.index: recipe.label for recipe in recipes(runs) for run in recipe.runs}
    return [
        replace(
            run,
            color=colors.setdefault(_same_but_seed(run), len(colors)),
            group=groups.get(run.index, run.label),
        )
        for run in runs
    ]


def recipes(runs: Sequence[RunData]) -> list[Recipe]:
    """Group trained runs by recipe, in order of appearance; a group has one run or more."""
    groups: dict[Any, list[RunData]] = {}
    for run in runs:
        if run.trained:
            groups.setdefault(_same_but_seed(run), []).append(run)
    # A recipe's label must not name a seed, so the labels are made from configs without one.
    first = [group[0] for group in groups.values()]
    labels = _labels([replace(run, config=run.config | {"name": "", "seed": ""}) for run in first])
    return [
        Recipe(label if len(group) > 1 else group[0].label, tuple(group))
        for label, group in zip(labels, groups.values(), strict=True)
    ]


def differing(runs: Sequence[RunData]) -> list[str]:
    """Return the names of the settings in which runs differ, without those of their folders."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    return [
        name
        for name in names
        if name not in ("output", "name") and len({repr(run.config.get(name)) for run in runs}) > 1
    ]


def _same_but_seed(run: RunData) -> tuple[bool, str]:
    """Return a key that runs of one recipe share, whatever their seeds."""
    # A value may be a list, which cannot be a key of a dict: take its text.
    kept = {key: value for key, value in run.config.items() if not key.startswith(_ASIDE)}
    return run.trained, repr(sorted(kept.items()))


def _labels(runs: Sequence[RunData]) -> list[str]:
    """Return unique labels: a name, and where it is taken its settings, folder or number."""
    labels = [_first_name(run) for run in runs]
    for refine in (_with_settings, _with_folder):
        labels = _refined(labels, runs, refine)
    # Cutting long labels can make them equal again: then their number tells them apart.
    short = [clean(label, LABEL_LENGTH) for label in labels]
    return [
        f"{i + 1}: {label}" if short.count(label) > 1 else label for i, label in enumerate(short)
    ]


def _refined(labels: Sequence[str], runs: Sequence[RunData], refine: Any) -> list[str]:
    """Return the labels with those that several runs share refined."""
    refined = list(labels)
    for label in {label for label in labels if labels.count(label) > 1}:
        alike = [index for index, found in enumerate(labels) if found == label]
        better = refine(label, [runs[index] for index in alike])
        for index, name in zip(alike, better, strict=True):
            refined[index] = name
    return refined


def _first_name(run: RunData) -> str:
    recipe = run.config.get("recipe") if run.trained else run.config.get("model.name")
    return clean(run.config.get("name") or recipe or run.path.resolve().name, LABEL_LENGTH) or "run"


def _with_settings(label: str, runs: Sequence[RunData]) -> list[str]:
    """Add up to three settings in which the runs differ, the seed first."""
    names = [name for name in differing(runs) if name == "seed" or not name.startswith(_ASIDE)]
    names = sorted(names, key=lambda name: name != "seed")[:3]
    texts = [
        ", ".join(
            f"{name.rpartition('.')[2]} {clean(setting(run.config.get(name)), 24)}"
            for name in names
        )
        for run in runs
    ]
    return [f"{label}, {text}" if text else label for text in texts]


def _with_folder(label: str, runs: Sequence[RunData]) -> list[str]:
    return [f"{label} ({clean(run.path.resolve().name, 24)})" for run in runs]
