"""How active each block of a network is, and how large its weights and what it puts out are.

A unit is active where its activation is above 0. For the ReLU and GELU families, whose members have
the sign of their input, it is the same to count before or after. The paper leaves open which MLPs
of a Mixer it counts, and of which tensor and over what its norms of activations are; here the token
and the channel MLP are told apart, and the tensor is
the output of a block: the residual stream of a ViT or Mixer, past the last ReLU in a ResNet.

Source: arXiv:2106.01548, section 4.4 and Table 3."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from samovar.config import MeasureConfig
from samovar.measure.capture import block_of, capture, channel_axis, network
from samovar.measure.subject import Subject
from samovar.restore import bare
from samovar.runs.records import Record

Per = Literal["token", "image"]

_FAMILY = re.compile("relu|gelu|silu|swish|mish|elu", re.IGNORECASE)
_POSITIONS = re.compile(
    r"rel_pos|pos_embed|cpb_mlp|meta_mlp"
)  # of relative positions: no images in there
_LAYERS = {
    "token": re.compile(r"mlp_tokens|token_mix"),
    "channel": re.compile(r"mlp_channels|channel_mix"),
    "mlp": re.compile(r"mlp|ffn|feed_?forward|intermediate"),
}


@dataclass(frozen=True)
class ActiveFraction:
    """The share of a layer's units that are above 0, over images, tokens and units."""

    block: str
    """Name of the module; the activation's own where a network has no list of blocks."""
    layer: str
    """`token`, `channel` or `mlp` by the names around it, else all activations of a family:
    `relu`."""
    index: int
    """Position of the block."""
    active: int
    total: int
    images: int
    stderr: float | None
    """Over images; None for a single one."""

    @property
    def fraction(self) -> float:
        """Active units by all units."""
        return self.active / self.total


@dataclass(frozen=True)
class BlockNorm:
    """The size of a block's weights or output."""

    block: str
    index: int
    value: float
    stderr: float | None = None
    """Over images; None for a single one, and for weights."""


def active_fractions(model: nn.Module, batches: Iterable[Any]) -> list[ActiveFraction]:
    """Share of units above 0 in each layer of activations, block by block, from exact counts; one
    pass in eval mode.

    Activations are found by the class of their module, which must be of the ReLU or GELU families
    (or SiLU, Mish, ELU); functions like `F.gelu` are not seen. In a gated MLP it is the gate that
    is counted. What is outside of all blocks, as the stem of a ResNet, and networks of positions
    alone are left out.

    Args:
        model: any; comes back as it was.
        batches: images [B, C, H, W], tuples that begin with them, or objects that have them as
            `images`.

    Raises:
        ValueError: no batches, no activations, logits that are not finite."""
    return _look(model, batches, "token")[0]


def activation_norms(
    model: nn.Module, batches: Iterable[Any], *, per: Per = "token"
) -> list[BlockNorm]:
    """Mean L2 norm of the output of each block that has activations in it; one pass in eval mode.

    Args:
        model, batches: as in `active_fractions`.
        per: "token", the norm over channels of each token or pixel; "image", over all of an image's
            output.

    Raises:
        ValueError: as in `active_fractions`, or an unknown `per`."""
    if per not in ("token", "image"):
        raise ValueError(f"per={per!r} is unknown; pick 'token' or 'image'")
    return _look(model, batches, per)[1]


def weight_norms(model: nn.Module) -> list[BlockNorm]:
    """L2 norm of all parameters in each block that has activations in it, biases and scales
    included, if it has any.

    Raises:
        ValueError: no activations."""
    body = network(model)
    blocks = dict.fromkeys(block for block, _ in _layers(body))
    modules = [(i, block, body.get_submodule(block)) for i, block in enumerate(blocks)]
    return [
        BlockNorm(block, i, weight_norm(module))
        for i, block, module in modules
        if any(True for _ in module.parameters())
    ]


def weight_norm(model: nn.Module) -> float:
    """L2 norm of all parameters."""
    return math.hypot(
        *(
            float(torch.linalg.vector_norm(p.detach(), dtype=torch.float64))
            for p in model.parameters()
        )
    )


# --- one pass
# --------------------------------------------------------------------------------------------------------


def _look(
    model: nn.Module, batches: Iterable[Any], per: Per
) -> tuple[list[ActiveFraction], list[BlockNorm]]:
    model = bare(model)
    body = network(model)
    layers = _layers(body)
    blocks = list(dict.fromkeys(block for block, _ in layers))
    names = [name for inside in layers.values() for name in inside]
    units, counts = dict.fromkeys(layers, 0), {layer: list[Tensor]() for layer in layers}
    norms = {block: list[Tensor]() for block in blocks}
    with (
        torch.no_grad(),
        capture(body, names, keep=_count) as active,
        capture(body, blocks, keep=_NORMS[per]) as outputs,
    ):
        for images in map(_images, batches):
            if not model(images).isfinite().all():
                raise ValueError(
                    "the model's logits are not finite; check its weights and the images"
                )
            for layer, inside in layers.items():
                calls = [call for name in inside for call in active.outputs[name]]
                units[layer] += sum(size for _, size in calls)
                counts[layer] += (
                    [_per_image([count for count, _ in calls], len(images)).sum(1)] if calls else []
                )
            for block, found in outputs.outputs.items():
                norms[block] += [_per_image(found, len(images)).mean(1)] if found else []
            active.clear()
            outputs.clear()
    if not any(counts.values()):
        raise ValueError("batches is empty; give at least one batch")
    fractions = [
        _fraction(layer, blocks.index(layer[0]), units[layer], torch.cat(found).cpu())
        for layer, found in counts.items()
        if found
    ]
    sizes = [
        _mean_norm(block, blocks.index(block), torch.cat(found))
        for block, found in norms.items()
        if found
    ]
    return fractions, sizes


def _layers(body: nn.Module) -> dict[tuple[str, str], list[str]]:
    """Names of the activations by (block, layer), in the order in which the model defines them."""
    found = [
        (name, block_of(name, body) or name, kind.group().lower())
        for name, module in body.named_modules()
        if (kind := _FAMILY.search(type(module).__name__))
        and not any(True for _ in module.children())
        if not _POSITIONS.search(name)
    ]
    if not found:
        raise ValueError(
            f"{type(body).__name__} has no module that is an activation, and functions like F.relu are not seen; "
            "make them modules (nn.ReLU(), nn.GELU())"
        )
    blocks = {block for name, block, _ in found if block != name} or {name for name, _, _ in found}
    outer = {block for block in blocks if any(other.startswith(f"{block}.") for other in blocks)}
    layers: dict[tuple[str, str], list[str]] = {}
    for name, block, family in found:
        if block in blocks - outer:
            inside = name.removeprefix(block)
            kinds = (kind for kind, pattern in _LAYERS.items() if pattern.search(inside))
            layers.setdefault((block, next(kinds, family)), []).append(name)
    return layers


def _images(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, tuple | list) else getattr(batch, "images", batch)
    if not isinstance(images, Tensor):
        raise ValueError(
            f"a batch is {type(batch).__name__}; give images, a tuple that begins with them, or a Batch"
        )
    return images


def _count(output: Tensor) -> tuple[Tensor, int]:
    return (output > 0).flatten(1).sum(1), output.numel()


_NORMS: dict[Per, Callable[[Tensor], Tensor]] = {
    "token": lambda output: _norm(output, channel_axis(output)),
    "image": lambda output: _norm(output, tuple(range(1, output.ndim))),
}


def _norm(output: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    dtype = torch.promote_types(output.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(output, dim=axes, dtype=dtype)
    return norm


def _per_image(calls: list[Tensor], batch_size: int) -> Tensor:
    """[B, *] of what calls gave for B images first, or for windows of them."""
    if any(len(call) % batch_size for call in calls):
        raise ValueError(
            f"{batch_size} images give {len(calls[0])} rows inside; give a model with the batch first"
        )
    return torch.cat([call.reshape(batch_size, -1) for call in calls], 1)


def _fraction(layer: tuple[str, str], index: int, units: int, counts: Tensor) -> ActiveFraction:
    shares = counts.double() * len(counts) / units
    return ActiveFraction(*layer, index, int(counts.sum()), units, len(counts), _stderr(shares))


def _mean_norm(block: str, index: int, norms: Tensor) -> BlockNorm:
    return BlockNorm(block, index, float(norms.double().mean()), _stderr(norms.double()))


def _stderr(values: Tensor) -> float | None:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None


# --- the measurement
# -------------------------------------------------------------------------------------------------

_TENSOR = "output of each activation in the layer; its sign is that of its input"
_PAPER = "arXiv:2106.01548"


def activations(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """Share of active units in each MLP, and norms of weights and activations, block by block."""
    fractions, norms = _look(subject.model, subject.batches, "token")
    cost: dict[str, float] = {"forwards": len(subject.batches)}
    settings: Mapping[str, Any] = {
        "tensor": _TENSOR,
        "threshold": 0.0,
        "average": "images, tokens and units",
    }
    for found in fractions:
        yield Record(
            "inside/active_fraction", found.fraction, "1", found.stderr, found.images,
            where={"block": found.block, "layer": found.layer, "index": found.index},
            settings=dict(settings), cost=cost, source=f"{_PAPER}, section 4.4",
        )  # fmt: skip
    settings = {
        "tensor": "output of the block",
        "norm": "L2 over channels",
        "average": "tokens or pixels, and images",
    }
    for norm in norms:
        yield Record(
            "inside/activation_norm", norm.value, "", norm.stderr, fractions[0].images,
            where={"block": norm.block, "index": norm.index},
            settings=dict(settings), source=f"{_PAPER}, Table 3",
        )  # fmt: skip
    settings = {"tensor": "all parameters of the block", "norm": "L2"}
    for norm in weight_norms(subject.model):
        where = {"block": norm.block, "index": norm.index}
        yield Record("inside/weight_norm", norm.value, where=where, settings=dict(settings))
    settings = {"tensor": "all parameters", "norm": "L2"}
    total = weight_norm(subject.model)
    yield Record(
        "inside/total_weight_norm", total, settings=dict(settings), source=f"{_PAPER}, Table 3"
    )
