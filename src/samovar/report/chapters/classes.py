"""Show which classes a network tells apart: confusion matrix, precision and recall."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samovar.report.drawing.plots import TOOLBAR_HEIGHT, finite, layout, legend, style
from samovar.report.outcomes import Outcomes, outcomes
from samovar.report.parts import Chapter, Data, Figure, Group, Part
from samovar.report.read import Array, RunData, UnreadableArrays
from samovar.report.run_names import MANY
from samovar.report.significance import wilson
from samovar.report.text import clean, count, plain

MOST_CLASSES = 40
"""With more classes, those that are confused most are drawn; the CSV has them all."""

_LEAD = (
    "Rows are the true classes, columns what was predicted: the diagonal is right. Recall is the "
    "share of a class that is found, precision the share of what was called so that is; bars "
    "carry 95 % intervals, and higher is better."
)
_SHARES = [[0, "var(--share-low)"], [1, "var(--share-high)"]]


def classes(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter from the outcome of each held-out image."""
    found: list[Outcomes] = []
    notes = []
    for run in runs:
        try:
            read = outcomes(run)
        except UnreadableArrays as error:
            notes.append(f"{run.label}: {error}; measure its accuracy again")
            continue
        found += [read] if read else []
    if not found:
        return Chapter("classes", "Classes", "", (), (), notes)
    matrices = [_confusion(item) for item in found[:MANY]]
    parts: list[Part] = [Group("confusion", "Confusion matrices", matrices)]
    # Networks of different classes cannot share an axis.
    groups: dict[tuple[str, ...], list[Outcomes]] = {}
    for item in found[:MANY]:
        groups.setdefault(item.classes, []).append(item)
    for k, same in enumerate(groups.values()):
        parts += [_bars(same, "recall", k), _bars(same, "precision", k)]
    return Chapter("classes", "Classes", _LEAD, parts, (), notes)


def counts(item: Outcomes) -> Array:
    """Return the number of images by true and predicted class, [K, K]."""
    k = len(item.classes)
    flat = item.labels.astype(np.int64) * k + item.predicted
    return np.asarray(np.bincount(flat, minlength=k * k).reshape(k, k))


def _drawn(matrix: Array) -> list[int]:
    """Return the classes that are drawn: all, or those with the most mistakes."""
    if len(matrix) <= MOST_CLASSES:
        return list(range(len(matrix)))
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * np.diag(matrix)
    return sorted(np.argsort(-wrong, kind="stable")[:MOST_CLASSES].tolist())


def _confusion(item: Outcomes) -> Figure:
    """Draw the confusion matrix of a run; its CSV has the prediction of every image."""
    matrix = counts(item)
    drawn = _drawn(matrix)
    names = [plain(clean(item.classes[k], 24)) for k in drawn]
    part = matrix[np.ix_(drawn, drawn)]
    sizes = np.maximum(matrix.sum(1)[drawn], 1)
    trace = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": (part / sizes[:, None]).round(4).tolist(),
        "text": [[str(n) if n else "" for n in row] for row in part.tolist()],
        # Numbers in more cells than these would overlap.
        **({"texttemplate": "%{text}"} if len(drawn) <= 20 else {}),
        "textfont": {"size": 10, "color": "var(--ink)"},
        "colorscale": _SHARES,
        "zmin": 0,
        "zmax": 1,
        "xgap": 1,
        "ygap": 1,
        "showscale": False,
        "hovertemplate": "%{y} taken for %{x}: %{text} images, %{z:.1%} of it<extra></extra>",
    }
    category = {"type": "category", "showgrid": False, "showline": False}
    axes = layout("predicted", xaxis=category, yaxis=category | {"autorange": "reversed"})
    confused = _most_confused(item, matrix)
    left = f" The {len(drawn)} classes with the most mistakes." if len(drawn) < len(matrix) else ""
    rows = [
        (k, clean(item.classes[int(t)]), clean(item.classes[int(g)]), int(t == g),
         finite(float(p)), finite(float(q)))
        for k, (t, g, p, q) in enumerate(
            zip(item.labels, item.predicted, item.probability, item.probability_true, strict=True)
        )
    ]  # fmt: skip
    header = ("image", "class", "predicted_class", "right", "probability", "probability_true")
    return Figure(
        f"confusion-{item.run.index}",
        item.run.label,
        {"data": [trace], "layout": axes},
        Data(header, rows),
        f"{count(len(item.labels), 'image')}.{left} {confused} The CSV has the prediction of every "
        "image.",
        run=item.run,
        sense="a full diagonal is better",
        height=max(TOOLBAR_HEIGHT, 140 + min(18 * len(drawn), 480)),
    )


def _most_confused(item: Outcomes, matrix: Array) -> str:
    """Return the pairs of classes that are confused most."""
    off = matrix - np.diag(np.diag(matrix))
    k = len(off)
    worst = np.argsort(-off.ravel(), kind="stable")[:3]
    said = [
        f"{clean(item.classes[at // k], 24)} for {clean(item.classes[at % k], 24)} "
        f"({off[at // k, at % k]})"
        for at in map(int, worst)
        if off[at // k, at % k]
    ]
    return f"Most confused: {', '.join(said)}." if said else "No mistake."


def _bars(found: Sequence[Outcomes], what: str, k: int) -> Figure:
    """Draw recall or precision of each class, a bar for each run."""
    matrices = [counts(item) for item in found]
    drawn = _drawn(sum(matrices[1:], matrices[0]))
    names = found[0].classes
    traces, rows = [], []
    for item, matrix in zip(found, matrices, strict=True):
        totals = matrix.sum(1 if what == "recall" else 0)
        cells = [(c, int(matrix[c, c]), int(totals[c])) for c in range(len(names)) if totals[c]]
        bounds = {c: (hit / n, *wilson(hit / n, n)) for c, hit, n in cells}
        rows += [(item.run.label, clean(names[c]), *bounds[c], n) for c, _, n in cells]
        shown = [c for c in drawn if c in bounds]
        traces.append({
            "type": "bar",
            "x": [plain(clean(names[c], 24)) for c in shown],
            "y": [finite(bounds[c][0]) for c in shown],
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [finite(bounds[c][2] - bounds[c][0]) for c in shown],
                "arrayminus": [finite(bounds[c][0] - bounds[c][1]) for c in shown],
                "thickness": 1,
                "width": 2,
                "color": "var(--ink)",
            },
            "name": plain(item.run.label),
            "meta": item.run.color,
            "marker": {"color": style(item.run.color)["color"]},
            "hovertemplate": f"%{{fullData.name}}<br>{what} of %{{x}}: %{{y:.1%}}<extra></extra>",
        })  # fmt: skip
    axes = layout(
        xaxis={"type": "category"},
        yaxis={"range": [0, 1.02], "tickformat": ".0%"},
        barmode="group",
        bargap=0.3,
    )
    return Figure(
        f"{what}-{k}",
        f"{what.capitalize()} of each class",
        {"data": traces, "layout": axes},
        Data(("run", "class", what, "low", "high", "images"), rows),
        keys=legend(item.run for item in found),
        sense="higher is better",
    )
