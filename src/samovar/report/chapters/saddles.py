"""Say beside a negative lambda_max that the weights are no minimum, and the largest eigenvalue."""

from __future__ import annotations

from collections.abc import Iterable

from samovar.report.read import RunData
from samovar.report.text import clean, number
from samovar.runs.records import Record
from samovar.runs.saddle import LARGEST, largest_of, place_of, saddle


def saddle_notes(found: Iterable[tuple[RunData, Record]]) -> list[str]:
    """Return a sentence for each lambda_max that shows that its weights are no minimum.

    Args:
        found: runs with records of any name."""
    said = ((run, record, saddle(record, _ends(run, record))) for run, record in found)
    return [
        f"{run.label}, {clean(place_of(record))}: {text}." for run, record, text in said if text
    ]


def saddle_details(run: RunData, record: Record) -> list[str]:
    """Return the largest eigenvalue beside a lambda_max below 0, for the cell of a table."""
    largest = largest_of(record, _ends(run, record)) if record.value < 0 else None
    if largest is None:
        return []
    return [f"largest {number(largest.value)}" + ("" if largest.converged else ", not converged")]


def _ends(run: RunData, record: Record) -> list[Record]:
    return run.records.get(LARGEST.get(record.name, ""), [])
