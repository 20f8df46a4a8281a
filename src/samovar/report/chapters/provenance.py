"""Show where numbers come from: versions, hardware, commands and the state of the source tree."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from samovar.report.chapters.fact_tables import fact_tables
from samovar.report.parts import Chapter
from samovar.report.read import RunData
from samovar.report.text import clean, setting


def provenance(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter."""
    found = [
        {"folder": clean(run.path, 400), "records": str(sum(map(len, run.records.values())))}
        | _facts(run.provenance)
        for run in runs
    ]
    notes = [
        f"{run.label}: provenance.json is missing or damaged; versions and hardware are not known"
        for run in runs
        if not run.provenance and run.trained
    ]
    parts = fact_tables("provenance", "fact", runs, found)
    return Chapter("provenance", "Provenance", "", parts, (), notes)


def _facts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the contents of provenance.json as text: the command as in a shell, the rest flat."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if name == "command" and isinstance(value, list):
            found[name] = clean(shlex.join(map(str, value)), 1000)
        elif isinstance(value, dict):
            found |= {str(key): setting(item) for key, item in value.items()}
        else:
            found[name] = setting(value)
    return found
