"""Draw accuracy under corruptions as heat maps, one for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samovar.report.drawing import palette
from samovar.report.drawing.plots import finite, layout
from samovar.report.parts import Data, Figure, Group, Part
from samovar.report.read import RunData
from samovar.report.text import clean, plain
from samovar.runs.records import Record

CORRUPTION = "robustness/corruption_accuracy"
MEAN = "robustness/mean_corruption_accuracy"

# Blue where the first run is better, red where the second is; readable with any colour vision.
_SIGNED = [[0, "#5a9bcb"], [0.5, "#f2f0ec"], [1, "#e0705c"]]

Place = tuple[str, str]
"""A corruption and its severity."""


def heat_maps(runs: Sequence[RunData]) -> list[Part]:
    """Return a heat map for each run, and for two runs their difference."""
    found = [(run, cells) for run in runs if (cells := _cells(run))]
    if not found:
        return []
    group = Group(
        "corruptions",
        "Accuracy under corruptions",
        [heat_figure(run, cells) for run, cells in found],
        "Share of images that are classified correctly, by corruption and severity.",
        tiles=True,
        scale=("0 %", "100 %", "accuracy"),
    )
    return [group, difference_figure(*found)] if len(found) == 2 else [group]


def _cells(run: RunData) -> dict[Place, Record]:
    return {(_corruption(r), str(r.where.get("severity", "?"))): r for r in run.batch(CORRUPTION)}


def _corruption(record: Record) -> str:
    return clean(record.where.get("corruption", "?"), 40).replace("_", " ")


def _heat_plot(
    values: Mapping[Place, float | None], texts: Mapping[Place, str], more: dict[str, Any]
) -> dict[str, Any]:
    """Return a heat map of Plotly: a row for each corruption, a column for each severity.

    Args:
        values: by corruption and severity.
        texts: the same values as text.
        more: further keys of the trace, such as its colours."""
    names = list(dict.fromkeys(name for name, _ in values))
    severities = sorted({severity for _, severity in values})
    trace = {
        "type": "heatmap",
        "x": severities,
        "y": [plain(name) for name in names],
        "z": [[values.get((name, severity)) for severity in severities] for name in names],
        "text": [[texts.get((name, severity), "") for severity in severities] for name in names],
        "xgap": 2,
        "ygap": 2,
        "showscale": False,
        "hovertemplate": "%{y}, severity %{x}: %{text}<extra></extra>",
        **more,
    }
    axes = layout(
        "severity",
        xaxis={"type": "category", "showline": False},
        yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
    )
    return {"data": [trace], "layout": axes}


def heat_figure(run: RunData, cells: Mapping[Place, Record]) -> Figure:
    """Draw the accuracy of one run by corruption and severity."""
    mean = run.latest(MEAN)
    plot = _heat_plot(
        {place: finite(r.value) for place, r in cells.items()},
        {place: f"{100 * r.value:.1f} %" for place, r in cells.items()},
        {"colorscale": palette.HEIGHT_SCALE, "zmin": 0, "zmax": 1},
    )
    return Figure(
        f"corruptions-{run.index}",
        run.label,
        plot,
        Data(
            ("corruption", "severity", "accuracy", "stderr", "n"),
            [(*place, r.value, r.stderr, r.n) for place, r in cells.items()],
        ),
        f"Mean {100 * mean.value:.1f} %, {mean.n} images" if mean and mean.n else "",
        run=run,
        height=110 + 19 * len({name for name, _ in cells}),
    )


def difference_figure(
    first: tuple[RunData, Mapping[Place, Record]], second: tuple[RunData, Mapping[Place, Record]]
) -> Figure:
    """Draw the accuracy of the second of two runs minus that of the first, in percentage points."""
    (a, before), (b, after) = first, second
    gains = {
        place: after[place].value - record.value
        for place, record in before.items()
        if place in after
    }
    points = {place: finite(100 * gain) for place, gain in gains.items()}
    # Differences of less than 5 points stay pale, so that noise does not look like an effect.
    most = max([5.0, *(abs(value) for value in points.values() if value is not None)])
    more = {
        "colorscale": _SIGNED,
        "zmin": -most,
        "zmax": most,
        "texttemplate": "%{text}",
        "textfont": {"color": "#1b1b1b", "size": 11},
    }
    plot = _heat_plot(points, {place: f"{100 * gain:+.1f}" for place, gain in gains.items()}, more)
    caption = (
        f"Accuracy of {b.label} minus accuracy of {a.label}, in percentage points; red where "
        f"{b.label} is better."
    )
    return Figure(
        "corruptions-difference",
        f"{b.label} minus {a.label}",
        plot,
        Data(
            ("corruption", "severity", "difference"),
            [(*place, gain) for place, gain in gains.items()],
        ),
        caption,
        wide=True,
        height=110 + 22 * len({name for name, _ in gains}),
    )
