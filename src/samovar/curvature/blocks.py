"""Blocks of a network, as lists of parameter names: the columns of the paper's Table 3.

The paper does not say where LayerNorms, position embeddings and class tokens belong. Here a
numbered block contains everything in it, including its LayerNorms. `msa`, `mlp`, `token_mlp` and
`channel_mlp` contain those modules of all blocks, without the LayerNorms before them. `embedding`
is the patch embedding module only. Position embedding, class token, the last norm and the head are
only in `whole`. No block's largest eigenvalue exceeds that of the whole (Cauchy).

Source: arXiv:2106.01548, Table 3."""

from __future__ import annotations

import re

from torch import nn

from samovar.anymodel.restore import bare
from samovar.curvature.inputs import match

__all__ = ["blocks", "match"]

# For each kind of network: patterns that some parameter names must start with, and the patterns of
# its blocks.
_KINDS: list[tuple[list[str], dict[str, str]]] = [
    (
        [r"patch_embed\.", r"blocks\.\d+\.attn\.", r"blocks\.\d+\.mlp\."],
        {
            "embedding": r"patch_embed\.",
            "msa": r"blocks\.\d+\.attn\.",
            "mlp": r"blocks\.\d+\.mlp\.",
        },
    ),
    (
        [r"stem\.", r"blocks\.\d+\.mlp_tokens\.", r"blocks\.\d+\.mlp_channels\."],
        {
            "embedding": r"stem\.",
            "token_mlp": r"blocks\.\d+\.mlp_tokens\.",
            "channel_mlp": r"blocks\.\d+\.mlp_channels\.",
        },
    ),
    (  # timm's ResNet, torchvision's too; the stem is what comes before the first stage
        [r"conv1\.", r"layer1\.", r"layer4\."],
        {
            "stem": r"(conv1|bn1)\.",
            **{f"stage{i}": rf"layer{i}\." for i in (1, 2, 3, 4)},
            "head": r"fc\.",
        },
    ),
    (  # timm's ResNetV2 (BiT), ConvNeXt
        [r"stem\.", r"stages\.0\."],
        {
            "stem": r"stem\.",
            **{f"stage{i + 1}": rf"stages\.{i}\." for i in range(4)},
            "head": r"head\.",
        },
    ),
]


def blocks(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the trainable parameters in each block, for an operator's `params`.

    - ViT and similar: embedding, msa, mlp, block1, the middle block, the last block (block6 and
      block12 of 12), whole.
    - MLP-Mixer: embedding, token_mlp, channel_mlp, numbered blocks as for ViT, whole.
    - ResNet, ResNetV2, ConvNeXt: stem, stage1 to stage4, head, whole.
    - Any other network: its direct submodules that have parameters, whole.

    Wrappers without parameters, such as a normalization of images, are looked through; the names
    are those of the outer model. Blocks without trainable parameters are left out.

    Raises:
        ValueError: the model has no trainable parameters."""
    model = bare(model)
    names = [name for name, param in model.named_parameters() if param.requires_grad]
    if not names:
        raise ValueError("the model has no trainable parameters; unfreeze some (requires_grad_)")
    inner, prefix = _unwrapped(model)
    found = {
        title: _starting(names, prefix, pattern) for title, pattern in _patterns(inner).items()
    }
    return {title: inside for title, inside in found.items() if inside} | {"whole": names}


def _unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the innermost module that still holds all parameters, and its prefix of names."""
    prefix = ""
    while not any(True for _ in model.parameters(recurse=False)):
        filled = [
            (name, child)
            for name, child in model.named_children()
            if any(True for _ in child.parameters())
        ]
        if len(filled) != 1:
            break
        name, model = filled[0]
        prefix += f"{name}."
    return model, prefix


def _patterns(network: nn.Module) -> dict[str, str]:
    names = [name for name, _ in network.named_parameters()]
    for required, patterns in _KINDS:
        if all(_starting(names, "", pattern) for pattern in required):
            return patterns | _numbered(names)
    return {child: re.escape(child) + r"\." for child, _ in network.named_children()}


def _numbered(names: list[str]) -> dict[str, str]:
    """Return patterns of the first, middle and last of `blocks`, counted from 1."""
    depth = len({found[1] for name in names if (found := re.match(r"blocks\.(\d+)\.", name))})
    chosen = sorted({1, (depth + 1) // 2, depth}) if depth else []
    return {f"block{i}": rf"blocks\.{i - 1}\." for i in chosen}


def _starting(names: list[str], prefix: str, pattern: str) -> list[str]:
    """Return the names that start with a pattern, compiled modules looked through."""
    start = re.escape(prefix.replace("_orig_mod.", "")) + pattern
    return [name for name in names if re.match(start, name.replace("_orig_mod.", ""))]
