"""Draw accuracy by the radius of an attack, and accuracy by confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samovar.report.drawing.plots import finite, layout, legend, record_trace, style
from samovar.report.parts import Data, Figure
from samovar.report.read import Array, RunData, place
from samovar.report.run_names import MANY
from samovar.report.text import plain
from samovar.runs.records import Record

PGD = "robustness/pgd_accuracy"
ECE = "accuracy/ece"

_CURVE = "robustness/pgd_curve"
_NORMS = {"inf": "largest change of a pixel", "2": "Euclidean length"}


def attack_records(run: RunData) -> list[Record]:
    """Return the accuracy at each radius, in the order of the radii."""
    main = run.batch(PGD)
    return sorted([*run.batch(_CURVE), *main], key=lambda r: place(r, "eps")) if main else []


def attack_figure(found: Sequence[tuple[RunData, Sequence[Record]]]) -> Figure:
    """Draw accuracy by the radius of the attack, a line for each run."""
    traces, rows = [], []
    for run, records in found:
        traces.append(record_trace(run, [(255 * place(r, "eps"), r) for r in records]))
        rows += [(run.label, place(r, "eps"), r.value, r.stderr, r.n) for r in records]
    # The axis names the norm only if all runs were attacked in the same one.
    norms = {str(records[0].settings.get("norm", "")) for _, records in found}
    norm = _NORMS.get(norms.pop(), "") if len(norms) == 1 else ""
    axes = layout(
        f"radius in 1/255, {norm}" if norm else "radius in 1/255",
        yaxis={"range": [0, 1.02], "tickformat": ".0%"},
    )
    return Figure(
        "attack-curve",
        "Accuracy under PGD",
        {"data": traces, "layout": axes},
        Data(("run", "eps", "accuracy", "stderr", "n"), rows),
        keys=legend(run for run, _ in found),
        sense="higher is better",
    )


@dataclass(frozen=True)
class ConfidenceBin:
    """Images whose predictions have about the same confidence."""

    confidence: float | None
    accuracy: float | None
    images: float | None


@dataclass(frozen=True)
class Reliability:
    """The calibration of a run."""

    run: RunData
    record: Record
    """Expected calibration error."""
    bins: list[ConfidenceBin]
    """Bins that have images, by confidence."""
    images: float
    """Number of images in all bins."""


def reliability_figures(runs: Sequence[RunData]) -> tuple[list[Figure], list[str]]:
    """Return the figure of calibration, if any run has one, and notes on unreadable arrays."""
    found, notes = [], []
    for run in runs:
        record = run.latest(ECE)
        if record is None:
            continue
        try:
            found.append(_reliability(run, record, run.arrays(record)))
        except (ValueError, KeyError, TypeError) as error:
            notes.append(
                f"{run.label}: cannot draw its calibration ({error}); measure its accuracy again"
            )
    return [reliability_figure(found)] if found else [], notes


def _reliability(run: RunData, record: Record, arrays: Mapping[str, Array]) -> Reliability:
    columns = (arrays[name] for name in ("confidence", "accuracy", "counts"))
    bins = [
        ConfidenceBin(*(finite(float(value)) for value in values))
        for values in zip(*columns, strict=True)
        if values[-1]
    ]
    return Reliability(run, record, bins, float(arrays["counts"].sum()))


def reliability_figure(found: Sequence[Reliability]) -> Figure:
    """Draw accuracy by confidence; on the diagonal the two are equal."""
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 1],
        "y": [0, 1],
        "hoverinfo": "skip",
        "line": {"color": "var(--muted)", "dash": "dot", "width": 1},
    }
    axis = {"range": [0, 1.02], "tickformat": ".0%"}
    errors = [f"{item.run.label} {100 * item.record.value:.1f} %" for item in found]
    return Figure(
        "reliability",
        "Accuracy by confidence",
        {
            "data": [diagonal, *map(_reliability_trace, found)],
            "layout": layout("confidence", xaxis=axis, yaxis=axis),
        },
        Data(
            ("run", "confidence", "accuracy", "images"),
            [
                (item.run.label, b.confidence, b.accuracy, b.images)
                for item in found
                for b in item.bins
            ],
        ),
        f"Expected calibration error: {', '.join(errors)}." if len(errors) <= MANY else "",
        legend(item.run for item in found),
        sense="closer to the dotted diagonal is better",
    )


def _reliability_trace(item: Reliability) -> dict[str, Any]:
    """Return the line of a run; the area of a marker grows with the images in its bin."""
    line = style(item.run.color)
    images = max(1, item.images)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [b.confidence for b in item.bins],
        "y": [b.accuracy for b in item.bins],
        "customdata": [b.images for b in item.bins],
        "meta": item.run.color,
        "name": plain(item.run.label),
        "line": line | {"width": 1.5},
        "marker": {
            "size": [4 + 10 * ((b.images or 0) / images) ** 0.5 for b in item.bins],
            "color": line["color"],
        },
        "hovertemplate": "%{fullData.name}<br>confidence %{x:.2f}, accuracy %{y:.2f}, "
        "%{customdata} images<extra></extra>",
    }
