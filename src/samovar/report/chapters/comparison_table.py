"""Show SAM and its relatives as a table: cost, numbers, share of SAM's gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from samovar.report.parts import Cell, Column, Data, Row, Table
from samovar.report.read import RunData, number
from samovar.report.text import clean, count, with_error
from samovar.report.text import number as shown
from samovar.runs.records import Record

NUMBER, COST, SHARE, CLAIM, ANSWER, OWN_SHARE = (
    f"compare/{name}" for name in ("number", "cost", "share", "claim", "answer", "own_share")
)


class Budget(NamedTuple):
    """The limit within which all relatives of a table run."""

    title: str
    symbol: str
    """Marker of its points in a figure."""
    color: int


BUDGETS = {
    "steps": Budget("the same steps", "circle", 0),
    "time": Budget("SAM’s processor time", "diamond", 1),
}

_COST = (
    "processor time of a training step relative to a plain step: median and range of the ratios "
    "over repetitions on synthetic images; below it, gradients per image and the steps of a run"
)
_SHARE = (
    "mean gain in accuracy over plain training divided by SAM’s gain, both over the same seeds, "
    "with Fieller’s 90 % interval; empty if SAM itself may gain nothing"
)

_OWN_SHARE = (
    "the same with plain training and SAM under the schedule of the relative; empty where that is "
    "the recipe’s"
)

Found = Mapping[tuple[str, str], Record]
"""Records by relative and key of the column."""


def table(run: RunData, budget: str) -> Table:
    """Return a table with a row for each relative under a budget; its caption is the answer."""
    # Of several records of one place the newest counts.
    records = {
        name: [r for r in run.records.get(name, []) if r.where.get("budget") == budget]
        for name in (NUMBER, COST, SHARE, CLAIM, ANSWER, OWN_SHARE)
    }
    numbers, costs, shares, claims, own = (
        _by_place(records[name]) for name in (NUMBER, COST, SHARE, CLAIM, OWN_SHARE)
    )
    titles = {str(r.where.get("key")): clean(r.where.get("column", "")) for r in numbers.values()}
    rows = [
        Row(
            clean(name, 40),
            [
                _cost(record),
                *(_number(numbers.get((name, key))) for key in titles),
                *_kept(shares.get((name, "")), claims.get((name, ""))),
                *([_share(own.get((name, "")))] if own else []),
            ],
            detail=clean(record.settings.get("summary", "")),
        )
        for (name, _), record in costs.items()
    ]
    columns = [
        Column("Cost of a step", _COST),
        *(Column(title, _note(key)) for key, title in titles.items()),
        Column("Share of SAM’s gain", _SHARE),
        Column("Keeps 90 %", _test(list(claims.values()))),
        *([Column("Share under its own schedule", _OWN_SHARE)] if own else []),
    ]
    return Table(
        f"compare-{run.index}-{budget}",
        f"{run.label}: {BUDGETS[budget].title} for all",
        "relative",
        columns,
        rows,
        _data(list(numbers.values())),
        caption=" ".join(clean(r.settings.get("text", ""), 1000) for r in records[ANSWER]),
    )


def _by_place(records: Sequence[Record]) -> Found:
    return {(str(r.where.get("relative", "")), str(r.where.get("key", ""))): r for r in records}


def _data(found: Sequence[Record]) -> Data:
    columns = ("relative", "column", "worth", "steps", "value", "low", "high", "seeds", "values")
    return Data(columns, [_data_row(record) for record in found])


def _data_row(r: Record) -> Sequence[Any]:
    worth, steps = number(r.settings.get("worth")), r.settings.get("steps")
    values = " ".join(map(str, r.settings.get("values", [])))
    place = r.where.get("relative"), r.where.get("column")
    return (*place, worth, steps, r.value, *(r.interval or (None, None)), r.n, values)


def _cost(record: Record) -> Cell:
    low, high, passes, steps = (
        number(record.settings.get(key)) for key in ("lowest", "highest", "passes", "steps")
    )
    details = [] if low is None or high is None else [f"{low:.2f} to {high:.2f}"]
    details += (
        [] if passes is None else [f"{passes:.3g} gradient{'' if passes == 1 else 's'} per image"]
    )
    details += [] if steps is None else [count(int(steps), "step")]
    return Cell(f"{record.value:.2f}", details=details)


def _number(record: Record | None) -> Cell:
    if record is None or not record.n or not math.isfinite(record.value):
        return Cell("–")
    details = [seeds_of(record)]
    # The error of a geometric mean is a factor, not a difference.
    if record.settings.get("geometric"):
        factor = "" if record.stderr is None else f"×/÷ {math.exp(record.stderr):.3g}"
        return Cell(shown(record.value), factor, details)
    return Cell(*with_error(record.value, record.stderr), details)


def seeds_of(record: Record) -> str:
    """Return `3 seeds`, or `2 of 3 seeds` if one has no number."""
    seeds = record.n or 0
    planned = number(record.settings.get("asked")) or seeds
    return count(seeds, "seed") if seeds == planned else f"{seeds} of {planned:.0f} seeds"


def _kept(share: Record | None, claim: Record | None) -> list[Cell]:
    """Return the cells of the share of SAM's gain, and of the test whether 90 % are kept."""
    if share is None or claim is None:
        return [Cell("–"), Cell("–")]
    margin = f"{'+' if claim.value > 0 else ''}{shown(claim.value, 2)} points" if claim.n else ""
    verdict = Cell(clean(claim.settings.get("verdict", "")), details=[margin])
    return [_share(share), verdict]


def _share(share: Record | None) -> Cell:
    if share is None:
        return Cell("–")
    ends = [" to ".join(shown(100 * end, 2) for end in share.interval)] if share.interval else []
    kept = f"{shown(100 * share.value, 2)} %" if math.isfinite(share.value) else "–"
    return Cell(kept, details=ends)


def _note(key: str) -> str:
    if key == "lambda_max":
        return "geometric mean over seeds, with the standard error as a factor"
    return "mean over seeds with its standard error"


def _test(claims: Sequence[Record]) -> str:
    test = clean(claims[0].settings.get("test", "")) if claims else "a test over seeds"
    return f"{test}: does the gain exceed 90 % of SAM’s? Below the verdict, by how much it does"
