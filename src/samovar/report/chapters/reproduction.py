"""Show our numbers beside those of a table or figure of the paper, and a verdict on each claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from samovar.report.chapters.claims_figure import forests
from samovar.report.chapters.comparison_table import seeds_of
from samovar.report.parts import Cell, Chapter, Column, Data, Part, Row, Table
from samovar.report.read import RunData, number
from samovar.report.text import apart, clean, count, with_error
from samovar.report.text import number as shown
from samovar.runs.records import Record

NUMBER, CLAIM = "reproduce/number", "reproduce/claim"

_ORDER = ("held", "not held", "undecided", "not measured")

_LEAD = (
    "Means over seeds with standard errors; the paper’s numbers stand below ours. The paper trains "
    "far larger networks on ImageNet, so at smaller scales compare signs, orders and ratios, not "
    "values."
)
_VERDICT = (
    "held if the interval lies above the threshold, not held if it lies below, undecided "
    "otherwise, with a single seed, or if a seed lacks one of its numbers"
)


def is_study(run: RunData) -> bool:
    """Return whether `samovar reproduce` wrote a folder."""
    return NUMBER in run.records


def reproduction(studies: Sequence[RunData]) -> Chapter:
    """Build the chapter: numbers, claims and their forest plots for each study."""
    parts: list[Part] = []
    for study in studies:
        name = str(study.records[NUMBER][0].where.get("study", study.label))
        parts.append(numbers(study, name))
        if study.records.get(CLAIM):
            parts.append(claims(study, name))
            id, title = f"forest-{study.index}", f"Claims of {name}"
            parts += forests(study.records[CLAIM], id, title)
    return Chapter("reproduction", "The paper and this reproduction", _LEAD, parts)


def tally(study: RunData) -> str:
    """Count the verdicts, such as `7 claims held, 1 not held, 2 undecided`."""
    verdicts = [str(record.settings.get("verdict")) for record in study.records.get(CLAIM, [])]
    counts = [(verdicts.count(verdict), verdict) for verdict in _ORDER if verdict in verdicts]
    (first, verdict), *rest = counts
    return ", ".join(
        [f"{count(first, 'claim')} {verdict}", *(f"{n} {verdict}" for n, verdict in rest)]
    )


def numbers(study: RunData, name: str) -> Table:
    """Return a table with a row for each training and a column for each number."""
    records = study.records[NUMBER]
    cells = {_place(record): record for record in records}
    networks = {_place(r)[0]: clean(r.settings.get("paper_network", "")) for r in records}
    columns = list(dict.fromkeys(column for _, column in cells))
    rows = [
        Row(
            head,
            [_cell(cells.get((head, column))) for column in columns],
            detail=f"paper: {network}" if network else "",
        )
        for head, network in networks.items()
    ]
    starred = any(r.settings.get("unverified") for r in records)
    return Table(
        f"numbers-{study.index}",
        f"{name} at scale {clean(records[0].settings.get('scale', ''))}",
        "training",
        [Column(column) for column in columns],
        rows,
        Data(
            ("row", "column", "mean", "stderr", "seeds", "paper", "values"),
            [_number_row(record) for record in records],
        ),
        caption="* published only in later versions of the paper, and not checked against them."
        if starred
        else "",
    )


def _place(record: Record) -> tuple[str, str]:
    return clean(record.where.get("row", "")), clean(record.where.get("column", ""))


def _number_row(r: Record) -> Sequence[Any]:
    place = r.where.get("row"), r.where.get("column")
    values = " ".join(map(str, r.settings.get("values", [])))
    return (*place, r.value, r.stderr, r.n, number(r.settings.get("paper")), values)


def _cell(record: Record | None) -> Cell:
    if record is None:
        return Cell("–")
    published = _published(record)
    paper = [] if published is None else [f"paper {published:g}{_star(record)}"]
    if not record.n:
        return Cell("–", details=paper)
    value, error = with_error(record.value, record.stderr)
    return Cell(value, error, [*paper, seeds_of(record)])


def _published(record: Record) -> float | None:
    """Return the number of the paper; None where there is none."""
    published = number(record.settings.get("paper"))
    return published if published is not None and math.isfinite(published) else None


def _star(record: Record) -> str:
    return "*" if record.settings.get("unverified") else ""


def claims(study: RunData, name: str) -> Table:
    """Return a table of every claim with its verdict, and its strength here and in the paper."""
    records = study.records[CLAIM]
    test = clean(records[0].settings.get("test", "the test that the record names"))
    columns = [
        Column("Verdict", f"{test}: {_VERDICT}"),
        Column("Here", "mean over seeds; for a ratio, the geometric mean"),
        Column("90 % interval", "of that mean, from the same test"),
        Column(
            "All at once",
            "the verdict after Holm’s correction: with a probability of 95 % no verdict in this "
            "column is false. Below it, the smallest effect that these seeds would see in four "
            "of five cases, and how many seeds would decide what is undecided",
        ),
        Column("Paper", "the same difference or ratio of the published numbers"),
    ]
    return Table(
        f"claims-{study.index}",
        f"Claims of {name}",
        "claim",
        columns,
        [Row(clean(r.where.get("claim", "")), _verdict(r), detail=_bound(r)) for r in records],
        Data(
            ("claim", "verdict", "value", "low", "high", "seeds", "paper"),
            [_claim_row(record) for record in records],
        ),
        caption=f"{tally(study)}.",
    )


def _claim_row(r: Record) -> Sequence[Any]:
    claim, verdict = r.where.get("claim"), r.settings.get("verdict")
    ends = r.interval or (None, None)
    return claim, verdict, r.value, *ends, r.n, number(r.settings.get("paper"))


def _verdict(record: Record) -> list[Cell]:
    settings = record.settings
    unit, published = settings.get("unit", ""), _published(record)
    # An interval such as 1.016 to 1.018 needs more digits than its mean.
    digits = apart(*record.interval) if record.interval else 3
    ends = " to ".join(_amount(end, settings, digits) for end in record.interval or ())
    here = _amount(record.value, settings, digits) if record.n else "–"
    paper = "–" if published is None else _amount(published, settings) + _star(record)
    return [
        Cell(clean(settings.get("verdict", "")), details=[seeds_of(record)]),
        Cell(here, details=[clean(unit)] if unit != "x" else []),
        Cell(ends or "–"),
        _at_once(record),
        Cell(paper),
    ]


def _at_once(record: Record) -> Cell:
    """Return the verdict among all claims of the table, and the power behind it."""
    settings = record.settings
    if "holm" not in settings:
        return Cell("–")
    smallest = number(settings.get("smallest_effect"))
    details = []
    if smallest is not None and math.isfinite(smallest):
        details.append(f"sees {_amount(smallest, settings).lstrip('+')}")
    if settings.get("verdict") == "undecided" and (record.n or 0) > 1:
        needed = number(settings.get("seeds_needed"))
        details.append(f"{needed:g} seeds decide" if needed else "over 1,000 seeds decide")
    return Cell(clean(settings["holm"]), details=details)


def _amount(value: float, settings: dict[str, Any], digits: int = 3) -> str:
    """Format a ratio, or a difference with its sign."""
    if settings.get("ratio"):
        return f"{shown(value, digits)} ×"
    return ("+" if value > 0 else "") + shown(value, digits)


def _bound(record: Record) -> str:
    """Return the threshold of a claim if the paper does not state it."""
    if record.settings.get("ours"):
        return f"threshold {record.settings.get('threshold')}, chosen here"
    return ""
