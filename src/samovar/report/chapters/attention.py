"""Where a network looks: attention over images, weights of token mixing, channel means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samovar.report.drawing.pictures import COARSE, heat_uri, image_uri, signed_uri
from samovar.report.drawing.plots import layout, legend, points, style
from samovar.report.parts import (
    Data,
    Figure,
    Gallery,
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
from samovar.report.text import plain
from samovar.runs.records import Record

MOST_IMAGES = 6
MOST_TILES = 24

_NAMES = ("attention/distance", "attention/token_mixing", "attention/channel_mean")


@dataclass(frozen=True)
class Looks:
    """The arrays of one run."""

    run: RunData
    record: Record
    kind: str
    arrays: Mapping[str, Array]
    """Maps [n, L, h, w] and the like; images uint8 [n, H, W, 3]."""

    @property
    def images(self) -> Array:
        """uint8 [n, H, W, 3]."""
        return self.arrays["images"]


def attention(runs: Sequence[RunData]) -> Section:
    """Maps over images, and how far attention reaches."""
    found, notes = looks(runs)
    most = MOST_IMAGES if len(runs) <= MANY else 4
    galleries = [gallery for look in found for gallery in _BY_KIND[look.kind](look, most)]
    having = {look.run.label for look in found}
    parts: list[Part] = [*unfolded("maps", "Maps over images", galleries)]
    distances = [
        (run, run.batch("attention/distance"))
        for run in runs
        if len(run.batch("attention/distance")) > 0
    ]
    if distances:
        parts.append(distance_figure(distances, {look.run.label: look for look in found}))
    notes += mismatch("Maps", {look.run.label: (look.record, look.run) for look in found})
    missing = lacking(
        (run for run in runs if run.label not in having), "attention maps", "attention"
    )
    return Section("attention", "Attention", _LEAD if galleries else "", parts, missing, notes)


_LEAD = (
    "Transformers: how much the class token attends to each patch, as a mean over heads; rollout follows it through "
    "all blocks. Mixers: weights with which a unit mixes tokens. Residual networks: mean over channels of each stage. "
    "Every map is scaled to its own maximum."
)


def looks(runs: Sequence[RunData]) -> tuple[list[Looks], list[str]]:
    """The maps that can be read, and why others cannot."""
    found, notes = [], []
    for run in runs:
        record = next(
            (r for name in _NAMES for r in reversed(run.records.get(name, [])) if r.arrays), None
        )
        if record is None:
            continue
        try:
            found.append(_checked(run, record, _class_names(run) | run.arrays(record)))
        except UnreadableArrays as error:
            notes.append(f"{run.label}: {error}; measure its attention again")
    return found, notes


def _class_names(run: RunData) -> dict[str, Array]:
    """Names of the classes, which the arrays of its predictions have."""
    record = run.latest("predictions/accuracy")
    try:
        return {"classes": run.arrays(record)["classes"]} if record else {}
    except (UnreadableArrays, KeyError):
        return {}


def _checked(run: RunData, record: Record, arrays: Mapping[str, Array]) -> Looks:
    kind = str(arrays.get("kind", "attention"))
    needed = {
        "attention": {"maps": 4, "rollout": 3},
        "token-mixing": {"maps": 4},
        "channel-mean": {"maps0": 3},
    }
    if kind not in needed:
        raise UnreadableArrays(f"{record.arrays} holds maps of an unknown kind, {kind[:40]!r}")
    shapes = needed[kind] | (
        {"images": 4, "labels": 1, "predicted": 1} if kind != "token-mixing" else {}
    )
    for name, dims in shapes.items():
        if name not in arrays or arrays[name].ndim != dims or arrays[name].size == 0:
            raise UnreadableArrays(
                f"{record.arrays} lacks {name}, or its shape is not that of a map"
            )
    if kind != "token-mixing":
        _check_images(record, arrays, [name for name in shapes if name != "images"])
    return Looks(run, record, kind, arrays)


def _check_images(record: Record, arrays: Mapping[str, Array], others: Sequence[str]) -> None:
    images = arrays["images"]
    if images.dtype != np.uint8 or images.shape[-1] != 3:
        raise UnreadableArrays(
            f"{record.arrays} holds images of type {images.dtype}, shape {images.shape}"
        )
    short = [name for name in others if len(arrays[name]) < len(images)]
    if short:
        raise UnreadableArrays(f"{record.arrays} holds fewer {short[0]} than images")


def _of_transformer(look: Looks, most: int) -> list[Gallery]:
    maps, rollout = look.arrays["maps"], look.arrays["rollout"]
    shown = range(min(len(look.images), most))
    last = maps.shape[1]
    strips = [
        _over(
            look, f"Last block, {last} of {last}", [(i, maps[i, -1]) for i in shown], captioned=True
        ),
        _over(look, "Rollout through all blocks", [(i, rollout[i]) for i in shown]),
        _over(
            look, "Each block, first image", [(0, m) for m in maps[0, :MOST_TILES]], count="block"
        ),
    ]
    heads = look.arrays.get("heads")
    if heads is not None and heads.ndim == 4 and len(heads):
        strips.append(_over(look, "Each head of the last block, first image", [(0, m) for m in heads[0, :MOST_TILES]],
                            count="head"))  # fmt: skip
    rows = [(i, "last block", *_flat(maps[i, -1])) for i in shown] + [
        (i, "rollout", *_flat(rollout[i])) for i in shown
    ]
    rows += [(0, f"block {k + 1}", *_flat(m)) for k, m in enumerate(maps[0, :MOST_TILES])]
    return [_gallery(look, [_plain_strip(look, shown), *strips], _map_data(rows))]


def _of_residual(look: Looks, most: int) -> list[Gallery]:
    shown = range(min(len(look.images), most))
    stages = sorted(
        name for name in look.arrays if name.startswith("maps") and look.arrays[name].ndim == 3
    )
    strips, rows = [_plain_strip(look, shown)], []
    for k, name in enumerate(stages):
        maps = look.arrays[name]
        if len(maps) >= len(shown):
            strips.append(
                _over(
                    look, f"Stage {k + 1}, mean over channels", [(i, maps[i]) for i in shown], not k
                )
            )
            rows += [(i, f"stage {k + 1}", *_flat(maps[i])) for i in shown]
    return [_gallery(look, strips, _map_data(rows))]


def _of_mixer(look: Looks, most: int) -> list[Gallery]:
    units = look.arrays["maps"][0, : 4 * most]
    pictures = [
        Picture(
            f"{look.run.label}: mixing weights of unit {k + 1}",
            signed_uri(unit),
            caption=f"unit {k + 1}",
        )
        for k, unit in enumerate(units)
    ]
    rows = [(k, "unit", *_flat(unit)) for k, unit in enumerate(units)]
    title = "Weights of the first block’s token mixing, over the patches: blue below 0, red above"
    return [Gallery(f"attention-{look.run.index}", look.run, [Strip(title, pictures)], _map_data(rows, "unit"),
                    coarse=True)]  # fmt: skip


_BY_KIND = {"attention": _of_transformer, "token-mixing": _of_mixer, "channel-mean": _of_residual}


def _gallery(look: Looks, strips: Sequence[Strip], data: Data) -> Gallery:
    coarse = max(look.images.shape[1:3]) <= COARSE
    return Gallery(f"attention-{look.run.index}", look.run, strips, data, coarse=coarse)


def _plain_strip(look: Looks, shown: range) -> Strip:
    classes = look.arrays.get("classes")
    pictures = []
    for i in shown:
        truth, guess = (_class(classes, look.arrays[key][i]) for key in ("labels", "predicted"))
        right = int(look.arrays["labels"][i]) == int(look.arrays["predicted"][i])
        text = truth if right else f"{truth}, taken for {guess}"
        pictures.append(Picture(f"image {i + 1}: {text}", image_uri(look.images[i]), caption=text,
                                tone="right" if right else "wrong"))  # fmt: skip
    return Strip("Images", pictures)


def _class(classes: Array | None, index: Any) -> str:
    if classes is not None and classes.ndim == 1 and 0 <= int(index) < len(classes):
        return str(classes[int(index)])
    return f"class {int(index)}"


def _over(
    look: Looks,
    title: str,
    maps: Sequence[tuple[int, Array]],
    captioned: bool = False,
    count: str = "",
) -> Strip:
    pictures = []
    for k, (i, values) in enumerate(maps):
        caption = f"{count} {k + 1}" if count else ""
        alt = f"{look.run.label}, {title.lower()}: {caption or f'image {i + 1}'}"
        pictures.append(Picture(alt, image_uri(look.images[i]), heat_uri(values), caption))
    return Strip(title, pictures)


def _flat(values: Array) -> list[Any]:
    height, width = values.shape
    return [
        height,
        width,
        *(float(f"{v:.4g}") if np.isfinite(v) else None for v in values.ravel().tolist()),
    ]


def _map_data(rows: Sequence[Sequence[Any]], first: str = "image") -> Data:
    cells = max((len(row) - 4 for row in rows), default=0)
    return Data((first, "map", "height", "width", *(f"cell{k}" for k in range(cells))), rows)


def distance_figure(
    found: Sequence[tuple[RunData, Sequence[Record]]], maps: Mapping[str, Looks]
) -> Figure:
    """How far attention reaches, block by block; dots are heads."""
    traces, rows = [], []
    for run, records in found:
        ordered = sorted(records, key=lambda r: place(r, "index"))
        x = [plain(r.where.get("block", "?")) for r in ordered]
        heads = maps[run.label].arrays.get("distance") if run.label in maps else None
        if heads is not None and heads.ndim == 2 and len(heads) == len(ordered):
            traces.append(_heads(run, x, heads))
        traces.append(points(run, x, ordered) | {"mode": "lines+markers"})
        rows += [(run.label, r.where.get("block", "?"), r.value, r.n) for r in ordered]
    axes = layout(xaxis={"type": "category"}, yaxis={"rangemode": "tozero"})
    return Figure("distance", "Mean distance of attention, pixels", {"data": traces, "layout": axes},
                  Data(("run", "block", "distance_pixels", "n"), rows), "Small dots: single heads.",
                  legend(run for run, _ in found), wide=True)  # fmt: skip


def _heads(run: RunData, x: Sequence[str], heads: Array) -> dict[str, Any]:
    dots = [
        (name, v)
        for name, row in zip(x, heads.tolist(), strict=True)
        for v in row
        if np.isfinite(v)
    ]
    return {
        "type": "scatter", "mode": "markers", "x": [name for name, _ in dots], "y": [v for _, v in dots],
        "meta": run.color, "name": plain(run.label), "opacity": 0.45, "hoverinfo": "skip",
        "marker": {"size": 4, "color": style(run.color)["color"]},
    }  # fmt: skip
