"""A comparison as records, from which the report is made. Nothing in this file needs torch."""

from __future__ import annotations

import math
from typing import Any

from samovar.recipes.relatives import relative
from samovar.runs.records import Record
from samovar.studies.claims import TEST, Outcome
from samovar.studies.columns import COLUMNS
from samovar.studies.compare.request import CompareRequest
from samovar.studies.compare.results import (
    CHEAP,
    KEPT,
    CompareNumber,
    CompareResults,
    GainShare,
    Standing,
)


def records_of(found: CompareResults, request: CompareRequest) -> list[Record]:
    """Return the numbers, shares and verdicts under one budget, and the answer."""
    where = {"budget": found.budget}
    # SAM takes the steps of the recipe under every budget
    sam_steps = next(each.steps for each in found.standings if each.relative == "sam")
    held = [s for s in found.standings if s.share and s.share.outcome.verdict == "held"]
    answer = {"text": found.answer, "kept": KEPT, "cheap": CHEAP}
    return [
        *(
            record
            for standing in found.standings
            for record in _standing(standing, where, request, standing.worth(sam_steps))
        ),
        _claim("compare/gain", found.gain, where),
        Record("compare/answer", float(len(held)), where=where, settings=answer),
    ]


def _standing(
    standing: Standing, where: dict[str, Any], request: CompareRequest, worth: float
) -> list[Record]:
    where = {"relative": standing.relative} | where
    facts: dict[str, Any] = {
        "recipe": request.recipe,
        "steps": standing.steps,
        "worth": worth,
        "summary": " + ".join(each.summary for each in relative(standing.relative)),
    }
    cost = standing.cost
    timed = {
        "passes": cost.passes,
        "lowest": cost.low,
        "highest": cost.high,
        "seconds": cost.seconds,
    }
    return [
        Record("compare/cost", cost.ratio, where=where, settings=facts | timed),
        *(
            _number(number, column, where, facts | {"asked": request.seeds})
            for column, number in standing.numbers.items()
        ),
        *(_share(standing.share, where) if standing.share else []),
        *(_share(standing.own_share, where, "own_") if standing.own_share else []),
    ]


def _number(
    number: CompareNumber, column: str, where: dict[str, Any], facts: dict[str, Any]
) -> Record:
    own = {
        "values": list(number.values),
        "geometric": column == "lambda_max",
        "interval": "a standard error",
    }
    return Record(
        "compare/number",
        number.mean,
        stderr=number.error,
        n=len(number.values),
        where=where | {"column": COLUMNS[column].title, "key": column},
        settings=facts | own,
        interval=None if number.error is None else (number.low, number.high),
    )


def _share(share: GainShare, where: dict[str, Any], of: str = "") -> list[Record]:
    ends = (share.low, share.high)
    record = Record(
        f"compare/{of}share",
        share.value,
        n=share.outcome.seeds,
        where=where,
        settings={"interval": "90 %"},
        interval=ends if all(map(math.isfinite, ends)) else None,
    )
    return [record, _claim(f"compare/{of}claim", share.outcome, where)]


def _claim(name: str, outcome: Outcome, where: dict[str, Any]) -> Record:
    return Record(
        name,
        outcome.value,
        n=outcome.seeds,
        where=where,
        settings={
            "claim": outcome.claim.text,
            "verdict": outcome.verdict,
            "test": TEST,
            "unit": outcome.claim.unit,
            "interval": "90 %",
            "asked": outcome.asked,
        },
        interval=None if outcome.seeds < 2 else (outcome.low, outcome.high),
    )
