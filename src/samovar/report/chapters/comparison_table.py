"""SAM and its relatives as a table: cost, numbers, share of SAM's gain."""

from __future__ import annotations

import math
from collections.abc import Sequence

from samovar.report.parts import Cell, Column, Data, Row, Table
from samovar.report.read import RunData, number
from samovar.report.text import clean, count, with_error
from samovar.report.text import number as shown
from samovar.runs.records import Record

NUMBER, COST, SHARE, CLAIM, ANSWER = (
    f"compare/{name}" for name in ("number", "cost", "share", "claim", "answer")
)

BUDGETS: dict[str, tuple[str, str, int]] = {
    "steps": ("the same steps", "circle", 0),
    "time": ("SAM’s processor time", "diamond", 1),
}
"""Title of a table, marker and colour of its points, by budget."""

_COST = (
    "processor time of a training step, a plain one being 1: median of the ratios within repetitions on made images, "
    "with their range; below it the gradients of an image that are counted, and the steps of a run"
)
_SHARE = (
    "mean gain in accuracy over plain as a share of SAM’s, of runs of the same seeds, with its 90 % interval after "
    "Fieller; none where SAM’s own gain may be none"
)


def table(run: RunData, budget: str) -> Table:
    """A row a relative under a budget; the answer is its caption."""
    found = {
        name: {_where(r): r for r in run.records.get(name, []) if r.where.get("budget") == budget}
        for name in (NUMBER, COST, SHARE, CLAIM)
    }
    titles = {
        str(r.where.get("key")): clean(r.where.get("column", "")) for r in found[NUMBER].values()
    }
    rows = [
        Row(clean(name, 40), [_cost(record), *(_number(found[NUMBER].get((name, key))) for key in titles),
                              *_kept(found[SHARE].get((name, "")), found[CLAIM].get((name, "")))],
            detail=clean(record.settings.get("summary", "")))
        for (name, _), record in found[COST].items()
    ]  # fmt: skip
    columns = [
        Column("Cost of a step", _COST),
        *(Column(title, _note(key)) for key, title in titles.items()),
        Column("Share of SAM’s gain", _SHARE),
        Column("Keeps 90 %", _test(list(found[CLAIM].values()))),
    ]
    answers = [clean(r.settings.get("text", ""), 1000) for r in run.records.get(ANSWER, [])
               if r.where.get("budget") == budget]  # fmt: skip
    title = f"{run.label}: {BUDGETS[budget][0]} for all"
    data = _data(list(found[NUMBER].values()))
    return Table(
        f"compare-{run.index}-{budget}",
        title,
        "relative",
        columns,
        rows,
        data,
        caption=" ".join(answers),
    )


def _where(record: Record) -> tuple[str, str]:
    return str(record.where.get("relative", "")), str(record.where.get("key", ""))


def _data(found: Sequence[Record]) -> Data:
    return Data(
        ("relative", "column", "worth", "steps", "value", "low", "high", "seeds", "values"),
        [
            (r.where.get("relative"), r.where.get("column"), number(r.settings.get("worth")), r.settings.get("steps"),
             r.value, *(r.interval or (None, None)), r.n, " ".join(map(str, r.settings.get("values", []))))
            for r in found
        ],
    )  # fmt: skip


def _cost(record: Record) -> Cell:
    low, high, passes, steps = (
        number(record.settings.get(key)) for key in ("lowest", "highest", "passes", "steps")
    )
    details = [] if low is None or high is None else [f"{low:.2f} to {high:.2f}"]
    details += [] if passes is None else [f"{passes:.3g} counted"]
    details += [] if steps is None else [count(int(steps), "step")]
    return Cell(f"{record.value:.2f}", details=details)


def _number(record: Record | None) -> Cell:
    if record is None or not record.n or not math.isfinite(record.value):
        return Cell("–")
    asked = number(record.settings.get("asked")) or record.n
    seeds = count(record.n, "seed") if record.n == asked else f"{record.n} of {asked:.0f} seeds"
    if record.settings.get("geometric"):
        factor = "" if record.stderr is None else f"×/÷ {math.exp(record.stderr):.3g}"
        return Cell(shown(record.value), factor, [seeds])
    return Cell(*with_error(record.value, record.stderr), [seeds])


def _kept(share: Record | None, claim: Record | None) -> list[Cell]:
    if share is None or claim is None:
        return [Cell("–"), Cell("–")]
    ends = [" to ".join(shown(100 * end, 2) for end in share.interval)] if share.interval else []
    kept = Cell(
        f"{shown(100 * share.value, 2)} %" if math.isfinite(share.value) else "–", details=ends
    )
    amount = f"{'+' if claim.value > 0 else ''}{shown(claim.value, 2)} points" if claim.n else ""
    return [kept, Cell(clean(claim.settings.get("verdict", "")), details=[amount])]


def _note(key: str) -> str:
    means = "geometric mean over seeds, with the standard error as a factor"
    return means if key == "lambda_max" else "mean over seeds with its standard error"


def _test(claims: Sequence[Record]) -> str:
    test = clean(claims[0].settings.get("test", "")) if claims else "a test over seeds"
    return (
        f"{test}, that the gain is above nine tenths of SAM’s; below the verdict, by how much it is"
    )
