"""Pictures from inside a network: where a ViT attends, what a Mixer mixes, what the stages of a
ResNet respond to.

Attention of the class token is to the patches, without its attention to itself and not
renormalized, as in DINO. Where a network pools patches instead of reading a class token, it is the
mean over the patches' queries. Distances are between centres of patches, in pixels; prefix tokens
have no place, so they are left out and the rest renormalized.

Source: arXiv:2106.01548, appendix B.2; rollout: Abnar and Zuidema, arXiv:2005.00928; mean attention
    distance:
Dosovitskiy et al., arXiv:2010.11929; token-mixing weights: Tolstikhin et al., arXiv:2105.01601."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from samovar.config import MeasureConfig
from samovar.measure.capture import block_of, capture, channel_axis, network
from samovar.measure.predictions import pick, save, to_rgb
from samovar.measure.subject import Subject
from samovar.restore import bare
from samovar.runs.records import Record

IMAGES_PER_PASS = 4  # attention of ViT-S/8 at 224 pixels takes 180 MB an image

Pair = tuple[float, float]


class NothingToDraw(ValueError):
    """A network without what was asked for."""


@dataclass(frozen=True)
class Attention:
    """Who attends to whom, layer by layer."""

    layers: tuple[str, ...]
    """Names of the modules that attend, in the order in which they ran."""
    probabilities: tuple[Tensor, ...]
    """Of each layer [n, H, N, N]: image, head, query, key; float32 at least."""
    grid: tuple[int, int]
    """Patches down and across, h and w."""
    num_prefix_tokens: int
    """Class and register tokens before the patches."""
    query: Literal["class", "mean"]
    """Whose attention `to_patches` takes: the class token's, or the mean of all patches'."""

    def to_patches(self, probabilities: Tensor) -> Tensor:
        """[..., h, w] of probabilities [..., N, N]: what the class token, or the mean patch,
        attends to."""
        first = self.num_prefix_tokens
        rows = (
            probabilities[..., 0, :]
            if self.query == "class"
            else probabilities[..., first:, :].mean(-2)
        )
        return rows[..., first:].reshape(*rows.shape[:-1], *self.grid)


def attention_maps(model: nn.Module, images: Tensor) -> Attention:
    """Attention probabilities of all layers of a ViT for images [n, C, H, W]; fused attention or
    not.

    Attention with a single query, as in a pooling head, is left out. Memory: n H N^2 numbers a
    layer.

    Raises:
        ValueError: the model has no attention, or none over all patches, as with windows or several
            resolutions.

    Source: appendix B.2 of Chen et al., arXiv:2106.01548."""
    model = bare(model)
    body = network(model)
    with torch.no_grad(), capture(body, attention=True) as seen:
        model(images)
    calls = [(name, found) for name, found in seen.attention if found.shape[-2] > 1]
    title = type(body).__name__
    if not calls:
        raise NothingToDraw(
            f"{title} has no attention that torch computes; for token-mixing weights of a Mixer call token_mixing, for "
            "feature maps of a convolutional network channel_means"
        )
    shapes = {(found.ndim, len(found), *found.shape[-2:]) for _, found in calls}
    tokens = calls[0][1].shape[-1]
    if shapes != {(4, len(images), tokens, tokens)}:
        raise NothingToDraw(
            f"{title} attends within windows or at several resolutions, so there is no map of the whole image; "
            "capture(model, attention=True) gives the probabilities, channel_means the feature maps"
        )
    grid, prefix = _geometry(body, tokens, (images.shape[-2], images.shape[-1]))
    query: Literal["class", "mean"] = "class" if prefix and _reads_class_token(body) else "mean"
    return Attention(
        tuple(name for name, _ in calls), tuple(found for _, found in calls), grid, prefix, query
    )


def rollout(
    probabilities: Sequence[Tensor], *, fuse: Literal["mean", "max", "min"] = "mean"
) -> Tensor:
    """Attention through all layers, [n, N, N]: the product, last layer first, of (fused heads +
    identity) / 2.

    Args:
        probabilities: of each layer [n, H, N, N].
        fuse: how the heads of a layer become one; rows are renormalized afterwards. The paper's is
            the mean.

    Source: Abnar and Zuidema, arXiv:2005.00928."""
    if not len(probabilities) or fuse not in _FUSE:
        raise ValueError(
            f"{len(probabilities)} layers, fuse={fuse!r}; give a layer or more and one of {list(_FUSE)}"
        )
    eye = torch.eye(probabilities[0].shape[-1]).to(probabilities[0])
    product = eye
    for layer in probabilities:
        mixed = (_FUSE[fuse](layer) + eye) / 2
        product = mixed / mixed.sum(-1, keepdim=True) @ product
    return product


_FUSE = {
    "mean": lambda layer: layer.mean(-3),
    "max": lambda layer: layer.amax(-3),
    "min": lambda layer: layer.amin(-3),
}


def attention_distance(
    probabilities: Tensor, grid: tuple[int, int], patch_pixels: Pair, num_prefix_tokens: int = 0
) -> Tensor:
    """Mean distance in pixels [...] between a patch and those it attends to, of probabilities [...,
    N, N].

    The mean over the patches' queries, a query that attends to prefix tokens alone left out.

    Args:
        probabilities: the last two axes are queries and keys.
        grid: patches down and across.
        patch_pixels: height and width of a patch.
        num_prefix_tokens: class and register tokens, which come first.

    Source: Dosovitskiy et al., arXiv:2010.11929, figure 7."""
    inside = probabilities[..., num_prefix_tokens:, num_prefix_tokens:]
    mass = inside.sum(-1)
    between = _distances(grid, patch_pixels).to(inside)
    means = torch.where(mass == 0, 0.0, (inside * between).sum(-1) / mass)
    return means.sum(-1) / (mass != 0).sum(-1)


def token_mixing(model: nn.Module) -> Tensor:
    """Weights [C, N] by which the C hidden units of a Mixer's first token MLP see the N patches.

    Raises:
        ValueError: the model has no token mixing."""
    body = network(model)
    for name, module in body.named_modules():
        if _TOKEN_MIXING.search(name) and isinstance(module, nn.Linear):
            return module.weight.detach().clone()
    raise NothingToDraw(
        f"{type(body).__name__} has no token-mixing layer (mlp_tokens.fc1, linear_tokens); for a ViT call "
        "attention_maps, for a convolutional network channel_means"
    )


_TOKEN_MIXING = re.compile(r"(^|\.)(mlp_tokens\.fc1|linear_tokens|mlp_channels\.gate\.proj)$")


def channel_means(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Mean over channels [n, h, w] of the feature maps that each stage of a convolutional network
    ends with.

    Stages are modules like `layer1`, `stages.0` or `layers.0`; without such, all blocks up to a
    change of resolution, and without blocks all layers of the network or of sequences in it.

    Raises:
        ValueError: the model has no feature maps."""
    model = bare(model)
    body = network(model)
    modules = dict(body.named_modules())
    stages = [name for name in modules if _STAGE.search(name)]
    stages = [name for name in stages if not any(name.startswith(f"{other}.") for other in stages)]
    inner = [name for name, module in modules.items() if any(True for _ in module.children())]
    parents = {name: body.get_submodule(name.rpartition(".")[0]) for name in modules if name}
    layers = [
        name
        for name, parent in parents.items()
        if parent is body or isinstance(parent, nn.Sequential)
    ]
    found: list[Tensor] = []
    for chosen in (stages, inner, layers):
        if len(found) < 2:
            found = _last_maps(model, images, chosen, by_size=chosen is not stages) or found
    if not found:
        raise NothingToDraw(
            f"{type(body).__name__} has no feature maps [B, C, h, w] between layers; call attention_maps for a ViT, "
            "token_mixing for a Mixer"
        )
    return found


_STAGE = re.compile(r"^(\w+\.)*?(layer[1-4]|stages\.\d+|layers\.\d+)$")


def _last_maps(
    model: nn.Module, images: Tensor, modules: list[str], *, by_size: bool
) -> list[Tensor]:
    """Mean over channels of each module's feature maps, or of the last at each resolution above 1 x
    1."""
    latest: dict[tuple[int, ...], Tensor] = {}

    def keep(output: Tensor) -> Tensor | None:
        if output.ndim != 4 or len(output) != len(images):
            return None
        mean = output.mean(channel_axis(output))
        rows, columns = mean.shape[1:]
        if abs(rows * images.shape[-1] - columns * images.shape[-2]) > max(images.shape[-2:]):
            return None  # of another shape than the images, by more than the rounding of strides
        latest[rows, columns] = mean
        return mean

    with torch.no_grad(), capture(network(model), modules, keep=keep) as seen:
        model(images)
    if by_size:
        return [mean for size, mean in latest.items() if size != (1, 1)]
    return [calls[-1] for calls in seen.outputs.values() if calls and calls[-1] is not None]


def _geometry(body: nn.Module, tokens: int, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Patches down and across, and the tokens before them: what the model declares, or the fewest
    that fit."""
    declared = (getattr(module, "num_prefix_tokens", None) for module in body.modules())
    known = [number for number in declared if isinstance(number, int)]
    for prefix in (*known, 0, 1, 2):  # what is declared need not be there in all layers
        patches = tokens - prefix
        rows = round(math.sqrt(max(0, patches) * size[0] / size[1]))
        if rows and rows * rows * size[1] == patches * size[0]:
            return (rows, patches // rows), prefix
    raise NothingToDraw(
        f"{type(body).__name__} has {tokens} tokens, which are no grid of square patches of {size[0]} x {size[1]} "
        "images; capture(model, attention=True) gives the probabilities"
    )


def _reads_class_token(body: nn.Module) -> bool:
    """Whether the head sees token 0, as far as timm's attributes tell; without them, it does."""
    return (
        getattr(body, "global_pool", "token") == "token"
        and getattr(body, "cls_token", body) is not None
    )


def _distances(grid: tuple[int, int], patch_pixels: Pair) -> Tensor:
    """Pixels between the centres of patches, [N, N] in row-major order."""
    rows, columns = (
        torch.arange(n, dtype=torch.float64) * side
        for n, side in zip(grid, patch_pixels, strict=True)
    )
    centres = torch.cartesian_prod(rows, columns)
    return (centres[:, None] - centres).square().sum(-1).sqrt()


# --- the measurement
# -------------------------------------------------------------------------------------------------


def attention(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Attention maps and distances of a ViT, token-mixing weights of a Mixer, mean feature maps of
    other networks."""
    shown = pick(subject, config)
    columns, records = _draw(subject.model, shown.images)
    columns |= {"images": to_rgb(shown.images)}
    columns |= {key: getattr(shown, key).cpu().numpy() for key in ("labels", "predicted")}
    path = save(arrays, "attention", subject, config, columns)
    for record in records:
        settings = record.settings | {"pictures": config.pictures}
        yield Record(**vars(record) | {"settings": settings, "arrays": path})


def _draw(model: nn.Module, images: Tensor) -> tuple[dict[str, Any], list[Record]]:
    """Arrays and records of the first kind of picture that the network has."""
    for draw in (_draw_attention, _draw_token_mixing, _draw_channel_means):
        try:
            return draw(model, images)
        except NothingToDraw:
            continue
    raise ValueError(
        f"{type(network(model)).__name__} has nothing for `attention` to draw: no attention over all patches, no "
        "token-mixing layer, no feature maps [B, C, h, w]; leave it out, measure `activations` instead"
    )


def _draw_attention(model: nn.Module, images: Tensor) -> tuple[dict[str, Any], list[Record]]:
    parts = []
    for chunk in _chunks(images):
        found = attention_maps(model, chunk)
        pixels = (images.shape[-2] / found.grid[0], images.shape[-1] / found.grid[1])
        prefix = found.num_prefix_tokens
        heads = [found.to_patches(layer) for layer in found.probabilities]
        distances = [attention_distance(p, found.grid, pixels, prefix) for p in found.probabilities]
        through = found.to_patches(rollout(found.probabilities))
        maps = torch.stack([layer.mean(1) for layer in heads], 1)
        padded = pad_sequence(
            [d.T for d in distances], True, math.nan
        )  # [L, H, n]: layers may differ in heads
        parts.append((maps, heads[-1], through, padded.permute(2, 0, 1)))
    arrays = [torch.cat(part).float().cpu().numpy() for part in zip(*parts, strict=True)]
    columns: dict[str, Any] = dict(
        zip(("maps", "heads", "rollout", "distance"), arrays, strict=True)
    )
    distance = columns["distance"]  # [n, L, H]
    columns |= {"kind": np.array("attention"), "distance": distance.mean(0)}
    settings = {
        "query": "class token" if found.query == "class" else "mean over patches", "prefix_tokens": prefix,
        "patch_pixels": list(pixels), "between": "patches, renormalized", "average": "heads, queries, images",
    }  # fmt: skip
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
    """A record a layer, of distances [n, L]."""
    n = len(distance)
    for index, (name, values) in enumerate(zip(layers, distance.T, strict=True)):
        yield Record(
            "attention/distance", float(values.mean()), "pixels",
            float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None, n,
            where={"block": block_of(name, body) or name, "index": index}, settings=settings,
            source="arXiv:2010.11929, figure 7",
        )  # fmt: skip


def _draw_token_mixing(model: nn.Module, images: Tensor) -> tuple[dict[str, Any], list[Record]]:
    weights = token_mixing(model)
    grid, _ = _geometry(network(model), weights.shape[1], (images.shape[-2], images.shape[-1]))
    pixels = (images.shape[-2] / grid[0], images.shape[-1] / grid[1])
    shares = weights.double().square()
    shares = shares / shares.sum(1, keepdim=True)
    spread = ((shares @ _distances(grid, pixels).to(shares)) * shares).sum(1)
    columns = {
        "kind": np.array("token-mixing"),
        "maps": weights.float().reshape(1, -1, *grid).cpu().numpy(),
    }
    settings = {
        "layer": "first token MLP, incoming weights", "patch_pixels": list(pixels), "average": "hidden units",
        "value": "distance of two patches drawn by a unit's squared weights",
    }  # fmt: skip
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
