"""Text of a search: its plan and cost, one line a run, the table, notes, the best as a command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from rich.table import Table

from samovar import config as configs
from samovar.config import Config
from samovar.recipes import replay
from samovar.studies.intervals import stderr
from samovar.studies.tune import search
from samovar.studies.tune.search import Rung, Search, Setting, TuneOutcome
from samovar.train.trials import Trial
from samovar.words import duration


@dataclass(frozen=True)
class TuneRequest:
    """A `samovar tune` command line, as far as other commands are made of it."""

    words: tuple[str, ...]
    """Words as given, without --name."""
    train: tuple[str, ...]
    """Command `samovar train ...` to which flags are added."""
    base: Config
    """Config that this command trains without flags."""


@dataclass(frozen=True)
class TunePlan:
    """A search of a config, with all numbers that follow from its images."""

    config: Config
    """Trains on the images that are not held out for the search."""
    search: Search
    lengths: tuple[int, ...]
    """Steps of each stage of a full run."""
    rungs: tuple[Rung, ...]
    images: dict[str, Any]
    """Facts on the images compared on, as settings of the records."""


def plan_lines(plan: TunePlan) -> list[str]:
    """Return the plan as lines: settings, images, rungs, and the cost beside the full search."""
    images, seeds, settings = plan.images, plan.search.seeds, plan.search.settings
    lists = [
        f"{search.AXES[name].title} {' '.join(f'{value:g}' for value in values)}"
        for name, values in plan.search.values.items()
    ]
    lines = [
        f"{plan.config.recipe}: {_count(len(settings), 'setting')} ({', '.join(lists)}), "
        f"{_count(seeds, 'seed')}",
        f"{images['training_images']} images of {images['source']} train, "
        f"{images['images']} compare: {images['held_out']}",
    ]
    # chosen by the images that `val/accuracy` is measured on, it is a little optimistic
    if not plan.config.data.tune_share:
        lines.append(
            "accuracy on these images is a little optimistic, since they choose the setting; "
            "--share 0.1 keeps them for the end"
        )
    for number, rung in enumerate(plan.rungs, start=1):
        warmup = search.shortened(plan.config, rung.steps, plan.lengths).optim.warmup_steps
        lines.append(
            f"rung {number}: {_count(rung.settings, 'setting')}, {_count(rung.steps, 'step')}, "
            f"{warmup} warm up"
        )
    steps = seeds * sum(rung.settings * rung.steps for rung in plan.rungs)
    return [*lines, f"in all {_count(steps, 'step')}, {_share_of_full(plan)}"]


def _share_of_full(plan: TunePlan) -> str:
    if plan.search.full:
        return "the full search"
    full = (Rung(len(plan.search.settings), sum(plan.lengths)),)
    part, whole = (search.cost(rungs, plan.search, plan.config) for rungs in (plan.rungs, full))
    return f"at most {100 * part / whole:.0f} % of the gradients of --full"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def trial_line(trial: Trial, wanted: Search) -> str:
    """Return one line on how a run ended."""
    values = configs.flatten(trial.config)
    setting = search.label({name: values[search.AXES[name].setting] for name in wanted.values})
    ended = f"{100 * trial.accuracy:.2f} %, loss {trial.loss:.4f}" if trial.finite else "not finite"
    return (
        f"{setting}, {trial.steps} steps, seed {trial.config.seed}: {ended}, "
        f"{duration(trial.seconds)}"
    )


def table_of(outcomes: Sequence[TuneOutcome], plan: TunePlan) -> Table:
    """Return a table with the longest runs of each setting, the best first."""
    title = f"{plan.config.recipe}: held-out accuracy, mean of {_count(plan.search.seeds, 'seed')}"
    table = Table(*(search.AXES[name].title for name in plan.search.values), title=title)
    for name in ("steps", "accuracy, %", "± se", "loss", "time, s"):
        table.add_column(name, justify="right")
    # outcomes come rung by rung, so the last of a setting is of its longest runs
    longest = {tuple(outcome.setting.items()): outcome for outcome in outcomes}
    for o in sorted(longest.values(), key=lambda outcome: (-outcome.rung, outcome.rank)):
        error = "" if o.stderr is None else f"{100 * o.stderr:.2f}"
        measured = ("not finite", "", "")
        if o.finite:
            measured = (f"{100 * o.accuracy:.2f}", error, f"{o.loss:.4f}")
        values = (f"{value:g}" for value in o.setting.values())
        table.add_row(*values, str(o.steps), *measured, f"{o.seconds:.1f}")
    return table


def doubts(last: Sequence[TuneOutcome], plan: TunePlan) -> list[str]:
    """Return notes where the gap of the two best is within two standard errors.

    Args:
        last: outcomes of the last rung, the best first."""
    if len(last) < 2 or not last[1].finite:
        return []
    first, second = last[:2]
    gaps = [a - b for a, b in zip(first.accuracies, second.accuracies, strict=True)]
    gap, error = fmean(gaps), stderr(gaps)
    if error is None:  # one seed; the number of images alone gives a binomial error
        variances = (p * (1 - p) for p in (first.accuracy, second.accuracy))
        error = math.sqrt(sum(variances) / plan.images["images"])
    if gap > 2 * error:
        return []
    name = search.label(second.setting)
    said = [
        f"{name} is {100 * gap:.2f} points behind, ± {100 * error:.2f}: "
        "not settled, more --seeds settle it"
    ]
    if not plan.search.full and second.setting.get("rho", 0) > first.setting.get("rho", 0):
        said.append(
            f"shortened runs favour a small rho, so of these two {name} may well be ahead "
            "at full length"
        )
    return said


def best_command(config: Config, request: TuneRequest, setting: Setting) -> str:
    """Return the command that trains a setting under the user's other flags.

    Flags of the search itself are left out."""
    base = request.base
    best = search.apply(config, setting)
    data = replace(best.data, tune_share=base.data.tune_share)
    best = replace(best, name=base.name, data=data)
    # NaN differs from every value, so that flags name the searched settings even at their defaults
    unlike = search.apply(base, dict.fromkeys(setting, math.nan))
    return shlex.join([*request.train, *replay.flags(best, unlike)])
