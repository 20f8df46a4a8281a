"""Searches for the best settings: accuracy by what was searched, and every setting that was
tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samovar.report.drawing.plots import error_of, finite, layout, style
from samovar.report.parts import (
    Cell,
    Column,
    Data,
    Figure,
    Key,
    Part,
    Row,
    Section,
    Table,
    balanced,
)
from samovar.report.read import RunData, number, place
from samovar.report.text import clean, count, duration, plain, setting, with_error
from samovar.runs.records import Record

ACCURACY, LOSS = "tune/accuracy", "tune/loss"

TITLES = {"rho": "rho", "lr": "learning rate", "weight_decay": "weight decay"}
"""Axes of a search, in the order in which one of them becomes the axis of a figure."""

Setting = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Tried:
    """How a setting did in runs of one length."""

    setting: Setting
    rung: float
    steps: float
    accuracy: Record
    loss: Record | None

    @property
    def rank(self) -> tuple[float, float, float]:
        """The best of the longest runs has the lowest: accuracy decides, then loss; what is not
        finite comes last."""
        loss = self.loss.value if self.loss and math.isfinite(self.loss.value) else math.inf
        return (
            -self.rung,
            -self.accuracy.value if math.isfinite(self.accuracy.value) else math.inf,
            loss,
        )


def is_search(run: RunData) -> bool:
    """Whether a folder is of `samovar tune`."""
    return ACCURACY in run.records


def tuning(runs: Sequence[RunData]) -> Section:
    """A curve and a table of each search."""
    parts: list[Part] = []
    notes: list[str] = []
    for run in runs:
        found = tried(run)
        if found:
            parts += [*figures(run, found), table(run, found)]
            notes += [f"{run.label}: {text}" if len(runs) > 1 else text for text in _edges(found)]
    lead = "Accuracy on images held out of training; every run has a complete schedule of its own length."
    if any(len({each.rung for each in tried(run)}) > 1 for run in runs):
        lead += " Short runs only drop the worse half: they favour what learns fast, such as a small rho."
    return Section("tuning", "Search", lead if parts else "", parts, (), notes)


def tried(run: RunData) -> list[Tried]:
    """The settings of a search, each once per length; the best first."""
    losses = {_key(record): record for record in run.records.get(LOSS, [])}
    newest = {_key(record): record for record in run.records.get(ACCURACY, [])}
    found = [
        Tried(key[0], place(record, "rung"), place(record, "steps"), record, losses.get(key))
        for key, record in newest.items()
    ]
    return sorted(found, key=lambda each: each.rank)


def _key(record: Record) -> tuple[Setting, float]:
    values = ((name, number(record.where.get(name))) for name in TITLES)
    return tuple((name, v) for name, v in values if v is not None and math.isfinite(v)), place(
        record, "rung"
    )


# --- curves
# ----------------------------------------------------------------------------------------------------------


def figures(run: RunData, found: Sequence[Tried]) -> list[Figure]:
    """A figure a length with a line per value of the other axes; of a search of one axis the
    longest runs, then all."""
    several = [name for name in TITLES if len({dict(each.setting).get(name) for each in found}) > 1]
    found = [each for each in found if all(name in dict(each.setting) for name in several)]
    if not several or not found:
        return []
    axis, others = several[0], several[1:]
    by_length = _grouped(found, lambda each: count(int(each.steps), "step"))
    if others:
        drawn = [
            (_grouped(of, lambda each: _said(each, others)), name) for name, of in by_length.items()
        ]
    else:
        longest = next(iter(by_length))
        drawn = [({longest: by_length[longest]}, longest)] + (
            [(by_length, "each length")] if len(by_length) > 1 else []
        )
    labels = sorted({label for lines, _ in drawn for label in lines}) if others else list(by_length)
    colors = {label: color for color, label in enumerate(labels)}
    return balanced(
        [
            _figure(f"tuning-{run.index}-{k}", axis, *one, colors, found[0])
            for k, one in enumerate(drawn)
        ]
    )


def _grouped(found: Sequence[Tried], name: Callable[[Tried], str]) -> dict[str, list[Tried]]:
    """By name, the longest runs first; groups, and what is in them, in the order of the
    settings."""
    groups: dict[str, list[Tried]] = {}
    for each in sorted(found, key=lambda each: (-each.rung, each.setting)):
        groups.setdefault(name(each), []).append(each)
    return groups


def _said(each: Tried, axes: Sequence[str]) -> str:
    return ", ".join(f"{TITLES[name]} {value:g}" for name, value in each.setting if name in axes)


def _figure(
    id: str,
    axis: str,
    lines: Mapping[str, Sequence[Tried]],
    length: str,
    colors: Mapping[str, int],
    best: Tried,
) -> Figure:
    drawn = [each for line in lines.values() for each in line]
    places = _places(sorted({dict(each.setting)[axis] for each in drawn}))
    traces = [_trace(line, axis, places, label, colors[label]) for label, line in lines.items()]
    if best in drawn:
        traces.append(_mark(best, places[dict(best.setting)[axis]]))
    ticks = {"tickvals": list(places.values()), "ticktext": [f"{value:g}" for value in places]}
    scale = {"type": "log"} if all(place > 0 for place in places.values()) else {}
    axes = layout(TITLES[axis], xaxis={**scale, **ticks}, yaxis={"tickformat": ".3~p"})
    names = [name for name, _ in best.setting]
    rows = [
        (
            *(dict(r.setting).get(name) for name in names),
            r.steps,
            r.accuracy.value,
            r.accuracy.stderr,
            r.accuracy.n,
        )
        for r in drawn
    ]
    data = Data((*names, "steps", "accuracy", "stderr", "seeds"), rows)
    keys = (
        tuple(Key(label, color) for label, color in colors.items() if label in lines)
        if len(lines) > 1
        else ()
    )
    title = f"Held-out accuracy by {TITLES[axis]}, runs of {length}"
    return Figure(
        id, title, {"data": traces, "layout": axes}, data, _caption(drawn, places, best), keys
    )


def _places(values: Sequence[float]) -> dict[float, float]:
    """Where values lie on a logarithmic axis: 0 as far below the lowest as that is below the
    next."""
    positive = [value for value in values if value > 0]
    if not positive:
        return {value: value for value in values}
    zero = positive[0] ** 2 / positive[1] if len(positive) > 1 else positive[0] / 2
    return {value: value if value > 0 else zero for value in values}


def _trace(
    line: Sequence[Tried], axis: str, places: Mapping[float, float], label: str, color: int
) -> dict[str, Any]:
    """Points with error bars; that at 0 is not joined to the others, from which it is infinitely
    far."""
    values = [dict(each.setting)[axis] for each in line]
    columns = [
        [
            places[value],
            finite(each.accuracy.value),
            error_of(each.accuracy),
            each.accuracy.n or 1,
            f"{value:g}",
        ]
        for each, value in zip(line, values, strict=True)
    ]
    if values[0] == 0 and len(values) > 1:
        columns.insert(1, [None] * 5)
    x, y, error, seeds, said = (list(column) for column in zip(*columns, strict=True))
    stroke = style(color)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "error_y": {"type": "data", "array": error, "thickness": 1, "width": 3},
        "customdata": [list(pair) for pair in zip(said, seeds, strict=True)],
        "name": plain(label),
        "line": stroke | {"width": 1.5},
        "marker": {"size": 8, "color": stroke["color"]},
        "connectgaps": False,
        "hovertemplate": f"%{{fullData.name}}<br>{TITLES[axis]} %{{customdata[0]}}: %{{y:.2%}}, "
        "seeds: %{customdata[1]}<extra></extra>",
    }


def _mark(best: Tried, x: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x],
        "y": [finite(best.accuracy.value)],
        "name": "best",
        "hoverinfo": "skip",
        "marker": {
            "symbol": "circle-open",
            "size": 17,
            "color": "var(--ink)",
            "line": {"width": 1.5},
        },
    }


def _caption(drawn: Sequence[Tried], places: Mapping[float, float], best: Tried) -> str:
    said = ["Ringed: the best."] if best in drawn else []
    if any((each.accuracy.n or 1) > 1 for each in drawn):
        said.append("Bars: standard error over seeds.")
    if places.get(0.0, 0.0) > 0:
        said.append("The leftmost point is at 0.")
    lost = sum(not math.isfinite(each.accuracy.value) for each in drawn)
    if lost:
        said.append(f"{count(lost, 'setting')} not finite, left out.")
    return " ".join(said)


# --- table
# -----------------------------------------------------------------------------------------------------------


def table(run: RunData, found: Sequence[Tried]) -> Table:
    """Every setting at every length, the best first."""
    names = [name for name, _ in found[0].setting]
    rows = [Row(_said(each, names), _cells(each)) for each in found]
    columns = [
        Column("Steps", "optimizer steps of a run"),
        Column("Accuracy", _protocol(found[0].accuracy)),
        Column("Loss, nats", "of the same evaluation"),
        Column("Time", "processor time of the runs of all seeds"),
    ]
    data = Data(
        (*names, "steps", "accuracy", "stderr", "loss", "seeds", "seconds"),
        [
            (*(dict(each.setting).get(name) for name in names), each.steps, each.accuracy.value, each.accuracy.stderr,
             each.loss.value if each.loss else None, each.accuracy.n, each.accuracy.cost.get("seconds"))
            for each in found
        ],
    )  # fmt: skip
    return Table(
        f"tuning-table-{run.index}", f"{run.label}: every setting", "setting", columns, rows, data
    )


def _cells(each: Tried) -> list[Cell]:
    r = each.accuracy
    value, error = with_error(100 * r.value, None if r.stderr is None else 100 * r.stderr)
    accuracy = Cell(
        f"{value} %" if math.isfinite(r.value) else "not finite", error, [count(r.n or 1, "seed")]
    )
    finite_loss = each.loss if each.loss and math.isfinite(each.loss.value) else None
    loss = Cell(*with_error(finite_loss.value, finite_loss.stderr)) if finite_loss else Cell("–")
    seconds = number(r.cost.get("seconds"))
    return [
        Cell(f"{each.steps:.0f}"),
        accuracy,
        loss,
        Cell("–" if seconds is None else duration(seconds)),
    ]


def _protocol(record: Record) -> str:
    words = {
        key: clean(setting(record.settings[key]))
        for key in ("images", "source", "held_out")
        if key in record.settings
    }
    images = f"{words.get('images', 'some')} images of {words.get('source', 'the source')}"
    return f"of the last evaluation, at the final step, on {images}, held out by {words.get('held_out', 'the search')}"


def _edges(found: Sequence[Tried]) -> list[str]:
    """A sentence on each value of the best setting beyond which a better one may lie."""
    said = []
    for name, value in found[0].setting:
        values = sorted({dict(each.setting)[name] for each in found if name in dict(each.setting)})
        if len(values) > 1 and value in (values[0], values[-1]) and value > 0:
            side, more = ("lowest", "lower") if value == values[0] else ("highest", "higher")
            said.append(
                f"The best {TITLES[name]}, {value:g}, is the {side} that was tried; a {more} one may be better."
            )
    return said
