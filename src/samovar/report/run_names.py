"""What runs are called in a report, and which of them are seeds of one recipe."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from samovar.report.read import RunData
from samovar.report.text import clean, setting

MANY = 8
"""With more runs than this, curves are drawn per recipe and colours tell recipes apart."""

LABEL_LENGTH = 40

# Settings that say where a run lies or how it was executed, not what was computed.
_ASIDE = ("output", "name", "seed", "run.")


@dataclass(frozen=True)
class Recipe:
    """Trained runs that differ in their seed alone."""

    label: str
    runs: tuple[RunData, ...]

    @property
    def color(self) -> int:
        """Index of the colour of its first run."""
        return self.runs[0].color


def command(run: RunData, *words: str) -> str:
    """A shell command that measures a run."""
    return " ".join(["samovar measure", shlex.quote(clean(run.path, 4000)), *words])


def named(runs: Sequence[RunData]) -> list[RunData]:
    """The runs with labels, all different, and colours: one a run, or one a recipe if there are
    many."""
    labels = _labels(runs)
    runs = [replace(run, label=labels[i], index=i, color=i) for i, run in enumerate(runs)]
    if len(runs) <= MANY:
        return runs
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
    """Trained runs by recipe, in order of appearance; a recipe has one run or more."""
    groups: dict[Any, list[RunData]] = {}
    for run in runs:
        if run.trained:
            groups.setdefault(_same_but_seed(run), []).append(run)
    first = [group[0] for group in groups.values()]
    labels = _labels([replace(run, config=run.config | {"name": "", "seed": ""}) for run in first])
    return [
        Recipe(label, tuple(group)) if len(group) > 1 else Recipe(group[0].label, tuple(group))
        for label, group in zip(labels, groups.values(), strict=True)
    ]


def differing(runs: Sequence[RunData]) -> list[str]:
    """Names of the settings in which runs differ, but for where they lie."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    return [
        name
        for name in names
        if name not in ("output", "name") and len({repr(run.config.get(name)) for run in runs}) > 1
    ]


def _same_but_seed(run: RunData) -> tuple[bool, str]:
    kept = {key: value for key, value in run.config.items() if not key.startswith(_ASIDE)}
    return run.trained, repr(sorted(kept.items()))


def _labels(runs: Sequence[RunData]) -> list[str]:
    labels = [_first_name(run) for run in runs]
    for refine in (_with_settings, _with_folder):
        for label in {label for label in labels if labels.count(label) > 1}:
            where = [index for index, found in enumerate(labels) if found == label]
            for index, better in zip(where, refine(label, [runs[i] for i in where]), strict=True):
                labels[index] = better
    short = [clean(label, LABEL_LENGTH) for label in labels]
    return [
        f"{i + 1}: {label}" if short.count(label) > 1 else label for i, label in enumerate(short)
    ]


def _first_name(run: RunData) -> str:
    recipe = run.config.get("recipe") if run.trained else run.config.get("model.name")
    return clean(run.config.get("name") or recipe or run.path.resolve().name, LABEL_LENGTH) or "run"


def _with_settings(label: str, runs: Sequence[RunData]) -> list[str]:
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
