"""A table or figure of the paper: our numbers beside the published ones, and what became of each
claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from samovar.report.parts import Cell, Column, Data, Part, Row, Section, Table
from samovar.report.read import RunData, number
from samovar.report.text import apart, clean, count, with_error
from samovar.report.text import number as shown
from samovar.runs.records import Record

NUMBER, CLAIM = "reproduce/number", "reproduce/claim"

_ORDER = ("held", "not held", "undecided", "not measured")


def is_study(run: RunData) -> bool:
    """Whether a folder is of `samovar reproduce`."""
    return NUMBER in run.records


def reproduction(studies: Sequence[RunData]) -> Section:
    """A table of numbers and one of claims for each study."""
    parts: list[Part] = []
    for study in studies:
        name = str(study.records[NUMBER][0].where.get("study", study.label))
        parts.append(numbers(study, name))
        if study.records.get(CLAIM):
            parts.append(claims(study, name))
    lead = (
        "Means over seeds with their standard errors; the paper's numbers stand below ours. Theirs are of ImageNet and "
        "far larger networks, so at smaller scales signs, orders and ratios compare, and values do not."
    )
    return Section("reproduction", "The paper and this reproduction", lead, parts)


def tally(study: RunData) -> str:
    """`7 claims held, 1 not held, 2 undecided`."""
    verdicts = [str(record.settings.get("verdict")) for record in study.records.get(CLAIM, [])]
    counts = [(verdicts.count(verdict), verdict) for verdict in _ORDER if verdict in verdicts]
    (first, verdict), *rest = counts
    return ", ".join(
        [f"{count(first, 'claim')} {verdict}", *(f"{n} {verdict}" for n, verdict in rest)]
    )


# --- numbers
# ---------------------------------------------------------------------------------------------------------


def numbers(study: RunData, name: str) -> Table:
    """A row a training, a column a number."""
    records = study.records[NUMBER]
    heads = list(dict.fromkeys(clean(record.where.get("row", "")) for record in records))
    columns = list(dict.fromkeys(clean(record.where.get("column", "")) for record in records))
    cells = {(clean(r.where.get("row", "")), clean(r.where.get("column", ""))): r for r in records}
    networks = {
        clean(r.where.get("row", "")): clean(r.settings.get("paper_network", "")) for r in records
    }
    rows = [
        Row(head, [_cell(cells.get((head, column))) for column in columns],
            detail=f"beside {networks[head]}" if networks[head] else "")
        for head in heads
    ]  # fmt: skip
    scale = clean(records[0].settings.get("scale", ""))
    data = Data(
        ("row", "column", "mean", "stderr", "seeds", "paper", "values"),
        [
            (r.where.get("row"), r.where.get("column"), r.value, r.stderr, r.n, number(r.settings.get("paper")),
             " ".join(map(str, r.settings.get("values", []))))
            for r in records
        ],
    )  # fmt: skip
    title = f"{name} at scale {scale}"
    said = (
        "* only in later versions of the paper and not checked against them."
        if _later(records)
        else ""
    )
    return Table(
        f"numbers-{study.index}",
        title,
        "training",
        [Column(c) for c in columns],
        rows,
        data,
        caption=said,
    )


def _later(records: Sequence[Record]) -> bool:
    return any(r.settings.get("unverified") for r in records)


def _cell(record: Record | None) -> Cell:
    if record is None or not record.n:
        return Cell("–", details=_paper(record))
    value, error = with_error(record.value, record.stderr)
    return Cell(value, error, [*_paper(record), _seeds(record)])


def _seeds(record: Record) -> str:
    """`3 seeds`, or `2 of 3 seeds` where one has no number."""
    asked = number(record.settings.get("asked")) or record.n or 0
    return count(record.n or 0, "seed") if record.n == asked else f"{record.n} of {asked:.0f} seeds"


def _paper(record: Record | None) -> list[str]:
    published = number(record.settings.get("paper")) if record else None
    if record is None or published is None or not math.isfinite(published):
        return []
    return [f"paper {published:g}{_star(record)}"]


def _star(record: Record) -> str:
    return "*" if record.settings.get("unverified") else ""


# --- claims
# ----------------------------------------------------------------------------------------------------------


def claims(study: RunData, name: str) -> Table:
    """Every claim with its verdict, its strength here and in the paper."""
    records = study.records[CLAIM]
    test = clean(records[0].settings.get("test", "the test that the record names"))
    columns = [
        Column("Verdict", f"{test}: held where the interval lies above the threshold, not held where it lies below, "
                          "undecided otherwise, of one seed, and where a seed has not all of its numbers"),
        Column("Here", "mean over seeds; of a ratio the geometric mean"),
        Column("90 % interval", "of that mean, from the same test"),
        Column("Paper", "the same contrast of the published numbers"),
    ]  # fmt: skip
    rows = [Row(clean(r.where.get("claim", "")), _verdict(r), detail=_bound(r)) for r in records]
    data = Data(
        ("claim", "verdict", "value", "low", "high", "seeds", "paper"),
        [
            (r.where.get("claim"), r.settings.get("verdict"), r.value, *(r.interval or (None, None)), r.n,
             number(r.settings.get("paper")))
            for r in records
        ],
    )  # fmt: skip
    return Table(
        f"claims-{study.index}",
        f"Claims of {name}",
        "claim",
        columns,
        rows,
        data,
        caption=f"{tally(study)}.",
    )


def _verdict(record: Record) -> list[Cell]:
    settings = record.settings
    verdict, unit = clean(settings.get("verdict", "")), settings.get("unit", "")
    published = number(settings.get("paper"))
    known = published is not None and math.isfinite(published)
    digits = apart(*record.interval) if record.interval else 3
    ends = " to ".join(_amount(end, settings, digits) for end in record.interval or ())
    here = _amount(record.value, settings, digits) if record.n else "–"
    return [
        Cell(verdict, details=[_seeds(record)]),
        Cell(here, details=[clean(unit)] if unit != "x" else []),
        Cell(ends or "–"),
        Cell(_amount(published or 0.0, settings) + _star(record) if known else "–"),
    ]


def _amount(value: float, settings: dict[str, Any], digits: int = 3) -> str:
    if settings.get("ratio"):
        return f"{shown(value, digits)} ×"
    return ("+" if value > 0 else "") + shown(value, digits)


def _bound(record: Record) -> str:
    if record.settings.get("ours"):
        return f"threshold {record.settings.get('threshold')} is ours"
    return ""
