"""Find the row of the table that a state dict under timm's names belongs to.

Names and shapes do not identify a network fully. The number of heads is checked where a file has
it; GELU, eps and standardized kernels are assumed to be those of Google's code, so use this for
Google's files only."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from samovar.models.table import MODELS, Family, Variant

if TYPE_CHECKING:
    from torch import Tensor

Signature = tuple[object, ...]
_SHOWN = 3


def recognize(tensors: Mapping[str, Tensor], heads: int = 0) -> str:
    """Return the name of the row whose network has these tensors.

    Args:
        tensors: a state dict under timm's names.
        heads: attention heads; 0: unknown.

    Raises:
        ValueError: no row has these sizes; says what was found."""
    found = _signature_of_tensors(tensors)
    if found is None:
        raise ValueError(f"{names_of(tensors)} fit no ViT, Mixer or ResNet under timm's names")
    for name, row in MODELS.items():
        # files without a number of heads match every row of the other sizes; the first one wins
        if _signature_of_row(row) == found and heads in (0, row.heads):
            return name
    raise ValueError(
        f"{_in_words(found, heads)} is not in the table of `samovar list models`; "
        "a function of yours that makes the network takes the weights: --model module:function"
    )


def names_of(tensors: Collection[str]) -> str:
    """Return how many names there are, and the first few."""
    first = ", ".join(sorted(tensors)[:_SHOWN]) or "none"
    return f"its {len(tensors)} names ({first}{', ...' if len(tensors) > _SHOWN else ''})"


def side_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the side in pixels of a ViT's or Mixer's training images.

    It is 0 where the tensors do not show it."""
    for kernel, per_patch, axis in (
        ("patch_embed.proj", "pos_embed", 1),
        ("stem.proj", "blocks.0.mlp_tokens.fc1", 1),
    ):
        places = tensors.get(per_patch, tensors.get(f"{per_patch}.weight"))
        weight = tensors.get(f"{kernel}.weight")
        if places is not None and weight is not None and places.ndim >= 2:
            # isqrt drops the class token, which adds less than one more row of patches
            return math.isqrt(places.shape[axis]) * weight.shape[-1]
    return 0


def _signature_of_row(row: Variant) -> Signature:
    if row.family == "resnet":
        return (row.family, row.width, row.stages, row.bottleneck, row.groups > 0)
    return (row.family, row.width, row.depth, row.patch, row.pool)


def _signature_of_tensors(tensors: Mapping[str, Tensor]) -> Signature | None:
    for family, kernel, block in _SIGNS:
        blocks = {found.groups() for name in tensors if (found := re.match(block, name))}
        if blocks and kernel in tensors and tensors[kernel].ndim == 4:
            width, _, patch, _ = tensors[kernel].shape
            if family == "resnet":
                stages = tuple(sum(stage == str(i) for stage, _ in blocks) for i in (1, 2, 3, 4))
                # timm calls GroupNorm bn1 too, but only BatchNorm has running statistics
                group_norm = "bn1.running_mean" not in tensors
                return (family, width, stages, "layer1.0.conv3.weight" in tensors, group_norm)
            pooled = family == "vit" and "cls_token" not in tensors
            return (family, width, len(blocks), patch, "mean" if pooled else "token")
    return None


def _in_words(found: Signature, heads: int) -> str:
    if found[0] == "resnet":
        _, width, stages, bottleneck, group_norm = found
        blocks = "bottleneck" if bottleneck else "basic"
        norm = "GroupNorm" if group_norm else "BatchNorm"
        return f"a ResNet of width {width} with {stages} {blocks} blocks and {norm}"
    family, width, depth, patch, pool = found
    sizes = f"of width {width}, depth {depth}, patch {patch}"
    if family == "mixer":
        return f"a Mixer {sizes}"
    token = "with a class token" if pool == "token" else "without a class token"
    return f"a ViT {sizes}, {heads or 'some'} heads, {token}"


_SIGNS: list[tuple[Family, str, str]] = [
    ("vit", "patch_embed.proj.weight", r"blocks\.(\d+)\.attn\.qkv\."),
    ("mixer", "stem.proj.weight", r"blocks\.(\d+)\.mlp_tokens\."),
    ("resnet", "conv1.weight", r"layer(\d)\.(\d+)\.conv1\."),
]
"""Family, its first kernel, and a pattern for its blocks."""
