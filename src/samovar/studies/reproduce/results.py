"""What the runs of a study say: numbers beside the paper's, claims with their verdicts, as records
of a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from samovar.recipes import paper_numbers
from samovar.runs.records import Record
from samovar.studies.reproduce.claims import TEST, Cell, Outcome, decide
from samovar.studies.reproduce.columns import COLUMNS
from samovar.studies.reproduce.plan import Asked, Task, claims_of, rows_of
from samovar.studies.reproduce.rows import Row
from samovar.studies.reproduce.runs import records_of as own_records
from samovar.studies.reproduce.scales import SCALES, Scale
from samovar.studies.reproduce.studies import STUDIES, title_of
from samovar.studies.tune.search import stderr


@dataclass(frozen=True)
class Number:
    """A cell of a study's table."""

    row: Row
    column: str
    values: tuple[float, ...]
    """Of each seed; those that are not there left out."""
    paper: float
    """NaN where the paper has none."""
    unverified: bool
    """Whether that is only in later versions of the paper."""
    asked: int
    """Seeds that were asked for."""

    @property
    def mean(self) -> float:
        """Over seeds; NaN without any."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean; None of one seed."""
        return stderr(self.values)


@dataclass(frozen=True)
class Results:
    """A study's numbers and verdicts."""

    name: str
    numbers: tuple[Number, ...]
    outcomes: tuple[Outcome, ...]


def results(name: str, asked: Asked, tasks: Sequence[Task]) -> Results:
    """Look a study's numbers up in the records of its runs."""
    scale = SCALES[asked.scale]
    rows, columns = rows_of(name, asked), STUDIES[name].columns(scale)
    seeds = [
        _values(rows, columns, [task for task in tasks if task.seed == seed])
        for seed in range(asked.seeds)
    ]
    paper = {
        (row.key, column): paper_number(name, row, column, scale)
        for row in rows
        for column in columns
    }
    unverified = {
        (row.key, column)
        for row in rows
        for column in columns
        if is_unverified(name, row, column, scale)
    }
    numbers = tuple(
        Number(row, column, tuple(v for seed in seeds if math.isfinite(v := seed.get((row.key, column), math.nan))),
               paper[row.key, column], (row.key, column) in unverified, asked.seeds)
        for row in rows
        for column in columns
    )  # fmt: skip
    return Results(
        name,
        numbers,
        tuple(decide(claim, seeds, paper, unverified) for claim in claims_of(name, asked)),
    )


def _values(
    rows: Sequence[Row], columns: Sequence[str], tasks: Sequence[Task]
) -> dict[Cell, float]:
    """The numbers of one seed."""
    found: dict[Cell, float] = {}
    by_row = {task.row: task for task in tasks}
    for row in rows:
        records = own_records(by_row[row]) if row in by_row else []
        found |= {(row.key, column): COLUMNS[column].value(records) for column in columns}
    return found


# --- the paper's
# -----------------------------------------------------------------------------------------------------


def paper_number(name: str, row: Row, column: str, scale: Scale) -> float:
    """The paper's number in a cell; NaN where it has none."""
    model = _stands_for(row, scale)
    return float(
        _TABLES[name](row, model, f"{model}-sam" if row.sam else model).get(column, math.nan)
    )


def _stands_for(row: Row, scale: Scale) -> str:
    """The paper's network beside which a row stands."""
    if row.model:
        return row.model if row.model in paper_numbers.TABLE_2 else ""
    return scale.stands_for[row.family]


def _later(key: str) -> dict[str, float]:
    """What only later versions have; see `published.UNVERIFIED`."""
    return dict(paper_numbers.UNVERIFIED.get(key, {}))


def _reported(model: str, sam: bool) -> dict[str, float]:
    return _pairs(paper_numbers.TABLE_2, paper_numbers.BENCHMARKS, model, sam)


def _pairs(
    table: Mapping[str, Sequence[tuple[float, float]]], names: Sequence[str], model: str, sam: bool
) -> dict[str, float]:
    pairs = zip(names, table.get(model, ()), strict=False)
    return {name: paper_numbers.plain_and_sam(pair)[sam] for name, pair in pairs}


def _share(row: Row) -> str:
    return next((word for word in row.words if word in paper_numbers.TABLE_4), "all")


def _variant(row: Row, model: str) -> str:
    return "-".join(
        [model, *(["aug"] if "aug" in row.words else []), *(["sam"] if row.sam else [])]
    )


def _transferred(source: str, key: str) -> dict[str, float]:
    numbers = dict(
        zip(paper_numbers.TABLE_6_MODELS, paper_numbers.TABLE_6.get(source, ()), strict=False)
    )
    return {"top1": numbers.get(key, math.nan)}


def _active(key: str) -> dict[str, float]:
    shares = paper_numbers.FIGURE_2.get(key, ())
    return {f"active{k}": shares[k - 1] for k in (1, 6, 12) if len(shares) >= k}


def _swept(row: Row, model: str) -> dict[str, float]:
    rho = round(_PAPER_RHO[model] * row.rho_factor, 4) if row.sam else 0.0
    return (
        {"top1": paper_numbers.TABLE_10[model].get(rho, math.nan)}
        if model in paper_numbers.TABLE_10
        else {}
    )


_PAPER_RHO = {"vit-b16": 0.2, "mixer-b16": 0.6}

_TABLES: dict[str, Callable[[Row, str, str], Mapping[str, float]]] = {
    "table1": lambda row, model, key: (
        _later(key) | (paper_numbers.TABLE_1.get(key) or _reported(model, row.sam))
    ),
    "table2": lambda row, model, key: _reported(model, row.sam),
    "table3": lambda row, model, key: dict(
        zip(paper_numbers.PARTS, paper_numbers.TABLE_3.get(key, ()), strict=False)
    ),
    "table4": lambda row, model, key: {
        "top1": paper_numbers.TABLE_4.get(_share(row), {}).get(_variant(row, model), math.nan)
    },
    "table5": lambda row, model, key: _pairs(
        paper_numbers.TABLE_5, paper_numbers.ADVERSARIAL_BENCHMARKS, model, row.sam
    ),
    "table6": lambda row, model, key: _transferred(row.transfer, key),
    "figure1": lambda row, model, key: _reported(model, row.sam),
    "figure2": lambda row, model, key: _reported(model, row.sam) | _active(key),
    "figure3": lambda row, model, key: _reported(model, row.sam),
    "rho": lambda row, model, key: _swept(row, model),
    "contrastive": lambda row, model, key: {"top1": paper_numbers.CONTRASTIVE[model][row.sam]},
    "sgd": lambda row, model, key: {} if row.words else _reported(model, row.sam),
}
"""The numbers of a row by column, of the network it stands beside, by its name without and with
`-sam`."""


# --- records
# ---------------------------------------------------------------------------------------------------------


def is_unverified(name: str, row: Row, column: str, scale: Scale) -> bool:
    """Whether the paper's number in a cell is only in later versions."""
    model = _stands_for(row, scale)
    key = f"{model}-sam" if row.sam else model
    checked = paper_numbers.TABLE_1.get(key) or _reported(model, row.sam)
    return name == "table1" and column in _later(key) and column not in checked


def records_of(found: Results, asked: Asked) -> list[Record]:
    """The numbers and verdicts as records."""
    scale = SCALES[asked.scale]
    records = [
        Record(
            "reproduce/number", number.mean, stderr=number.stderr, n=len(number.values),
            where={"study": found.name, "row": title_of(number.row), "column": COLUMNS[number.column].title},
            settings={
                "scale": asked.scale, "paper": number.paper, "values": list(number.values),
                "paper_network": _stands_for(number.row, scale), "unverified": number.unverified, "asked": number.asked,
            },
        )
        for number in found.numbers
    ]  # fmt: skip
    for outcome in found.outcomes:
        claim = outcome.claim
        settings = {
            "scale": asked.scale, "verdict": outcome.verdict, "paper": outcome.paper, "test": TEST,
            "threshold": claim.above, "ratio": claim.ratio, "unit": claim.unit, "ours": claim.ours,
            "asked": asked.seeds, "interval": "90 %", "unverified": outcome.unverified,
        }  # fmt: skip
        interval = None if outcome.seeds < 2 else (outcome.low, outcome.high)
        where = {"study": found.name, "claim": claim.text}
        records.append(
            Record(
                "reproduce/claim",
                outcome.value,
                n=outcome.seeds,
                where=where,
                settings=settings,
                interval=interval,
            )
        )
    return records
