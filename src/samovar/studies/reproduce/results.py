"""Results of a study: numbers beside the paper's, tested claims, and both as records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from samovar.runs.records import Record
from samovar.studies.claims import TEST, Cell, Outcome, corrected, decide
from samovar.studies.columns import COLUMNS
from samovar.studies.intervals import stderr
from samovar.studies.reproduce.paper import is_unverified, paper_number, stands_for
from samovar.studies.reproduce.plan import ReproduceJob, ReproduceRequest, claims_of, rows_of
from samovar.studies.reproduce.rows import Row
from samovar.studies.reproduce.scales import SCALES
from samovar.studies.reproduce.studies import STUDIES
from samovar.studies.reproduce.study import title_of
from samovar.studies.running import records_of as own_records


@dataclass(frozen=True)
class ReproduceNumber:
    """A cell of a study's table."""

    row: Row
    column: str
    values: tuple[float, ...]
    """One number a seed; seeds without one are left out."""
    paper: float
    """Number of the paper; NaN where it has none."""
    unverified: bool
    """True if the paper's number is only in later versions of it."""
    asked: int
    """Seeds that were asked for."""

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without any."""
        return fmean(self.values) if self.values else math.nan

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean; None for one seed."""
        return stderr(self.values)


@dataclass(frozen=True)
class ReproduceResults:
    """A study's numbers and tested claims."""

    name: str
    numbers: tuple[ReproduceNumber, ...]
    outcomes: tuple[Outcome, ...]


def results(name: str, request: ReproduceRequest, jobs: Sequence[ReproduceJob]) -> ReproduceResults:
    """Look a study's numbers up in the records of its runs, and test its claims on them."""
    scale = SCALES[request.scale]
    rows, columns = rows_of(name, request), STUDIES[name].columns(scale)
    seeds = [
        _values(rows, columns, [job for job in jobs if job.seed == seed])
        for seed in range(request.seeds)
    ]
    paper: dict[Cell, float] = {}
    unverified: set[Cell] = set()
    numbers: list[ReproduceNumber] = []
    for row in rows:
        for column in columns:
            cell = row.key, column
            paper[cell] = paper_number(name, row, column, scale)
            if later := is_unverified(name, row, column, scale):
                unverified.add(cell)
            values = tuple(seed[cell] for seed in seeds if math.isfinite(seed[cell]))
            numbers.append(ReproduceNumber(row, column, values, paper[cell], later, request.seeds))
    outcomes = (decide(claim, seeds, paper, unverified) for claim in claims_of(name, request))
    return ReproduceResults(name, tuple(numbers), corrected(tuple(outcomes)))


def _values(
    rows: Sequence[Row], columns: Sequence[str], jobs: Sequence[ReproduceJob]
) -> dict[Cell, float]:
    """Return the numbers of one seed by cell; NaN where a run has none."""
    found: dict[Cell, float] = {}
    by_row = {job.row: job for job in jobs}
    for row in rows:
        records = own_records(by_row[row]) if row in by_row else []
        found |= {(row.key, column): COLUMNS[column].value(records) for column in columns}
    return found


# --- records


def records_of(found: ReproduceResults, request: ReproduceRequest) -> list[Record]:
    """Return the numbers and tested claims as records, which the report reads."""
    return [
        *(_number_record(number, found.name, request) for number in found.numbers),
        *(_claim_record(outcome, found.name, request) for outcome in found.outcomes),
    ]


def _number_record(number: ReproduceNumber, study: str, request: ReproduceRequest) -> Record:
    return Record(
        "reproduce/number",
        number.mean,
        stderr=number.stderr,
        n=len(number.values),
        where={
            "study": study,
            "row": title_of(number.row),
            "column": COLUMNS[number.column].title,
        },
        settings={
            "scale": request.scale,
            "paper": number.paper,
            "values": list(number.values),
            "paper_network": stands_for(number.row, SCALES[request.scale]),
            "unverified": number.unverified,
            "asked": number.asked,
        },
    )


def _claim_record(outcome: Outcome, study: str, request: ReproduceRequest) -> Record:
    claim = outcome.claim
    return Record(
        "reproduce/claim",
        outcome.value,
        n=outcome.seeds,
        where={"study": study, "claim": claim.text},
        settings={
            "scale": request.scale,
            "verdict": outcome.verdict,
            "paper": outcome.paper,
            "test": TEST,
            "threshold": claim.above,
            "ratio": claim.ratio,
            "unit": claim.unit,
            "ours": claim.ours,
            "asked": request.seeds,
            "interval": "90 %",
            "interval_95": list(outcome.wide),
            "p": outcome.p,
            "holm": outcome.holm,
            "smallest_effect": outcome.smallest,
            "seeds_needed": outcome.needed,
            "unverified": outcome.unverified,
        },
        interval=None if outcome.seeds < 2 else (outcome.low, outcome.high),
    )
