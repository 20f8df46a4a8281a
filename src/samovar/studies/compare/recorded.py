"""A comparison as records, from which the report is made. Nothing in this file needs torch."""

from __future__ import annotations

import math
from typing import Any

from samovar.recipes.relatives import relative
from samovar.runs.records import Record
from samovar.studies.compare.plan import Asked
from samovar.studies.compare.results import CHEAP, KEPT, Results, Standing
from samovar.studies.reproduce.claims import TEST, Outcome
from samovar.studies.reproduce.columns import COLUMNS


def records_of(found: Results, asked: Asked) -> list[Record]:
    """The numbers, shares and verdicts under one budget, and the answer."""
    records = [
        record for standing in found.standings for record in _standing(standing, found, asked)
    ]
    gain = _claim("compare/gain", found.gain, {"budget": found.budget})
    said = {"text": found.answer, "kept": KEPT, "cheap": CHEAP}
    kept = [s for s in found.standings if s.share and s.share.outcome.verdict == "held"]
    answer = Record(
        "compare/answer", float(len(kept)), where={"budget": found.budget}, settings=said
    )
    return [*records, gain, answer]


def _standing(standing: Standing, found: Results, asked: Asked) -> list[Record]:
    where = {"relative": standing.relative, "budget": found.budget}
    cost = standing.cost
    worth = standing.worth(next(s.steps for s in found.standings if s.relative == "sam"))
    facts: dict[str, Any] = {
        "recipe": asked.recipe, "steps": standing.steps, "worth": worth,
        "summary": " + ".join(each.summary for each in relative(standing.relative)),
    }  # fmt: skip
    timed = {
        "passes": cost.passes,
        "lowest": cost.low,
        "highest": cost.high,
        "seconds": cost.seconds,
    }
    records = [Record("compare/cost", cost.ratio, where=where, settings=facts | timed)]
    for column, number in standing.numbers.items():
        settings = facts | {
            "values": list(number.values), "asked": asked.seeds, "geometric": column == "lambda_max",
            "interval": "a standard error",
        }  # fmt: skip
        records.append(
            Record(
                "compare/number", number.mean, stderr=number.error, n=len(number.values),
                where=where | {"column": COLUMNS[column].title, "key": column}, settings=settings,
                interval=(number.low, number.high) if number.error is not None else None,
            )
        )  # fmt: skip
    if standing.share:
        claim = _claim("compare/claim", standing.share.outcome, where)
        ends = (standing.share.low, standing.share.high)
        share = Record(
            "compare/share", standing.share.value, n=standing.share.outcome.seeds, where=where,
            settings={"interval": "90 %"}, interval=ends if all(map(math.isfinite, ends)) else None,
        )  # fmt: skip
        records += [share, claim]
    return records


def _claim(name: str, outcome: Outcome, where: dict[str, Any]) -> Record:
    claim = outcome.claim
    settings = {
        "claim": claim.text,
        "verdict": outcome.verdict,
        "test": TEST,
        "unit": claim.unit,
        "interval": "90 %",
    }
    interval = None if outcome.seeds < 2 else (outcome.low, outcome.high)
    return Record(
        name, outcome.value, n=outcome.seeds, where=where, settings=settings | {"asked": outcome.asked},
        interval=interval,
    )  # fmt: skip
