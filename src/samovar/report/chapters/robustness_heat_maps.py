"""Draw accuracy under corruptions as heat maps, one for each run, and as a difference of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samovar.report.drawing.plots import TOOLBAR_HEIGHT, finite, layout
from samovar.report.outcomes import comparable, condition_tests, corrupted_outcomes
from samovar.report.parts import Data, Figure, Group, Part
from samovar.report.read import RunData, UnreadableArrays
from samovar.report.significance import LEVEL, shares
from samovar.report.text import clean, count, plain
from samovar.runs.records import Record

CORRUPTION = "robustness/corruption_accuracy"
MEAN = "robustness/mean_corruption_accuracy"

# CSS variables of the page: the ink is readable on each colour, in the light and in the dark.
_SHARES = [[0, "var(--share-low)"], [1, "var(--share-high)"]]
_SIGNED = [[0, "var(--minus)"], [0.5, "var(--zero)"], [1, "var(--plus)"]]
_NUMBERS = {"texttemplate": "%{text}", "textfont": {"color": "var(--ink)", "size": 11}}

_PALE = 0.2
"""Opacity of cells that are within noise."""

Place = tuple[str, str]
"""A corruption and its severity."""

Cells = Mapping[Place, Record]


def heat_maps(runs: Sequence[RunData]) -> list[Part]:
    """Return a heat map for each run, and for two runs their difference."""
    found = [(run, cells) for run in runs if (cells := _cells(run))]
    if not found:
        return []
    values = [v for _, cells in found for r in cells.values() if (v := finite(r.value)) is not None]
    # All maps share one scale, which begins at the tens below the lowest accuracy.
    low = max(0, int(10 * min(values, default=0.0))) / 10
    group = Group(
        "corruptions",
        "Accuracy under corruptions",
        [heat_figure(run, cells, low) for run, cells in found],
        "Images that are classified rightly, in per cent, by corruption and severity.",
        tiles=True,
        scale=(f"{100 * low:.0f} %", "100 %", "accuracy"),
        ramp="shares",
        sense="higher is better",
    )
    return [group, difference_figure(*found)] if len(found) == 2 else [group]


def _cells(run: RunData) -> dict[Place, Record]:
    return {_place(r.where): r for r in run.batch(CORRUPTION)}


def _place(where: Mapping[str, Any]) -> Place:
    name = clean(where.get("corruption", "?"), 40).replace("_", " ")
    return name, str(where.get("severity", "?"))


def _heat_plot(
    values: Mapping[Place, float | None], texts: Mapping[Place, str], more: dict[str, Any]
) -> dict[str, Any]:
    """Return a heat map of Plotly: a row for each corruption, a column for each severity.

    Args:
        values: by corruption and severity.
        texts: the same values as text, which the cells hold.
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
        **_NUMBERS,
        **more,
    }
    axes = layout(
        "severity",
        xaxis={"type": "category", "showline": False},
        yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
    )
    return {"data": [trace], "layout": axes}


def heat_figure(run: RunData, cells: Cells, low: float = 0.0) -> Figure:
    """Draw the accuracy of one run by corruption and severity.

    Args:
        run: the run.
        cells: its records.
        low: accuracy at which the colours begin."""
    mean = run.latest(MEAN)
    plot = _heat_plot(
        {place: finite(r.value) for place, r in cells.items()},
        {place: f"{100 * r.value:.0f}" for place, r in cells.items()},
        {
            "colorscale": _SHARES,
            "zmin": low,
            "zmax": 1,
            "hovertemplate": "%{y}, severity %{x}: %{z:.1%}<extra></extra>",
        },
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
        height=max(TOOLBAR_HEIGHT, 110 + 22 * len({name for name, _ in cells})),
    )


@dataclass(frozen=True)
class Noise:
    """Which differences are more than noise, and how that was found."""

    real: frozenset[Place]
    said: str


def noise(first: tuple[RunData, Cells], second: tuple[RunData, Cells]) -> Noise:
    """Test each cell of two runs, all together at 95 %: image by image where the outcomes allow.

    Returns:
        The cells that differ by more than noise, and a sentence on what noise is."""
    (a, before), (b, after) = first, second
    try:
        one, two = corrupted_outcomes(a), corrupted_outcomes(b)
    except UnreadableArrays:
        one = two = None
    shared = [place for place in before if place in after]
    if one and two and comparable(one, two):
        places = [_place({"corruption": name, "severity": s}) for name, s in one.conditions]
        if set(shared) <= set(places):
            tests = zip(places, condition_tests(one, two), strict=True)
            real = frozenset(place for place, (_, yes) in tests if yes)
            how = f"McNemar’s exact tests on the same {count(len(one.labels), 'image')}, by Holm"
            return Noise(real, _noise_said(len(real & set(shared)), len(shared), how))
    tested = [place for place in shared if before[place].n and after[place].n]
    # Without the outcome of each image, the level is shared among the cells.
    level = 1 - (1 - LEVEL) / max(1, len(tested))
    real = frozenset(
        place
        for place in tested
        if finite(before[place].value) is not None and finite(after[place].value) is not None
        if shares(_share(before[place]), _share(after[place]), level).decided
    )
    how = "Newcombe’s intervals for separate images, by Bonferroni"
    return Noise(real, _noise_said(len(real), len(shared), how))


def _share(record: Record) -> tuple[float, int]:
    return record.value, record.n or 0


def _noise_said(real: int, cells: int, how: str) -> str:
    return (
        f"Pale cells, {cells - real} of {cells}, are within noise: runs that are equally good "
        f"could differ as much by chance ({how}, all cells together at 95 %)."
    )


def difference_figure(first: tuple[RunData, Cells], second: tuple[RunData, Cells]) -> Figure:
    """Draw the accuracy of the second of two runs minus that of the first, in percentage points.

    Cells within noise are pale."""
    (a, before), (b, after) = first, second
    gains = {
        place: after[place].value - record.value
        for place, record in before.items()
        if place in after
    }
    found = noise(first, second)
    points = {place: finite(100 * gain) for place, gain in gains.items()}
    texts = {place: f"{100 * gain:+.1f}".replace("-", "−") for place, gain in gains.items()}
    # Differences of less than 5 points never have the colours of the ends.
    most = max([5.0, *(abs(value) for value in points.values() if value is not None)])
    more = {
        "colorscale": _SIGNED,
        "zmin": -most,
        "zmax": most,
        "hovertemplate": "%{y}, severity %{x}: %{text} points<extra></extra>",
    }
    quiet = {"opacity": _PALE, "textfont": {"color": "var(--muted)", "size": 11}}
    plot = _heat_plot(points, texts, more | quiet)
    if found.real:
        # What is more than noise lies in full colour over the pale cells.
        real = {place: value if place in found.real else None for place, value in points.items()}
        named = {place: text if place in found.real else "" for place, text in texts.items()}
        plot["data"] += _heat_plot(real, named, more | {"hoverongaps": False})["data"]
        plot["data"][0]["text"] = [
            ["" if value is not None else text for value, text in zip(*rows, strict=True)]
            for rows in zip(plot["data"][1]["z"], plot["data"][0]["text"], strict=True)
        ]
    caption = (
        f"Accuracy of {b.label} minus accuracy of {a.label}, in percentage points: red and above 0 "
        f"where {b.label} is better, blue and below 0 where {a.label} is. {found.said}"
    )
    return Figure(
        "corruptions-difference",
        f"{b.label} minus {a.label}",
        plot,
        Data(
            ("corruption", "severity", "difference", "more_than_noise"),
            [(*place, gain, int(place in found.real)) for place, gain in gains.items()],
        ),
        caption,
        wide=True,
        height=max(TOOLBAR_HEIGHT, 110 + 22 * len({name for name, _ in gains})),
        sense=f"higher is better for {b.label}",
    )
