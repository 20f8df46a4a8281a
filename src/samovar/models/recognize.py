"""Which row of the table tensors under timm's names are of, told by their names and shapes.

Shapes do not tell everything: the number of heads is checked where a file has it; GELU, eps and
    standardized kernels
are those of Google's code, so this is for its files."""

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
    """The name of the row whose network these tensors are of.

    Args:
        tensors: a state dict under timm's names.
        heads: of attention; 0 is not known.

    Raises:
        ValueError: no row has these sizes; says what was found."""
    found = _signature(tensors)
    if found is None:
        raise ValueError(f"{names_of(tensors)} are of no ViT, Mixer or ResNet under timm's names")
    for name, row in MODELS.items():
        if _signature_of(row) == found and heads in (0, row.heads):
            return name
    raise ValueError(f"{_said(found, heads)} is none of ours (`samovar list models`)")


def names_of(tensors: Collection[str]) -> str:
    """The first few names and how many there are."""
    first = ", ".join(sorted(tensors)[:_SHOWN]) or "none"
    return f"its {len(tensors)} names ({first}{', ...' if len(tensors) > _SHOWN else ''})"


def side_of(tensors: Mapping[str, Tensor]) -> int:
    """Side in pixels of the images that a ViT or Mixer was trained on; 0 where tensors do not tell
    it."""
    for kernel, per_patch, axis in (
        ("patch_embed.proj", "pos_embed", 1),
        ("stem.proj", "blocks.0.mlp_tokens.fc1", 1),
    ):
        places = tensors.get(per_patch, tensors.get(f"{per_patch}.weight"))
        weight = tensors.get(f"{kernel}.weight")
        if places is not None and weight is not None and places.ndim >= 2:
            return (
                math.isqrt(places.shape[axis]) * weight.shape[-1]
            )  # class tokens are fewer than a further row
    return 0


def _signature_of(row: Variant) -> Signature:
    if row.family == "resnet":
        return (row.family, row.width, row.stages, row.bottleneck, row.groups > 0)
    return (row.family, row.width, row.depth, row.patch, row.pool)


def _signature(tensors: Mapping[str, Tensor]) -> Signature | None:
    for family, kernel, block in _SIGNS:
        blocks = {found.groups() for name in tensors if (found := re.match(block, name))}
        if blocks and kernel in tensors and tensors[kernel].ndim == 4:
            width, _, patch, _ = tensors[kernel].shape
            if family == "resnet":
                stages = tuple(sum(stage == str(i) for stage, _ in blocks) for i in (1, 2, 3, 4))
                group_norm = "bn1.running_mean" not in tensors
                return (family, width, stages, "layer1.0.conv3.weight" in tensors, group_norm)
            pooled = family == "vit" and "cls_token" not in tensors
            return (family, width, len(blocks), patch, "mean" if pooled else "token")
    return None


def _said(found: Signature, heads: int) -> str:
    if found[0] == "resnet":
        blocks = "bottleneck" if found[3] else "basic"
        return f"a ResNet of width {found[1]} with {found[2]} {blocks} blocks and {'Group' if found[4] else 'Batch'}Norm"
    pool = {"token": "with a class token", "mean": "without a class token"}[str(found[4])]
    title = f"a Mixer of width {found[1]}, depth {found[2]}, patch {found[3]}"
    return (
        title
        if found[0] == "mixer"
        else f"{title.replace('Mixer', 'ViT')}, {heads or 'some'} heads, {pool}"
    )


_SIGNS: list[tuple[Family, str, str]] = [
    ("vit", "patch_embed.proj.weight", r"blocks\.(\d+)\.attn\.qkv\."),
    ("mixer", "stem.proj.weight", r"blocks\.(\d+)\.mlp_tokens\."),
    ("resnet", "conv1.weight", r"layer(\d)\.(\d+)\.conv1\."),
]
"""Family, its first kernel, and a pattern for its blocks."""
