"""Show the settings that differ between runs, and those they share."""

from __future__ import annotations

from collections.abc import Sequence

from samovar.report.chapters.fact_tables import fact_tables
from samovar.report.parts import Chapter
from samovar.report.read import RunData
from samovar.report.text import setting


def settings(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter."""
    found = [{name: setting(value) for name, value in run.config.items()} for run in runs]
    alike = len(runs) > 1 and all(facts == found[0] for facts in found)
    lead = "No setting differs between these runs." if alike else ""
    return Chapter("settings", "Settings", lead, fact_tables("settings", "setting", runs, found))
