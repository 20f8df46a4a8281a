"""One pass over images that counts active units and takes norms of the outputs of blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from samovar.anymodel.outputs import logits_of
from samovar.anymodel.restore import bare
from samovar.measure.capture import Seen, block_of, capture, channel_axis, network

Per: TypeAlias = Literal["token", "image"]
"""What a norm is taken over: the channels of a token, or all of an image's output."""
LayerName: TypeAlias = tuple[str, str]
"""Block and layer of an `ActiveFraction`."""

# by name, so that the activations of timm and of other libraries count as well
_FAMILY = re.compile("relu|gelu|silu|swish|mish|elu", re.IGNORECASE)
# networks of relative positions: no image passes through them
_POSITIONS = re.compile(r"rel_pos|pos_embed|cpb_mlp|meta_mlp")
# in this order: the names of a Mixer's MLPs contain "mlp" too
_LAYERS = {
    "token": re.compile(r"mlp_tokens|token_mix"),
    "channel": re.compile(r"mlp_channels|channel_mix"),
    "mlp": re.compile(r"mlp|ffn|feed_?forward|intermediate"),
}


@dataclass(frozen=True)
class ActiveFraction:
    """The share of a layer's activations above 0, over images, tokens and units."""

    block: str
    """Name of the module; the activation's own where a network has no list of blocks."""
    layer: str
    """`token`, `channel` or `mlp`, by the names of modules around; else the family, as `relu`."""
    index: int
    """Position of the block."""
    active: int
    total: int
    images: int
    stderr: float | None
    """Standard error over images; None for a single one."""

    @property
    def fraction(self) -> float:
        """Active units divided by all units."""
        return self.active / self.total


@dataclass(frozen=True)
class BlockNorm:
    """The size of a block's weights or output."""

    block: str
    index: int
    value: float
    stderr: float | None = None
    """Standard error over images; None for a single one, and for weights."""


class ActivationTally:
    """Counts of active units, and norms of outputs, of the batches so far."""

    def __init__(self, layers: Mapping[LayerName, list[str]]) -> None:
        self.layers = layers
        self.blocks = list(dict.fromkeys(block for block, _ in layers))
        self._units = dict.fromkeys(layers, 0)
        self._counts = {layer: list[Tensor]() for layer in layers}
        self._norms = {block: list[Tensor]() for block in self.blocks}

    def add(self, active: Seen, outputs: Seen, batch_size: int) -> None:
        """Add a batch; layers and blocks that the model did not call count as absent."""
        for layer, names in self.layers.items():
            calls = [call for name in names for call in active.outputs[name]]
            if calls:
                self._units[layer] += sum(size for _, size in calls)
                counts = _per_image([count for count, _ in calls], batch_size)
                self._counts[layer].append(counts.sum(1))
        for block, norms in outputs.outputs.items():
            if norms:
                self._norms[block].append(_per_image(norms, batch_size).mean(1))

    @property
    def empty(self) -> bool:
        """True before the first batch."""
        return not any(self._counts.values())

    def fractions(self) -> list[ActiveFraction]:
        """Return the active fraction of each layer."""
        found = []
        for (block, layer), parts in self._counts.items():
            if parts:
                # counts are integers, so the fraction is exact for any number of images
                counts, units = torch.cat(parts).cpu(), self._units[block, layer]
                error = _stderr(counts.double() * len(counts) / units)
                index, active = self.blocks.index(block), int(counts.sum())
                found.append(ActiveFraction(block, layer, index, active, units, len(counts), error))
        return found

    def norms(self) -> list[BlockNorm]:
        """Return the mean norm of each block's output."""
        found = []
        for index, block in enumerate(self.blocks):
            if self._norms[block]:
                norms = torch.cat(self._norms[block]).cpu().double()
                found.append(BlockNorm(block, index, float(norms.mean()), _stderr(norms)))
        return found


def run_tally(model: nn.Module, batches: Iterable[Any], per: Per) -> ActivationTally:
    """Run the model over the batches and count what its layers and blocks put out."""
    model = bare(model)
    body = network(model)
    tally = ActivationTally(layers_of(body))
    names = [name for inside in tally.layers.values() for name in inside]
    with (
        torch.no_grad(),
        capture(body, names, keep=_count) as active,
        capture(body, tally.blocks, keep=_NORMS[per]) as outputs,
    ):
        for images in map(_images, batches):
            if not logits_of(model(images)).isfinite().all():
                raise ValueError(
                    "the model's logits are not finite; check its weights and the images"
                )
            tally.add(active, outputs, len(images))
            # only sums per image are kept, so that memory does not grow with the activations
            active.clear()
            outputs.clear()
    if tally.empty:
        raise ValueError("batches is empty; give at least one batch")
    return tally


def layers_of(body: nn.Module) -> dict[LayerName, list[str]]:
    """Return names of activations by (block, layer), in the order in which the model has them."""
    found = _activations(body)
    if not found:
        raise ValueError(
            f"{type(body).__name__} has no module that is an activation, and functions like F.relu "
            "are not seen; make them modules (nn.ReLU(), nn.GELU())"
        )
    # without lists of blocks, each activation is a block of its own
    blocks = {block for name, block, _ in found if block != name} or {name for name, _, _ in found}
    # a block around other blocks is a stage of the network
    stages = {block for block in blocks if any(other.startswith(f"{block}.") for other in blocks)}
    layers: dict[LayerName, list[str]] = {}
    for name, block, family in found:
        if block in blocks - stages:
            inside = name.removeprefix(block)
            kinds = (kind for kind, pattern in _LAYERS.items() if pattern.search(inside))
            layers.setdefault((block, next(kinds, family)), []).append(name)
    return layers


def _activations(body: nn.Module) -> list[tuple[str, str, str]]:
    """Return name, block and family of each module that is an activation."""
    return [
        (name, block_of(name, body) or name, family.group().lower())
        for name, module in body.named_modules()
        if (family := _FAMILY.search(type(module).__name__))
        and not any(True for _ in module.children())
        and not _POSITIONS.search(name)
    ]


def _images(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, tuple | list) else getattr(batch, "images", batch)
    if not isinstance(images, Tensor):
        raise ValueError(
            f"a batch is {type(batch).__name__}; "
            "give images, a tuple that begins with them, or a Batch"
        )
    return images


def _count(output: Tensor) -> tuple[Tensor, int]:
    """Return the active units [B] of each image, and the number of units of the batch."""
    return (output > 0).flatten(1).sum(1), output.numel()


_NORMS: dict[Per, Callable[[Tensor], Tensor]] = {
    "token": lambda output: _norm(output, channel_axis(output)),
    "image": lambda output: _norm(output, tuple(range(1, output.ndim))),
}


def _norm(output: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    # the sum of squares overflows in float16
    dtype = torch.promote_types(output.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(output, dim=axes, dtype=dtype)
    return norm


def _per_image(calls: list[Tensor], batch_size: int) -> Tensor:
    """Return results of calls as [B, *]; their first axis is images, or windows of images."""
    # Swin runs its blocks on windows, several per image, image by image
    if any(len(call) % batch_size for call in calls):
        raise ValueError(
            f"{batch_size} images give {len(calls[0])} rows inside; "
            "give a model with the batch first"
        )
    return torch.cat([call.reshape(batch_size, -1) for call in calls], 1)


def _stderr(values: Tensor) -> float | None:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
