"""Show accuracy on corrupted and attacked images, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from samovar.report.chapters.robustness_curves import (
    ECE,
    PGD,
    attack_figure,
    attack_records,
    reliability_figures,
)
from samovar.report.chapters.robustness_heat_maps import MEAN, heat_maps
from samovar.report.chapters.robustness_pictures import galleries
from samovar.report.parts import Chapter, Figure, Missing, Part, lacking, unfolded
from samovar.report.protocol import mismatch
from samovar.report.read import RunData

# Record, title in a warning, what it measures, its name in `samovar measure`.
_MEASURED = (
    (MEAN, "Corruptions", "accuracy under corruptions", "robustness"),
    (PGD, "Attacks", "accuracy under attack", "attack"),
    (ECE, "Calibration", "calibration", "accuracy"),
)

_LEAD = (
    "Accuracy on corrupted and attacked images, and whether the network’s confidence matches its "
    "accuracy."
)


def robustness(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: heat maps, curves of attacks and calibration, and pictures."""
    curves, reliability_notes = _curves(runs)
    pictures, picture_notes = galleries(runs)
    parts: list[Part] = [
        *heat_maps(runs),
        *curves,
        *unfolded("spoilt", "Corrupted and attacked images", pictures),
    ]
    notes = [*reliability_notes, *_mismatches(runs), *picture_notes]
    lead = _LEAD if parts else ""
    return Chapter("robustness", "Robustness", lead, parts, _missing(runs), notes)


def _curves(runs: Sequence[RunData]) -> tuple[list[Figure], list[str]]:
    attacked = [(run, records) for run in runs if (records := attack_records(run))]
    reliability, notes = reliability_figures(runs)
    figures = [*([attack_figure(attacked)] if attacked else []), *reliability]
    # A figure alone would leave half of its row empty.
    return [replace(figure, wide=len(figures) == 1) for figure in figures], notes


def _missing(runs: Sequence[RunData]) -> list[Missing]:
    return [
        note
        for name, _, what, measurement in _MEASURED
        for note in lacking((run for run in runs if name not in run.records), what, measurement)
    ]


def _mismatches(runs: Sequence[RunData]) -> list[str]:
    notes = []
    for name, title, *_ in _MEASURED:
        found = {run.label: (record, run) for run in runs if (record := run.latest(name))}
        notes += mismatch(title, found)
    return notes
