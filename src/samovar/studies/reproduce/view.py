"""Tables of a study for the terminal and for notes, from the same cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from samovar.report.text import apart
from samovar.studies.claims import Outcome
from samovar.studies.columns import COLUMNS
from samovar.studies.reproduce.plan import ReproduceRequest
from samovar.studies.reproduce.results import ReproduceNumber, ReproduceResults
from samovar.studies.reproduce.scales import SCALES
from samovar.studies.reproduce.studies import STUDIES
from samovar.studies.reproduce.study import title_of
from samovar.studies.terminal import markdown_table

_CLAIM_HEAD = (
    "claim", "verdict", "all at once", "here", "90 % interval", "seeds", "sees", "paper"
)  # fmt: skip
"""`all at once`: after Holm's correction over the table. `sees`: the smallest effect that these
seeds would see."""


def plan_head(request: ReproduceRequest) -> str:
    """Return the first line of a plan: the studies and the scale."""
    names = ", ".join(f"{name} ({STUDIES[name].where})" for name in request.names)
    return f"{names} at scale {request.scale}: {SCALES[request.scale].summary}"


# --- for the terminal


def numbers_table(found: ReproduceResults, seeds: int) -> Table:
    """Return a table of means with standard errors, the paper's numbers in brackets below."""
    study = STUDIES[found.name]
    title = f"{study.where}: {study.title}; mean of {seeds} seeds ± standard error [paper]"
    table = Table("", *_titles(found), title=title)
    for head, numbers in _rows(found).items():
        cells = [_mean(n) + _few(n) + _paper(n, before="\n") for n in numbers]
        table.add_row(head, *cells)
    return table


def claims_table(outcomes: Sequence[Outcome]) -> Table:
    """Return a table of every claim with its verdict, contrast and interval."""
    table = Table(*_CLAIM_HEAD, title="Claims")
    for outcome in outcomes:
        table.add_row(*_claim(outcome, 4, 4))
    return table


# --- for notes


def markdown(found: ReproduceResults) -> str:
    """Return the verdicts in short, then numbers and claims in full, as Markdown.

    Numbers of the paper stand in brackets."""
    verdicts = [*_in_short(found.outcomes), ""] if found.outcomes else []
    rows = [
        [head, *(_mean(number) + _paper(number, before=" ") for number in numbers)]
        for head, numbers in _rows(found).items()
    ]
    lines = [*verdicts, *markdown_table(["", *_titles(found)], rows)]
    if found.outcomes:
        claims = [_claim(o, apart(o.low, o.high) if o.seeds > 1 else 3, 3) for o in found.outcomes]
        lines += ["", *markdown_table(_CLAIM_HEAD, claims)]
    return "\n".join(lines) + "\n"


def _in_short(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a sentence that counts the verdicts, and a table of claim, verdict and seeds."""
    verdicts = [outcome.verdict for outcome in outcomes]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
    rows = [[o.claim.text, f"**{o.verdict}**", str(o.seeds)] for o in outcomes]
    return [
        f"{len(outcomes)} claims: {', '.join(counts)}.",
        "",
        *markdown_table(("claim", "verdict", "seeds"), rows),
    ]


# --- cells


def _titles(found: ReproduceResults) -> list[str]:
    names = dict.fromkeys(number.column for number in found.numbers)
    return [COLUMNS[name].title for name in names]


def _rows(found: ReproduceResults) -> dict[str, list[ReproduceNumber]]:
    rows: dict[str, list[ReproduceNumber]] = {}
    for number in found.numbers:
        rows.setdefault(title_of(number.row), []).append(number)
    return rows


def _mean(number: ReproduceNumber) -> str:
    error = "" if number.stderr is None else f" ± {number.stderr:.2g}"
    return f"{number.mean:.4g}{error}" if number.values else "–"


def _few(number: ReproduceNumber) -> str:
    """Return a note where some seeds have no number, as ` (2 of 3 seeds)`."""
    n = len(number.values)
    return f" ({n} of {number.asked} seeds)" if 0 < n < number.asked else ""


def _paper(number: ReproduceNumber, before: str) -> str:
    if not math.isfinite(number.paper):
        return ""
    return f"{before}[{number.paper:g}{_star(number)}]"


def _star(found: ReproduceNumber | Outcome) -> str:
    """Return the mark of a number that only later versions of the paper have."""
    return "*" if found.unverified else ""


def _claim(outcome: Outcome, digits: int, paper_digits: int) -> list[str]:
    """Return the cells of a claim; its numbers have `digits`, the paper's `paper_digits`."""
    unit = f" {outcome.claim.unit}" if outcome.claim.unit else ""
    here = f"{outcome.value:.{digits}g}{unit}" if outcome.seeds else "–"
    ends = ""
    if outcome.seeds > 1:
        ends = f"{outcome.low:.{digits}g} to {outcome.high:.{digits}g}"
    few = "" if outcome.seeds == outcome.asked else f" of {outcome.asked}"
    if outcome.verdict == "undecided" and outcome.seeds > 1 and not few:
        few = f" ({outcome.needed or 'over 1,000'} would decide)"
    sees = f"{outcome.smallest:.2g}{unit}" if math.isfinite(outcome.smallest) else ""
    paper = ""
    if math.isfinite(outcome.paper):
        paper = f"{outcome.paper:.{paper_digits}g}{unit}{_star(outcome)}"
    seeds = f"{outcome.seeds}{few}"
    return [outcome.claim.text, outcome.verdict, outcome.holm, here, ends, seeds, sees, paper]
