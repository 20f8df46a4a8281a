"""What `samovar compare` tells: the plan, a table for each budget, the answer."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

from rich.table import Table

from samovar import config as configs
from samovar.studies.compare.cost import Cost
from samovar.studies.compare.plan import Asked, Run, config_of
from samovar.studies.compare.results import COLUMNS, KEPT, Number, Results, Share, Standing, said
from samovar.studies.reproduce.columns import COLUMNS as ALL

TITLES = {
    "steps": "the recipe's steps for all",
    "time": "the processor time of SAM's run for all",
}
"""Of the tables, by budget."""

HEAD = [
    "",
    "cost × plain",
    "steps",
    *(ALL[column].title for column in COLUMNS),
    "share of SAM's gain, %",
    f"keeps {100 * KEPT:.0f} %",
]


def passes_of(asked: Asked) -> dict[str, float]:
    """Gradients of each image that a step of each relative takes."""
    return {name: configs.passes(config_of(asked, name)) for name in asked.relatives}


def plan_lines(
    asked: Asked, runs: Sequence[Run], left: Sequence[Run], all_commands: Sequence[Sequence[str]]
) -> list[str]:
    """What is about to be trained and measured.

    Args:
        left: runs that are not done.
        all_commands: those of the runs that are left, where they are asked for."""
    budgets = ", and ".join(TITLES[budget] for budget in asked.budgets)
    counted = ", ".join(f"{name} {passes:g}" for name, passes in passes_of(asked).items())
    done = len(runs) - len(left)
    return [
        f"{asked.recipe}, {budgets}; gradients of an image in a step: {counted}",
        f"{len(runs)} runs, {asked.seeds} of each relative"
        + (f"; {done} are there already" if done else ""),
        *(shlex.join(words) for words in all_commands),
    ]


def cost_line(costs: Mapping[str, Cost]) -> str:
    """Measured costs in a line."""
    return "processor time of a step × plain: " + ", ".join(
        f"{name} {cost.ratio:.2f}" for name, cost in costs.items()
    )


def table(found: Results, asked: Asked) -> Table:
    """The standings under one budget, for a terminal."""
    drawn = Table(
        *HEAD,
        title=f"{asked.recipe}, {TITLES[found.budget]}; {_seeds(asked.seeds)} ± standard error",
    )
    for standing in found.standings:
        drawn.add_row(*row(standing, found))
    return drawn


def markdown(found: Sequence[Results], asked: Asked) -> str:
    """The standings under every budget, with the answers."""
    lines = []
    for each in found:
        rows = [HEAD, ["---"] * len(HEAD), *(row(standing, each) for standing in each.standings)]
        lines += [
            f"{asked.recipe}, {TITLES[each.budget]}; {_seeds(asked.seeds)} ± standard error:",
            "",
        ]
        lines += ["| " + " | ".join(cells) + " |" for cells in rows]
        lines += ["", each.answer, ""]
    return "\n".join(lines)


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean of {count} seeds"


def row(standing: Standing, found: Results) -> list[str]:
    """The cells of a relative."""
    cost = f"{standing.cost.ratio:.2f} ({standing.cost.passes:.3g} counted)"
    numbers = [_number(standing.numbers[column], column, found.gain.asked) for column in COLUMNS]
    return [standing.relative, cost, str(standing.steps), *numbers, *_kept(standing, found)]


def _number(number: Number, column: str, asked: int) -> str:
    n = len(number.values)
    if not n:
        return "–"
    times = column == "lambda_max"
    error = (
        ""
        if number.error is None
        else f" ×/÷ {math.exp(number.error):.3g}"
        if times
        else f" ± {number.error:.2g}"
    )
    return f"{number.mean:.4g}{error}" + (f" ({n} of {asked} seeds)" if n < asked else "")


def _kept(standing: Standing, found: Results) -> list[str]:
    """Share of SAM's gain with its interval, and the verdict on it; of SAM its gain."""
    if standing.relative == "sam":
        return [f"the gain: {said(found.gain)}", ""]
    if standing.share is None:
        return ["0", ""]
    return [
        share_text(standing.share),
        standing.share.outcome.verdict if found.gain.verdict == "held" else "–",
    ]


def share_text(share: Share) -> str:
    """A share in percent with its interval."""
    if not math.isfinite(share.value):
        return "–"
    ends = f" ({100 * share.low:.0f} to {100 * share.high:.0f})" if math.isfinite(share.low) else ""
    return f"{100 * share.value:.0f}{ends}"
