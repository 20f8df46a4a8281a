"""Accuracy when images are made worse, and whether probabilities can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from samovar.report.drawing import palette
from samovar.report.drawing.pictures import COARSE, image_uri
from samovar.report.drawing.plots import finite, layout, legend, points, style
from samovar.report.parts import (
    Data,
    Figure,
    Gallery,
    Group,
    Part,
    Picture,
    Section,
    Strip,
    lacking,
    unfolded,
)
from samovar.report.protocol import mismatch
from samovar.report.read import Array, RunData, UnreadableArrays, place
from samovar.report.run_names import MANY
from samovar.report.text import clean, plain
from samovar.runs.records import Record

CORRUPTION = "robustness/corruption_accuracy"
MEAN = "robustness/mean_corruption_accuracy"
PGD = "robustness/pgd_accuracy"
CURVE = "robustness/pgd_curve"
ECE = "accuracy/ece"

_COLORS = [[k / (len(palette.HEIGHT) - 1), color] for k, color in enumerate(palette.HEIGHT)]
# Blue where the first run is ahead, red where the second is; readable with any colour vision.
_SIGNED = [[0, "#5a9bcb"], [0.5, "#f2f0ec"], [1, "#e0705c"]]

Cells = Mapping[tuple[str, str], Record]


def robustness(runs: Sequence[RunData]) -> Section:
    """Heat maps of corruptions, curves of attacks and of calibration, and pictures of both."""
    parts: list[Part] = []
    heat = [(run, _cells(run)) for run in runs if run.batch(CORRUPTION)]
    if heat:
        parts += _heat_maps(heat)
    attacked = [(run, _curve(run)) for run in runs if _curve(run)]
    curves: list[Figure] = [attack_figure(attacked)] if attacked else []
    reliability, notes = _reliability(runs)
    parts += [
        replace(figure, wide=len(curves + reliability) == 1) for figure in curves + reliability
    ]
    galleries, more = _galleries(runs)
    parts += unfolded("spoilt", "Corrupted and attacked images", galleries)
    missing = [
        note
        for name, what, words in (
            (MEAN, "accuracy under corruptions", "robustness"),
            (PGD, "accuracy under attack", "attack"),
            (ECE, "calibration", "accuracy"),
        )
        for note in lacking((run for run in runs if name not in run.records), what, words)
    ]
    for name, title in ((MEAN, "Corruptions"), (PGD, "Attacks"), (ECE, "Calibration")):
        found = {run.label: (record, run) for run in runs if (record := run.latest(name))}
        notes += mismatch(title, found)
    lead = (
        "Accuracy on images made worse, and how sure the network is of what it sees."
        if parts
        else ""
    )
    return Section("robustness", "Robustness", lead, parts, missing, notes + more)


# --- corruptions
# -----------------------------------------------------------------------------------------------------


def _cells(run: RunData) -> Cells:
    return {(_title(r), str(r.where.get("severity", "?"))): r for r in run.batch(CORRUPTION)}


def _title(record: Record) -> str:
    return clean(record.where.get("corruption", "?"), 40).replace("_", " ")


def _heat_maps(found: Sequence[tuple[RunData, Cells]]) -> list[Part]:
    maps = [heat_figure(run, cells) for run, cells in found]
    said = "Share of images read rightly, corruption by severity."
    parts: list[Part] = [
        Group(
            "corruptions",
            "Accuracy under corruptions",
            maps,
            said,
            tiles=True,
            scale=("0 %", "100 %", "accuracy"),
        )
    ]
    if len(found) == 2:
        parts.append(difference_figure(*found))
    return parts


def _axes(cells: Cells) -> tuple[list[str], list[str]]:
    names = list(dict.fromkeys(name for name, _ in cells))
    return names, sorted({severity for _, severity in cells})


def _heat_plot(names: Sequence[str], severities: Sequence[str], grid: Sequence[Sequence[float | None]],
               more: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    trace = {
        "type": "heatmap",
        "x": list(severities),
        "y": [plain(name) for name in names],
        "z": [list(row) for row in grid],
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


def heat_figure(run: RunData, cells: Cells) -> Figure:
    """Accuracy of one run, corruption by severity."""
    names, severities = _axes(cells)
    records = [[cells.get((name, severity)) for severity in severities] for name in names]
    grid = [[finite(r.value) if r else None for r in row] for row in records]
    text = [[f"{100 * r.value:.1f} %" if r else "" for r in row] for row in records]
    plot = _heat_plot(
        names, severities, grid, {"colorscale": _COLORS, "zmin": 0, "zmax": 1, "text": text}
    )
    rows = [(name, severity, r.value, r.stderr, r.n) for (name, severity), r in cells.items()]
    data = Data(("corruption", "severity", "accuracy", "stderr", "n"), rows)
    mean = run.latest(MEAN)
    caption = f"Mean {100 * mean.value:.1f} %, {mean.n} images" if mean and mean.n else ""
    height = 110 + 19 * len(names)
    return Figure(
        f"corruptions-{run.index}", run.label, plot, data, caption, run=run, height=height
    )


def difference_figure(first: tuple[RunData, Cells], second: tuple[RunData, Cells]) -> Figure:
    """Where the second of two runs is ahead of the first, in points."""
    (a, before), (b, after) = first, second
    both = {key: after[key].value - before[key].value for key in before if key in after}
    names, severities = _axes({key: before[key] for key in both})
    values = [[both.get((name, severity)) for severity in severities] for name in names]
    grid = [[None if v is None else finite(100 * v) for v in row] for row in values]
    most = max([5.0, *(abs(v) for row in grid for v in row if v is not None)])
    text = [["" if v is None else f"{100 * v:+.1f}" for v in row] for row in values]
    more = {
        "colorscale": _SIGNED,
        "zmin": -most,
        "zmax": most,
        "text": text,
        "texttemplate": "%{text}",
    }
    plot = _heat_plot(
        names, severities, grid, more | {"textfont": {"color": "#1b1b1b", "size": 11}}
    )
    rows = [(name, severity, value) for (name, severity), value in both.items()]
    caption = f"Accuracy of {b.label} less that of {a.label}, in percentage points: red where {b.label} is ahead."
    data = Data(("corruption", "severity", "difference"), rows)
    return Figure("corruptions-difference", f"{b.label} against {a.label}", plot, data, caption, wide=True,
                  height=110 + 22 * len(names))  # fmt: skip


# --- attacks and calibration
# -----------------------------------------------------------------------------------------


def _curve(run: RunData) -> list[Record]:
    main = run.batch(PGD)
    return sorted([*run.batch(CURVE), *main], key=lambda r: place(r, "eps")) if main else []


def attack_figure(found: Sequence[tuple[RunData, Sequence[Record]]]) -> Figure:
    """Accuracy by the radius of the attack."""
    traces, rows = [], []
    for run, records in found:
        radii = [255 * place(r, "eps") for r in records]
        traces.append(points(run, radii, records) | {"mode": "lines+markers"})
        rows += [(run.label, place(r, "eps"), r.value, r.stderr, r.n) for r in records]
    norms = {str(records[0].settings.get("norm", "")) for _, records in found}
    norm = {"inf": "largest change of a pixel", "2": "Euclidean length"}.get(
        norms.pop() if len(norms) == 1 else "", ""
    )
    axes = layout(f"radius, 255ths ({norm})" if norm else "radius, 255ths",
                  yaxis={"range": [0, 1.02], "tickformat": ".0%"})  # fmt: skip
    data = Data(("run", "eps", "accuracy", "stderr", "n"), rows)
    keys = legend(run for run, _ in found)
    return Figure(
        "attack-curve", "Accuracy under PGD", {"data": traces, "layout": axes}, data, keys=keys
    )


def _reliability(runs: Sequence[RunData]) -> tuple[list[Figure], list[str]]:
    found, notes = [], []
    for run in runs:
        record = run.latest(ECE)
        if record is None:
            continue
        try:
            arrays = run.arrays(record)
            found.append(
                (run, record, {name: arrays[name] for name in ("confidence", "accuracy", "counts")})
            )
        except (UnreadableArrays, KeyError) as error:
            notes.append(
                f"{run.label}: its calibration cannot be drawn ({error}); measure its accuracy again"
            )
    return ([reliability_figure(found)] if found else []), notes


def reliability_figure(found: Sequence[tuple[RunData, Record, Mapping[str, Array]]]) -> Figure:
    """Accuracy by confidence; on the diagonal a network is as often right as it thinks."""
    diagonal = {
        "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
        "line": {"color": "var(--muted)", "dash": "dot", "width": 1},
    }  # fmt: skip
    traces: list[dict[str, Any]] = [diagonal]
    rows: list[Sequence[Any]] = []
    errors = []
    for run, record, arrays in found:
        filled = [k for k, n in enumerate(arrays["counts"].tolist()) if n]
        x, y, n = (
            [finite(float(arrays[key][k])) for k in filled]
            for key in ("confidence", "accuracy", "counts")
        )
        line = style(run.color)
        size = [4 + 10 * ((k or 0) / max(1, float(arrays["counts"].sum()))) ** 0.5 for k in n]
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": x, "y": y, "customdata": n, "meta": run.color,
                "name": plain(run.label), "line": line | {"width": 1.5},
                "marker": {"size": size, "color": line["color"]},
                "hovertemplate": "%{fullData.name}<br>confidence %{x:.2f}, accuracy %{y:.2f}, "
                "%{customdata} images<extra></extra>",
            }
        )  # fmt: skip
        rows += [(run.label, *each) for each in zip(x, y, n, strict=True)]
        errors.append(f"{run.label} {100 * record.value:.1f} %")
    axes = layout("confidence", xaxis={"range": [0, 1.02], "tickformat": ".0%"},
                  yaxis={"range": [0, 1.02], "tickformat": ".0%"})  # fmt: skip
    caption = f"Expected calibration error: {', '.join(errors)}." if len(errors) <= MANY else ""
    data = Data(("run", "confidence", "accuracy", "images"), rows)
    keys = legend(run for run, _, _ in found)
    return Figure(
        "reliability",
        "Accuracy by confidence",
        {"data": traces, "layout": axes},
        data,
        caption,
        keys,
    )


# --- pictures
# --------------------------------------------------------------------------------------------------------


def _galleries(runs: Sequence[RunData]) -> tuple[list[Gallery], list[str]]:
    galleries, notes = [], []
    for run in runs:
        strips: list[Strip] = []
        rows: list[Sequence[Any]] = []
        coarse = False
        for name in (MEAN, PGD):
            record = next((r for r in reversed(run.records.get(name, [])) if r.arrays), None)
            if record is None:
                continue
            try:
                arrays = _fitting(record, run.arrays(record))
            except UnreadableArrays as error:
                notes.append(f"{run.label}: {error}; measure it again")
                continue
            strips += _strips(arrays, name)
            rows += _rows(arrays)
            coarse = coarse or max(arrays["images"].shape[2:4]) <= COARSE
        if strips:
            data = Data(("as", "image", "class", "predicted_class", "probability"), rows)
            galleries.append(Gallery(f"spoilt-{run.index}", run, strips, data, coarse=coarse))
    return galleries, notes


def _fitting(record: Record, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    images = arrays.get("images")
    if (
        images is None
        or images.ndim != 5
        or images.dtype != np.uint8
        or images.shape[-1] != 3
        or not images.size
    ):
        raise UnreadableArrays(f"{record.arrays} holds no images")
    shape = images.shape[:2]
    wanted = {"labels": shape[1:], "predicted": shape, "probability": shape, "names": shape[:1]}
    for name, size in wanted.items():
        if name not in arrays or arrays[name].shape != size:
            raise UnreadableArrays(
                f"{record.arrays} lacks {name}, or holds another number of it than of images"
            )
    return arrays


def _strips(arrays: Mapping[str, Array], name: str) -> list[Strip]:
    """An image a strip under corruptions; under attack the images before and after."""
    if name == PGD:
        order = range(len(arrays["names"]))
        return [
            Strip(
                clean(arrays["names"][k], 60),
                [_picture(arrays, k, i) for i in range(arrays["images"].shape[1])],
            )
            for k in order
        ]
    severity = int(arrays["severity"]) if "severity" in arrays else 0
    pictures = [_picture(arrays, k, 0, named=True) for k in range(len(arrays["names"]))]
    return [Strip(f"Corruptions at severity {severity}" if severity else "Corruptions", pictures)]


def _class(arrays: Mapping[str, Array], index: Any) -> str:
    classes = arrays.get("classes", np.zeros(0, dtype=str))
    return clean(classes[int(index)]) if 0 <= int(index) < len(classes) else f"class {int(index)}"


def _picture(arrays: Mapping[str, Array], k: int, i: int, *, named: bool = False) -> Picture:
    truth, guess = _class(arrays, arrays["labels"][i]), _class(arrays, arrays["predicted"][k, i])
    right = int(arrays["labels"][i]) == int(arrays["predicted"][k, i])
    sure = f"{100 * float(arrays['probability'][k, i]):.0f} %"
    title = clean(arrays["names"][k], 40).replace("_", " ")
    said = guess if right else f"{guess}, not {truth}"
    alt = f"Image of class {truth}, {title}, predicted {guess} with probability {sure}"
    caption, detail = (title, f"{said}, {sure}") if named else (said, sure)
    return Picture(
        alt, image_uri(arrays["images"][k, i]), "", caption, detail, "right" if right else "wrong"
    )


def _rows(arrays: Mapping[str, Array]) -> list[Sequence[Any]]:
    return [
        (clean(arrays["names"][k], 60), i, _class(arrays, arrays["labels"][i]),
         _class(arrays, arrays["predicted"][k, i]), finite(float(arrays["probability"][k, i])))
        for k in range(arrays["images"].shape[0])
        for i in range(arrays["images"].shape[1])
    ]  # fmt: skip
