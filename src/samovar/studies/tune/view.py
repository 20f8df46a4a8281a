"""What a search tells: its plan and cost before it starts, how runs end, and what was found."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from samovar import config as configs
from samovar.config import Config
from samovar.studies.tune import search
from samovar.studies.tune.search import Outcome, Rung, Search, Setting
from samovar.train.trials import Trial


@dataclass(frozen=True)
class Asked:
    """The command line, as far as others are made of it."""

    words: tuple[str, ...]
    """As it was given, but for --name."""
    train: tuple[str, ...]
    """The `samovar train` to which flags are added."""
    base: Config
    """What that trains without flags."""


@dataclass(frozen=True)
class Plan:
    """A search of a config, with all numbers that follow from its images."""

    config: Config
    """Trains on the images that are not held out for the search."""
    search: Search
    lengths: tuple[int, ...]
    """Steps of each stage of a full run."""
    rungs: tuple[Rung, ...]
    images: dict[str, Any]
    """What is compared on, as the records say it."""


def plan_lines(plan: Plan) -> list[str]:
    """What is about to be compared, on which images, and what it costs beside the full search."""
    images, seeds = plan.images, plan.search.seeds
    lists = [
        f"{search.AXES[name].title} {_numbers(values)}"
        for name, values in plan.search.values.items()
    ]
    lines = [
        f"{plan.config.recipe}: {_count(len(plan.search.settings), 'setting')} ({', '.join(lists)}), "
        f"{_count(seeds, 'seed')}",
        f"{images['training_images']} images of {images['source']} train, {images['images']} compare: "
        f"{images['held_out']}",
    ]
    if not plan.config.data.tune_share:
        lines.append(
            "what is chosen by these images looks a little too good on them; --share 0.1 keeps them for the end"
        )
    for number, rung in enumerate(plan.rungs, start=1):
        warmup = search.shortened(plan.config, rung.steps, plan.lengths).optim.warmup_steps
        lines.append(
            f"rung {number}: {_count(rung.settings, 'setting')}, {_count(rung.steps, 'step')}, {warmup} warm up"
        )
    steps = seeds * sum(rung.settings * rung.steps for rung in plan.rungs)
    everything = (Rung(len(plan.search.settings), sum(plan.lengths)),)
    share = search.cost(plan.rungs, plan.search, plan.config) / search.cost(
        everything, plan.search, plan.config
    )
    end = (
        "the full search"
        if plan.search.full
        else f"at most {100 * share:.0f} % of the gradients of --full"
    )
    return [*lines, f"in all {_count(steps, 'step')}, {end}"]


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def trial_line(trial: Trial, wanted: Search) -> str:
    """How a run ended, in a line."""
    values = configs.flatten(trial.config)
    setting = search.label({name: values[search.AXES[name].setting] for name in wanted.values})
    ended = f"{100 * trial.accuracy:.2f} %, loss {trial.loss:.4f}" if trial.finite else "not finite"
    return (
        f"{setting}, {trial.steps} steps, seed {trial.config.seed}: {ended}, {trial.seconds:.1f} s"
    )


def table_of(outcomes: Sequence[Outcome], plan: Plan) -> Table:
    """A row a setting, as it did in its longest runs; the best first."""
    title = f"{plan.config.recipe}: held-out accuracy, mean of {_count(plan.search.seeds, 'seed')}"
    table = Table(*(search.AXES[name].title for name in plan.search.values), title=title)
    for name in ("steps", "accuracy, %", "± se", "loss", "time, s"):
        table.add_column(name, justify="right")
    longest = {tuple(outcome.setting.items()): outcome for outcome in outcomes}
    for o in sorted(longest.values(), key=lambda outcome: (-outcome.rung, outcome.rank)):
        error = "" if o.stderr is None else f"{100 * o.stderr:.2f}"
        measured = (
            (f"{100 * o.accuracy:.2f}", error, f"{o.loss:.4f}")
            if o.finite
            else ("not finite", "", "")
        )
        table.add_row(
            *(f"{value:g}" for value in o.setting.values()),
            str(o.steps),
            *measured,
            f"{o.seconds:.1f}",
        )
    return table


def doubts(last: Sequence[Outcome], plan: Plan) -> list[str]:
    """That the two best cannot be told apart, where that is so: the gap is less than two standard
    errors."""
    if len(last) < 2 or not last[1].finite:
        return []
    first, second = last[:2]
    gaps = [a - b for a, b in zip(first.accuracies, second.accuracies, strict=True)]
    gap, error = math.fsum(gaps) / len(gaps), search.stderr(gaps)
    if error is None:  # of one seed the images alone give an error
        error = math.sqrt(
            sum(p * (1 - p) for p in (first.accuracy, second.accuracy)) / plan.images["images"]
        )
    if gap > 2 * error:
        return []
    name = search.label(second.setting)
    said = [
        f"{name} is {100 * gap:.2f} points behind, ± {100 * error:.2f}: not settled, more --seeds settle it"
    ]
    if not plan.search.full and second.setting.get("rho", 0) > first.setting.get("rho", 0):
        said.append(
            f"shortened runs favour a small rho, so of these two {name} may well be ahead at full length"
        )
    return said


def best_command(config: Config, asked: Asked, setting: Setting) -> str:
    """The command that trains a setting under the user's other flags, with those of the search's
    own gone."""
    best = search.apply(config, setting)
    best = replace(
        best, name=asked.base.name, data=replace(best.data, tune_share=asked.base.data.tune_share)
    )
    unlike = search.apply(
        asked.base, dict.fromkeys(setting, math.nan)
    )  # so that what was searched is always said
    return shlex.join([*asked.train, *configs.to_flags(best, unlike)])
