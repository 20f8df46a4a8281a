"""A study's tables as Markdown, to be pasted into notes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from samovar.report.text import apart
from samovar.studies.reproduce.claims import Outcome
from samovar.studies.reproduce.columns import COLUMNS
from samovar.studies.reproduce.results import Number, Results
from samovar.studies.reproduce.studies import title_of
from samovar.studies.reproduce.view import seeds_of, star


def markdown(found: Results) -> str:
    """The numbers with the paper's in brackets, then the claims."""
    columns = list(dict.fromkeys(number.column for number in found.numbers))
    rows: dict[str, list[str]] = {}
    for number in found.numbers:
        rows.setdefault(title_of(number.row), []).append(_cell(number))
    lines = _table(
        ["", *(COLUMNS[column].title for column in columns)], [[head, *rows[head]] for head in rows]
    )
    if found.outcomes:
        head = ["claim", "verdict", "here", "90 % interval", "seeds", "paper"]
        lines += ["", *_table(head, [_claim(outcome) for outcome in found.outcomes])]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _cell(number: Number) -> str:
    error = "" if number.stderr is None else f" ± {number.stderr:.2g}"
    ours = f"{number.mean:.4g}{error}" if number.values else "–"
    return ours + (f" [{number.paper:g}{star(number)}]" if math.isfinite(number.paper) else "")


def _claim(outcome: Outcome) -> list[str]:
    unit = f" {outcome.claim.unit}" if outcome.claim.unit else ""
    digits = apart(outcome.low, outcome.high) if outcome.seeds > 1 else 3
    ends = f"{outcome.low:.{digits}g} to {outcome.high:.{digits}g}" if outcome.seeds > 1 else ""
    here = f"{outcome.value:.{digits}g}{unit}" if outcome.seeds else "–"
    paper = f"{outcome.paper:.3g}{unit}{star(outcome)}" if math.isfinite(outcome.paper) else ""
    return [outcome.claim.text, outcome.verdict, here, ends, seeds_of(outcome), paper]
