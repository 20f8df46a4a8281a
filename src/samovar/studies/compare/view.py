"""Text of `samovar compare`: the head of its plan, costs, a table for each budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from samovar.studies.columns import COLUMNS
from samovar.studies.compare.cost import Cost
from samovar.studies.compare.request import COMPARED, CompareRequest, passes_of
from samovar.studies.compare.results import (
    KEPT,
    CompareNumber,
    CompareResults,
    GainShare,
    Standing,
    gain_text,
)
from samovar.studies.terminal import markdown_table

TITLES = {
    "steps": "the recipe's steps for all",
    "time": "the processor time of SAM's run for all",
}
"""Titles of the tables by budget."""

_HEAD = [
    "",
    "cost × plain",
    "steps",
    *(COLUMNS[column].title for column in COMPARED),
    "share of SAM's gain, %",
    f"keeps {100 * KEPT:.0f} %",
]


def head(found: CompareResults) -> list[str]:
    """Return the titles of the columns."""
    return [*_HEAD, "of SAM's under its own schedule, %"] if _several(found) else _HEAD


def _several(found: CompareResults) -> bool:
    """Return whether a relative has a share of SAM's gain under a schedule of its own."""
    return any(standing.own_share for standing in found.standings)


def plan_head(request: CompareRequest) -> str:
    """Return the first line of a plan: recipe, budgets, gradients of each relative."""
    budgets = ", and ".join(TITLES[budget] for budget in request.budgets)
    counted = ", ".join(f"{name} {passes:g}" for name, passes in passes_of(request).items())
    return f"{request.recipe}, {budgets}; gradients of an image in a step: {counted}"


def cost_line(costs: Mapping[str, Cost]) -> str:
    """Return the measured costs in one line."""
    ratios = ", ".join(f"{name} {cost.ratio:.2f}" for name, cost in costs.items())
    return f"processor time of a step × plain: {ratios}"


def table(found: CompareResults, request: CompareRequest) -> Table:
    """Return the standings under one budget as a table for the terminal."""
    drawn = Table(*head(found), title=_title(found, request))
    for standing in found.standings:
        drawn.add_row(*row(standing, found))
    return drawn


def markdown(found: Sequence[CompareResults], request: CompareRequest) -> str:
    """Return the standings under every budget as Markdown tables, each with its answer."""
    lines = []
    for each in found:
        rows = [row(standing, each) for standing in each.standings]
        lines += [f"{_title(each, request)}:", ""]
        lines += [*markdown_table(head(each), rows), "", each.answer, ""]
    return "\n".join(lines)


def _title(found: CompareResults, request: CompareRequest) -> str:
    seeds = "one seed" if request.seeds == 1 else f"mean of {request.seeds} seeds"
    return f"{request.recipe}, {TITLES[found.budget]}; {seeds} ± standard error"


def row(standing: Standing, found: CompareResults) -> list[str]:
    """Return the cells of a relative."""
    cost = f"{standing.cost.ratio:.2f} ({standing.cost.passes:.3g} counted)"
    numbers = [_number(standing.numbers[column], column, found.gain.asked) for column in COMPARED]
    cells = [standing.relative, cost, str(standing.steps), *numbers, *_kept(standing, found)]
    if _several(found):
        cells.append(share_text(standing.own_share) if standing.own_share else "")
    return cells


def _number(number: CompareNumber, column: str, asked: int) -> str:
    n, error = len(number.values), ""
    if not n:
        return "–"
    if number.error is not None and column == "lambda_max":
        error = f" ×/÷ {math.exp(number.error):.3g}"  # a factor, since the mean is geometric
    elif number.error is not None:
        error = f" ± {number.error:.2g}"
    return f"{number.mean:.4g}{error}" + (f" ({n} of {asked} seeds)" if n < asked else "")


def _kept(standing: Standing, found: CompareResults) -> list[str]:
    """Return the share of SAM's gain and the verdict on it; for SAM, the gain itself."""
    if standing.relative == "sam":
        return [f"the gain: {gain_text(found.gain)}", ""]
    if standing.share is None:
        return ["0", ""]
    verdict = standing.share.outcome.verdict if found.gain.verdict == "held" else "–"
    return [share_text(standing.share), verdict]


def share_text(share: GainShare) -> str:
    """Return a share in percent with its interval."""
    if not math.isfinite(share.value):
        return "–"
    ends = f" ({100 * share.low:.0f} to {100 * share.high:.0f})" if math.isfinite(share.low) else ""
    return f"{100 * share.value:.0f}{ends}"
