"""`samovar compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from samovar.cli import early
from samovar.cli.flags import (
    ALIASES,
    COUNT,
    DIR,
    SWITCH,
    TRUST,
    Flag,
    Kind,
    flag_lines,
    lines,
    one_of,
    read,
)
from samovar.cli.settings import given_values, recipe_name, recipe_settings
from samovar.recipes.relatives import RELATIVES
from samovar.studies.compare.request import (
    BUDGETS,
    CHOSEN,
    MEASURE,
    RELATIVES_COMPARED,
    CompareRequest,
    check,
    relatives_of,
    under_schedules,
    with_sam,
)
from samovar.studies.jobs import changed, shorter

FLAGS = (
    Flag(
        "--sam", Kind("A,B,...", "names, such as quarter,late"),
        "relatives to compare; plain and sam always take part",
        shown=", ".join(RELATIVES_COMPARED),
    ),
    Flag(
        "--schedules", Kind("A,B,...", "schedules of the learning rate, such as cosine,wsd"),
        "train each relative under each schedule that it fits; plain and sam take part under each",
        shown="the recipe's",
    ),
    Flag("--seeds", COUNT, "runs of each relative", 3),
    Flag(
        "--budget", one_of("B", BUDGETS),
        "steps: all train for the recipe's steps; time: each trains for as many steps as fit into "
        "the processor time of SAM's run; both", "steps",
    ),
    Flag("--jobs", COUNT, "runs at a time; they share the cores and take the GPUs in turn", 1),
    Flag("--output", DIR, "folder of runs and page", shown="runs/compare-RECIPE"),
    Flag("--plan", SWITCH, "print the runs, their cost here and the command of each, and stop"),
    TRUST,
)  # fmt: skip

_NAMES = {name: relative.summary for name, relative in RELATIVES.items()} | {
    "A+B": "both, such as quarter+late",
    "A+KEY=VALUE": "A with its own --sam.KEY VALUE, such as msam+rho=1 and sam+every=3",
    "A@SCHEDULE": "A under another --optim.schedule, such as decay@wsd",
}

HELP = f"""\
usage: samovar compare RECIPE [--sam NAME,NAME,...] [--seeds N] [--flags]

Compare SAM with its cheaper and stronger relatives on one recipe. Time a step of each, train,
measure the last weights (accuracy, lambda_max, accuracy under corruptions), and write a page with
all of it against processor time. It says which relatives keep 90 % of SAM's gain at 1.25 times the
cost of plain training. RECIPE trains with SAM, or has a twin that does.

NAME:
{lines(_NAMES)}

{flag_lines(FLAGS)}

Flags of `samovar train` apply to all runs, such as --data.root and --sam.rho; --epochs shortens the
warm-up in proportion. Flags of `samovar measure` are given as --measure.images. Finished runs and
measurements are not repeated.

examples:
  samovar compare vit-digits
  samovar compare vit-cifar10k --sam quarter,late,gsam --seeds 5 --budget both
  samovar compare vit-digits --sam quarter+late,msam+rho=1 --plan
  samovar compare vit-digits --sam decay,quarter+decay --schedules cosine,wsd
"""


def parse(args: Sequence[str]) -> tuple[CompareRequest, bool]:
    """Return what a command line asks for, and whether it asks for the plan only.

    Raises:
        ValueError: an unknown recipe, relative (all are listed) or flag, a value that does not
            fit, a folder that holds something else."""
    line = read(args, FLAGS, "compare", settings=True, aliases=ALIASES)
    if len(line.words) > 1:
        first, second, *_ = line.words
        raise ValueError(
            f"compare takes one recipe, not {first} and {second}; give relatives as --sam {second}"
        )
    recipe = recipe_name(line, "compare")
    settings = recipe_settings(recipe, line.settings, "compare", FLAGS)
    base = replace(with_sam(recipe, settings), recipe=recipe)
    changes, measure = given_values(base, line.settings, f"compare {recipe}", FLAGS)
    # what tells the runs of a comparison apart cannot be one value for all of them
    for name in CHOSEN:
        if name in changes:
            raise ValueError(f"compare chooses --{name} itself; give --seeds N for several seeds")
    base = shorter(base, changes)
    asked = CompareRequest(
        recipe,
        base,
        under_schedules(base, relatives_of(line["--sam"]), line["--schedules"]),
        line["--seeds"],
        line["--output"] or Path(f"runs/compare-{recipe}"),
        BUDGETS[line["--budget"]],
        changed(MEASURE, measure),
        line["--jobs"],
    )
    check(asked)
    return asked, line["--plan"]


def run(args: Sequence[str]) -> None:
    """Compare SAM and its relatives."""
    asked, only_plan = parse(args)
    early.check(asked.base, data=not only_plan)
    from samovar.studies.compare.command import compare

    compare(asked, ["samovar", "compare", *args], only_plan=only_plan)
