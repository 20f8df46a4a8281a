"""Show which parts of an image matter: attention, weights of token mixing, channel means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samovar.report.chapters.attention_maps import AttentionMaps, attention_maps
from samovar.report.chapters.image_arrays import class_name
from samovar.report.drawing.pictures import COARSE, heat_uri, image_uri, signed_uri
from samovar.report.drawing.plots import layout, legend, record_trace, style
from samovar.report.parts import (
    Chapter,
    Data,
    Figure,
    Gallery,
    Part,
    Picture,
    Strip,
    lacking,
    unfolded,
)
from samovar.report.protocol import mismatch
from samovar.report.read import Array, RunData, place
from samovar.report.run_names import MANY
from samovar.report.text import plain
from samovar.runs.records import Record

MOST_IMAGES = 6
MOST_TILES = 24
"""The most blocks or heads shown for one image."""

_LEAD = (
    "Transformers: attention of the class token to each patch, averaged over heads; rollout "
    "follows it through all blocks. Mixers: weights with which a unit mixes tokens. Residual "
    "networks: mean over the channels of each stage. Every map is scaled to its own maximum, which "
    "stands below it."
)


def attention(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: maps over images, and the distance over which attention reaches."""
    found, notes = attention_maps(runs)
    most = MOST_IMAGES if len(runs) <= MANY else 4
    galleries = [_GALLERIES[maps.kind](maps, most) for maps in found]
    by_run = {maps.run.label: maps for maps in found}
    # Distances are plain records: they are there even where the arrays with the maps are not.
    parts: list[Part] = [*unfolded("maps", "Images and their maps", galleries)]
    distances = [(run, records) for run in runs if (records := run.batch("attention/distance"))]
    if distances:
        parts.append(_distance_figure(distances, by_run))
    notes += mismatch("Maps", {label: (maps.record, maps.run) for label, maps in by_run.items()})
    missing = lacking(
        (run for run in runs if run.label not in by_run), "attention maps", "attention"
    )
    return Chapter("attention", "Attention", _LEAD if galleries else "", parts, missing, notes)


def _of_transformer(maps: AttentionMaps, most: int) -> Gallery:
    """Return the maps of the last block, rollout, and all blocks and heads for the first image."""
    by_block, rollout = maps.arrays["maps"], maps.arrays["rollout"]
    shown = range(min(len(maps.images), most))
    blocks = list(by_block[0, :MOST_TILES])
    last = by_block.shape[1]
    strips = [
        _images(maps, shown),
        _over(maps, f"Block {last} of {last}", [by_block[i, -1] for i in shown]),
        _over(maps, "Rollout", [rollout[i] for i in shown]),
        _over_first(maps, "Each block, first image", blocks, "block"),
    ]
    heads = maps.arrays.get("heads")
    if heads is not None and heads.ndim == 4 and len(heads):
        title = "Each head of the last block, first image"
        strips.append(_over_first(maps, title, list(heads[0, :MOST_TILES]), "head"))
    rows = [
        *((i, "last block", *_cells(by_block[i, -1])) for i in shown),
        *((i, "rollout", *_cells(rollout[i])) for i in shown),
        *((0, f"block {k}", *_cells(values)) for k, values in enumerate(blocks, 1)),
    ]
    return _gallery(maps, strips, rows, beside=3)


def _of_residual(maps: AttentionMaps, most: int) -> Gallery:
    """Return the channel mean of each stage."""
    shown = range(min(len(maps.images), most))
    arrays = maps.arrays
    # Each stage halves the map, so the stages are arrays of their own, `maps0` and on.
    stages = sorted(n for n in arrays if n.startswith("maps") and arrays[n].ndim == 3)
    strips, rows = [_images(maps, shown)], []
    for k, name in enumerate(stages, 1):
        if len(arrays[name]) >= len(shown):
            values = [arrays[name][i] for i in shown]
            strips.append(_over(maps, f"Stage {k}", values))
            rows += [(i, f"stage {k}", *_cells(values[i])) for i in shown]
    return _gallery(maps, strips, rows, beside=len(strips))


def _of_mixer(maps: AttentionMaps, most: int) -> Gallery:
    """Return the weights of the first units of token mixing."""
    # A mixer mixes the same patches in every image, so its weights are shown without images.
    units = list(enumerate(maps.arrays["maps"][0, : 4 * most]))
    label = maps.run.label
    pictures = [
        Picture(
            f"{label}: mixing weights of unit {k + 1}",
            signed_uri(unit),
            caption=f"unit {k + 1}",
            map=True,
        )
        for k, unit in units
    ]
    title = "Token-mixing weights of the first block, by patch: blue below 0, red above"
    data = _map_data([(k, "unit", *_cells(unit)) for k, unit in units], "unit")
    strips = [Strip(title, pictures)]
    return Gallery(f"attention-{maps.run.index}", maps.run, strips, data, coarse=True)


_GALLERIES = {
    "attention": _of_transformer,
    "token-mixing": _of_mixer,
    "channel-mean": _of_residual,
}


def _gallery(
    maps: AttentionMaps, strips: Sequence[Strip], rows: Sequence[Sequence[Any]], *, beside: int
) -> Gallery:
    return Gallery(
        f"attention-{maps.run.index}",
        maps.run,
        strips,
        _map_data(rows),
        coarse=max(maps.images.shape[1:3]) <= COARSE,
        beside=beside,
        scale=("0", "maximum", "of each map"),
    )


def _images(maps: AttentionMaps, shown: range) -> Strip:
    """Return the images themselves, with their classes and predictions."""
    classes = maps.arrays.get("classes")
    pictures = []
    for i in shown:
        label, predicted = int(maps.arrays["labels"][i]), int(maps.arrays["predicted"][i])
        right = label == predicted
        text = class_name(classes, label)
        if not right:
            text += f", predicted {class_name(classes, predicted)}"
        image = image_uri(maps.images[i])
        tone = "right" if right else "wrong"
        pictures.append(Picture(f"image {i + 1}: {text}", image, caption=text, tone=tone))
    return Strip("Images", pictures)


def _over(maps: AttentionMaps, title: str, values: Sequence[Array]) -> Strip:
    """Return one map for each image."""
    alt = f"{maps.run.label}, {title.lower()}: map of image"
    return Strip(title, [_map(f"{alt} {i + 1}", title, heat) for i, heat in enumerate(values)])


def _over_first(maps: AttentionMaps, title: str, values: Sequence[Array], what: str) -> Strip:
    """Return several maps of the first image, numbered."""
    alt = f"{maps.run.label}, {title.lower()}:"
    return Strip(
        title,
        [_map(f"{alt} {what} {k}", f"{what} {k}", heat) for k, heat in enumerate(values, 1)],
    )


def _map(alt: str, caption: str, values: Array) -> Picture:
    """Return a heat map with its maximum."""
    known = values[np.isfinite(values)]
    top = max(0.0, float(known.max())) if known.size else 0.0
    return Picture(alt, heat_uri(values), caption=caption, detail=f"0 to {top:.2g}", map=True)


def _cells(values: Array) -> list[Any]:
    """Return height, width and values of a map, row by row, for the CSV."""
    flat = values.ravel().tolist()
    return [*values.shape, *(float(f"{v:.4g}") if np.isfinite(v) else None for v in flat)]


def _map_data(rows: Sequence[Sequence[Any]], first: str = "image") -> Data:
    # Maps of stages have different sizes: the columns are those of the largest.
    cells = max((len(row) - 4 for row in rows), default=0)
    return Data((first, "map", "height", "width", *(f"cell{k}" for k in range(cells))), rows)


def _distance_figure(
    found: Sequence[tuple[RunData, Sequence[Record]]], by_run: Mapping[str, AttentionMaps]
) -> Figure:
    """Draw the distance over which attention reaches by block; dots are heads."""
    traces, rows = [], []
    for run, records in found:
        ordered = sorted(records, key=lambda r: place(r, "index"))
        marks = [(plain(r.where.get("block", "?")), r) for r in ordered]
        heads = by_run[run.label].arrays.get("distance") if run.label in by_run else None
        if heads is not None and heads.ndim == 2 and len(heads) == len(marks):
            traces.append(_heads(run, [block for block, _ in marks], heads))
        traces.append(record_trace(run, marks))
        rows += [(run.label, r.where.get("block", "?"), r.value, r.n) for r in ordered]
    axes = layout(xaxis={"type": "category"}, yaxis={"rangemode": "tozero"})
    return Figure(
        "distance",
        "Mean distance of attention, pixels",
        {"data": traces, "layout": axes},
        Data(("run", "block", "distance_pixels", "n"), rows),
        "Small dots: single heads.",
        legend(run for run, _ in found),
        wide=True,
    )


def _heads(run: RunData, blocks: Sequence[str], heads: Array) -> dict[str, Any]:
    """Return a dot for each head of each block, from distances [L, heads]."""
    dots = [
        (block, distance)
        for block, row in zip(blocks, heads.tolist(), strict=True)
        for distance in row
        if np.isfinite(distance)
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [block for block, _ in dots],
        "y": [distance for _, distance in dots],
        "meta": run.color,
        "name": plain(run.label),
        "opacity": 0.45,
        "hoverinfo": "skip",
        "marker": {"size": 4, "color": style(run.color)["color"]},
    }
