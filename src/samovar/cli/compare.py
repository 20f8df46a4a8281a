"""The command line of `samovar compare`. Nothing in this file needs torch."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from samovar.cli.reproduce import changes_of, count
from samovar.config import Config
from samovar.recipes.relatives import RELATIVES
from samovar.studies.compare.plan import (
    BUDGETS,
    CHOSEN,
    MEASURE,
    RELATIVES_COMPARED,
    CompareRequest,
    check,
    relatives_of,
    with_sam,
)
from samovar.studies.jobs import changed, shorter

SEEDS = 3
"""Of each relative, where `--seeds` does not say."""

HELP = f"""\
usage: samovar compare RECIPE [--sam NAME,NAME,...] [--seeds N] [--flags]

RECIPE trains with SAM, or has a twin that does. NAME:
{chr(10).join(f"  {name:<15} {relative.summary}" for name, relative in RELATIVES.items())}
  A+B             both, such as quarter+late
  A+KEY=VALUE     A with its own --sam.KEY VALUE, such as msam+rho=1 and sam+every=3

  --sam A,B,...   what is compared, beside plain and sam, which always are; without it
{textwrap.fill(", ".join(RELATIVES_COMPARED), 100, initial_indent=" " * 18, subsequent_indent=" " * 18)}
  --seeds N       runs of each; without it {SEEDS}
  --budget B      steps: all train for the recipe's steps; time: each for as many steps as the processor time of
                  SAM's run pays for; both; without it steps
  --jobs N        runs at a time, in processes that share the cores and take the GPUs in turn
  --output DIR    folder of runs and page; without it runs/compare-RECIPE
  --plan          print the runs, their cost here and the command of each, and stop

Flags of `samovar train` hold for all runs: --epochs (which shortens warm-up in proportion), --data.root, --sam.rho;
those of `samovar measure` are given as --measure.images. Measures what a step of each costs beside a plain one, trains,
takes accuracy, lambda_max and accuracy under corruptions of the last weights, and says which relatives keep 90 % of
SAM's gain at 1.3 times the cost of plain; draws all of it against processor time. What is done is not done again.
"""

FLAGS = ("--sam", "--seeds", "--budget", "--jobs", "--output", "--plan")


def parse(
    args: list[str],
    parse_flags: Callable[..., Any],
    take: Callable[..., str | None],
    start: Callable[[str, list[str]], Config],
) -> tuple[CompareRequest, bool]:
    """What a `compare` command line asks for, and whether only the plan.

    Args:
        args: emptied as they are read.
        parse_flags, take: the command line's own readers of flags.
        start: the settings of a recipe, given its name and the flags.

    Raises:
        ValueError: an unknown recipe, relative (all are listed) or flag, a number that is none, a
            folder of others."""
    names = take(args, "--sam", "names, such as quarter,late")
    seeds, jobs = (count(take(args, flag, "a number"), flag) for flag in ("--seeds", "--jobs"))
    budget = take(args, "--budget", f"one of {', '.join(BUDGETS)}") or "steps"
    output = take(args, "--output", "a folder")
    only_plan = "--plan" in args
    words = [arg for arg in args if arg != "--plan"]
    if budget not in BUDGETS:
        raise ValueError(f"--budget {budget} is unknown; give one of: {', '.join(BUDGETS)}")
    if not words or words[0].startswith("-"):
        raise ValueError("compare needs a recipe; see `samovar list recipes`")
    recipe, *flags = words
    if flags and not flags[0].startswith("-"):
        raise ValueError(
            f"compare takes one recipe, not {recipe} and {flags[0]}; give relatives as --sam {flags[0]}"
        )
    base = replace(with_sam(recipe, start(recipe, flags)), recipe=recipe)
    changes, measure = changes_of(flags, base, parse_flags, f"samovar compare {recipe}", FLAGS)
    for name in CHOSEN:
        if name in changes:
            raise ValueError(
                f"--{name} is what compare chooses; give --seeds N for runs of several seeds"
            )
    asked = CompareRequest(
        recipe, shorter(base, changes), relatives_of(names), seeds or SEEDS,
        Path(output or f"runs/compare-{recipe}"), BUDGETS[budget], changed(MEASURE, measure), jobs or 1,
    )  # fmt: skip
    check(asked)
    return asked, only_plan
