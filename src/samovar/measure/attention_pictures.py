"""The measurement `attention`: what can be drawn of the inside of a network, and its numbers.

Maps and distances of attention of a ViT, token-mixing weights of a Mixer, mean feature maps of any
other network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from samovar.anymodel.devices import to_float64_device
from samovar.config import MeasureConfig
from samovar.measure.attention import (
    NothingToDraw,
    attention_distance,
    attention_maps,
    patch_distances,
    patch_grid,
    rollout,
)
from samovar.measure.capture import block_of, network
from samovar.measure.feature_maps import channel_means, token_mixing
from samovar.measure.predictions import pick, save, to_rgb
from samovar.measure.subject import Subject
from samovar.runs.records import Record

IMAGES_PER_PASS = 4
"""Attention of ViT-S/8 at 224 pixels takes 180 MB an image."""


def attention(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Measure attention of a ViT, token mixing of a Mixer, mean feature maps of other networks."""
    shown = pick(subject, config)
    columns, records = _draw(subject.model, shown.images)
    columns |= {"images": to_rgb(shown.images)}
    columns |= {key: getattr(shown, key).cpu().numpy() for key in ("labels", "predicted")}
    path = save(arrays, "attention", subject, config, columns)
    for record in records:
        settings = record.settings | {"pictures": config.pictures}
        yield replace(record, settings=settings, arrays=path)


def _draw(model: nn.Module, images: Tensor) -> tuple[dict[str, Any], list[Record]]:
    """Return the arrays and records of the first kind of picture that the network has."""
    for draw in (_draw_attention, _draw_token_mixing, _draw_channel_means):
        try:
            return draw(model, images)
        except NothingToDraw:  # the next kind may be there
            continue
    raise ValueError(
        f"{type(network(model)).__name__} has nothing for `attention` to draw: no attention over "
        "all patches, no token-mixing layer, no feature maps [B, C, h, w]; leave it out, measure "
        "`activations` instead"
    )


def _draw_attention(model: nn.Module, images: Tensor) -> tuple[dict[str, Any], list[Record]]:
    """Return attention maps, rollout and distances, and a record of the distance for each layer."""
    # [N, N] probabilities of all layers and heads are large: only maps and means are kept
    parts = []
    for chunk in _chunks(images):
        found = attention_maps(model, chunk)
        pixels = (images.shape[-2] / found.grid[0], images.shape[-1] / found.grid[1])
        prefix = found.num_prefix_tokens
        heads = [found.to_patches(layer) for layer in found.probabilities]
        distances = [attention_distance(p, found.grid, pixels, prefix) for p in found.probabilities]
        through = found.to_patches(rollout(found.probabilities))
        maps = torch.stack([layer.mean(1) for layer in heads], 1)
        # [L, H, n]: layers may differ in their number of heads
        padded = pad_sequence([d.T for d in distances], True, math.nan)
        parts.append((maps, heads[-1], through, padded.permute(2, 0, 1)))
    arrays = [torch.cat(part).float().cpu().numpy() for part in zip(*parts, strict=True)]
    columns: dict[str, Any] = dict(
        zip(("maps", "heads", "rollout", "distance"), arrays, strict=True)
    )
    distance = columns["distance"]  # [n, L, H]
    columns |= {"kind": np.array("attention"), "distance": distance.mean(0)}
    settings = {
        "query": "class token" if found.query == "class" else "mean over patches",
        "prefix_tokens": prefix,
        "patch_pixels": list(pixels),
        "between": "patches, renormalized",
        "average": "heads, queries, images",
    }
    return columns, list(
        _distance_records(found.layers, np.nanmean(distance, 2), settings, network(model))
    )


def _chunks(images: Tensor) -> Iterator[Tensor]:
    return (
        images[first : first + IMAGES_PER_PASS] for first in range(0, len(images), IMAGES_PER_PASS)
    )


def _distance_records(
    layers: Sequence[str], distance: Any, settings: dict[str, Any], body: nn.Module
) -> Iterator[Record]:
    """Yield a record for each layer of distances [n, L]."""
    n = len(distance)
    for index, (name, values) in enumerate(zip(layers, distance.T, strict=True)):
        yield Record(
            "attention/distance",
            float(values.mean()),
            "pixels",
            float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None,
            n,
            where={"block": block_of(name, body) or name, "index": index},
            settings=settings,
            source="arXiv:2010.11929, figure 7",
        )


def _draw_token_mixing(model: nn.Module, images: Tensor) -> tuple[dict[str, Any], list[Record]]:
    """Return the token-mixing weights as images, and a record of the distance they mix over."""
    weights = token_mixing(model)
    grid, _ = patch_grid(network(model), weights.shape[1], (images.shape[-2], images.shape[-1]))
    pixels = (images.shape[-2] / grid[0], images.shape[-1] / grid[1])
    # the squares of a unit's weights, as a distribution over the patches that it reads
    shares = to_float64_device(weights).double().square()
    shares = shares / shares.sum(1, keepdim=True)
    spread = ((shares @ patch_distances(grid, pixels).to(shares)) * shares).sum(1)
    columns = {
        "kind": np.array("token-mixing"),
        "maps": weights.float().reshape(1, -1, *grid).cpu().numpy(),
    }
    settings = {
        "layer": "first token MLP, incoming weights",
        "patch_pixels": list(pixels),
        "average": "hidden units",
        "value": "distance of two patches drawn by a unit's squared weights",
    }
    value = float(spread.nanmean())
    record = Record(
        "attention/token_mixing",
        value,
        "pixels",
        n=len(weights),
        settings=settings,
        source="arXiv:2105.01601",
    )
    return columns, [record]


def _draw_channel_means(model: nn.Module, images: Tensor) -> tuple[dict[str, Any], list[Record]]:
    """Return the mean feature maps of each stage, and a record of the mean over the last one."""
    chunks = [channel_means(model, chunk) for chunk in _chunks(images)]
    maps = [torch.cat(stage).float().cpu().numpy() for stage in zip(*chunks, strict=True)]
    columns: dict[str, Any] = {"kind": np.array("channel-mean")} | {
        f"maps{i}": stage for i, stage in enumerate(maps)
    }
    settings = {
        "tensor": "output of each stage, mean over channels",
        "value": "mean over the last stage's map",
    }
    return columns, [
        Record("attention/channel_mean", float(maps[-1].mean()), n=len(images), settings=settings)
    ]
