"""Read weights of Google's Flax code from `.npz` files, under timm's names.

Known are ViT, MLP-Mixer and BiT ResNets of google-research/vision_transformer and big_vision,
the SAM and GSAM checkpoints among them: with a class token or pooled, with the optimizer's
prefix or without, and under the child names of either generation. In these files dense kernels
are [in, out], convolutions [H, W, in, out], and attention has an axis of heads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

PREFIXES = ("opt/target/", "target/", "params/")
"""Prefixes of parameters in checkpoints that hold an optimizer, or of the newer code."""


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the weights in a Flax `.npz` file, under timm's names.

    Raises:
        ValueError: no such file, or none of the known layouts; says what was found."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _array(file, name) for name in file.files}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, BadZipFile, MemoryError, OverflowError) as error:
        raise ValueError(
            f"{path} cannot be read as .npz: it is damaged, or holds more than arrays of numbers"
        ) from error
    try:
        return from_flax(arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _array(file: Any, name: str) -> Array:
    """Return an array of an open `.npz`.

    Raises:
        ValueError: its header states more numbers than the file holds, which would be allocated."""
    info = file.zip.getinfo(f"{name}.npy" if f"{name}.npy" in file.zip.NameToInfo else name)
    with file.zip.open(info) as stored:
        version = np.lib.format.read_magic(stored)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{name} has version {version} of the format")
        shape, _, kind = read(stored)
    if math.prod(shape) * kind.itemsize > info.file_size:
        raise ValueError(f"{name} states more numbers than it holds")
    found: Array = file[name]
    return found


def num_heads(path: Path) -> int:
    """Return the attention heads in a Flax `.npz` file; 0 if it has none.

    The tensors under timm's names do not show this number."""
    with np.load(path, allow_pickle=False) as file:
        name = next(
            (
                name
                for name in file.files
                if re.search(r"MultiHeadDotProductAttention_\d/query/bias$", name)
            ),
            "",
        )
        return int(_array(file, name).shape[-2]) if name else 0  # [..., H, D / H]


def from_flax(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Convert Flax parameters by path to timm's state dict.

    Raises:
        ValueError: the parameters have no known layout, or one of them has no place in it."""
    found = _unstacked(_without_prefix(arrays))
    family = next(
        (name for name, (sign, *_) in LAYOUTS.items() if any(re.match(sign, key) for key in found)),
        None,
    )
    if family is None:
        names = f"{', '.join(sorted(found)[:3]) or 'none'}{', ...' if len(found) > 3 else ''}"
        raise ValueError(
            f"its {len(found)} names ({names}) fit no ViT, Mixer or BiT ResNet of "
            "vision_transformer or big_vision, which have "
            f"{', '.join(example for _, _, example in LAYOUTS.values())}"
        )
    state: dict[str, Tensor] = {}
    for name, value in found.items():
        target, array = _placed(name, value, LAYOUTS[family][1], family)
        state[target] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return _with_joined_attention(state)


def _without_prefix(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the parameters only, without an optimizer's moments and step counters."""
    for prefix in PREFIXES:
        inside = {
            name.removeprefix(prefix): value
            for name, value in arrays.items()
            if name.startswith(prefix)
        }
        if inside:  # prefixes may nest
            return _without_prefix(inside)
    # units of a ResNet count from 1, or 01, in Flax and from 0 in timm
    return {
        re.sub(r"/unit(\d+)/", lambda match: f"/unit{int(match[1]) - 1}/", name): value
        for name, value in arrays.items()
    }


def _unstacked(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Split the arrays of scanned blocks, [depth, ...], into one array a block."""
    one_by_one: dict[str, Array] = {}
    for name, value in arrays.items():
        block, stacked, layer = name.partition("Transformer/encoderblock/")
        if stacked:
            one_by_one |= {
                f"{block}Transformer/encoderblock_{i}/{layer}": part for i, part in enumerate(value)
            }
        else:
            one_by_one[name] = value
    return one_by_one


def _placed(name: str, value: Array, rules: Iterable[Rule], family: str) -> tuple[str, Array]:
    """Return timm's name of a Flax parameter, and its array in torch's layout."""
    for pattern, target, change in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(target), change(value)
    if name.startswith("pre_logits/"):
        raise ValueError(
            "it has pre_logits, a layer between encoder and head of ImageNet-21k checkpoints that "
            "networks here lack; give weights that were fine-tuned or trained without it"
        )
    raise ValueError(
        f"{name} {list(value.shape)} has no place in timm's {family}; "
        "such weights are not supported"
    )


def _with_joined_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join query, key and value into timm's one layer, [3 D, D] and [3 D]."""
    joined = {
        name: value
        for name, value in state.items()
        if not re.search(r"\.attn\.(query|key|value)\.", name)
    }
    for name in state:
        if ".attn.query." in name:
            parts = [
                state[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")
            ]
            joined[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return joined


# --- conversions of arrays from Flax to torch -----------------------------------------------------


def _same(value: Array) -> Array:
    return value


def _vector(value: Array) -> Array:
    # scales of GroupNorm in older files have axes of length 1, biases of attention an axis of heads
    return value.reshape(-1)


def _dense(value: Array) -> Array:
    return value.T


def _heads_out(value: Array) -> Array:
    return value.reshape(value.shape[0], -1).T  # [D, H, D / H] to [D, D]


def _heads_in(value: Array) -> Array:
    return value.reshape(-1, value.shape[-1]).T  # [H, D / H, D] to [D, D]


def _convolution(value: Array) -> Array:
    return value.transpose(3, 2, 0, 1)


Rule = tuple[str, str, Callable[[Array], Array]]


def _layer(pattern: str, target: str, kernel: Callable[[Array], Array]) -> list[Rule]:
    return [
        (f"{pattern}/kernel", rf"{target}.weight", kernel),
        (f"{pattern}/bias", rf"{target}.bias", _vector),
    ]


def _norm(pattern: str, target: str) -> list[Rule]:
    return [
        (f"{pattern}/scale", rf"{target}.weight", _vector),
        (f"{pattern}/bias", rf"{target}.bias", _vector),
    ]


# vision_transformer numbers all children of a block together (LayerNorm_0, attention _1,
# LayerNorm_2, MlpBlock_3), big_vision each kind by itself (_0, _0, _1, _0).
_ENCODER = r"Transformer/encoderblock_(\d+)"
_ATTENTION = rf"{_ENCODER}/MultiHeadDotProductAttention_[01]"

_VIT: list[Rule] = [
    ("cls", "cls_token", _same),
    (r"(?:Transformer/posembed_input/)?pos_embedding", "pos_embed", _same),
    *_layer("embedding", "patch_embed.proj", _convolution),
    *_norm(rf"{_ENCODER}/LayerNorm_0", r"blocks.\1.norm1"),
    *_norm(rf"{_ENCODER}/LayerNorm_[12]", r"blocks.\1.norm2"),
    *_layer(rf"{_ATTENTION}/(query|key|value)", r"blocks.\1.attn.\2", _heads_out),
    *_layer(rf"{_ATTENTION}/out", r"blocks.\1.attn.proj", _heads_in),
    *_layer(rf"{_ENCODER}/MlpBlock_[03]/Dense_0", r"blocks.\1.mlp.fc1", _dense),
    *_layer(rf"{_ENCODER}/MlpBlock_[03]/Dense_1", r"blocks.\1.mlp.fc2", _dense),
    *_norm("Transformer/encoder_norm", "norm"),
    *_layer("head", "head", _dense),
]

_BLOCK = r"(?:MixerBlock|Mixer/encoderblock)_(\d+)"


def _mixing(axis: str, target: str) -> list[Rule]:
    rules = []
    for first, (dense, number) in enumerate((("Dense_0", "1"), ("Dense_1", "2")), start=1):
        rules += _layer(
            rf"{_BLOCK}/{axis}_mixing/{dense}", rf"blocks.\1.{target}.fc{first}", _dense
        )
        # an older layout has both kernels of an MLP in one module
        older = rf"{_BLOCK}/{axis}_mixing_phase_0"
        rules.append((f"{older}/kernel{number}", rf"blocks.\1.{target}.fc{first}.weight", _dense))
        rules.append((f"{older}/bias{number}", rf"blocks.\1.{target}.fc{first}.bias", _vector))
    return rules


_MIXER: list[Rule] = [
    *_layer("(?:stem|embedding)", "stem.proj", _convolution),
    *_norm(rf"{_BLOCK}/LayerNorm_0", r"blocks.\1.norm1"),
    *_norm(rf"{_BLOCK}/LayerNorm_1", r"blocks.\1.norm2"),
    *_mixing("token", "mlp_tokens"),
    *_mixing("channel", "mlp_channels"),
    *_norm("(?:pre_head_layer_norm|Mixer/encoder_norm)", "norm"),
    *_layer("head", "head", _dense),
]

_UNIT = r"block(\d+)/unit(\d+)"

_BIT: list[Rule] = [
    ("conv_root/kernel", "conv1.weight", _convolution),
    *_norm("gn_root", "bn1"),
    (rf"{_UNIT}/conv(\d)/kernel", r"layer\1.\2.conv\3.weight", _convolution),
    *_norm(rf"{_UNIT}/gn(\d)", r"layer\1.\2.bn\3"),
    (rf"{_UNIT}/conv_proj/kernel", r"layer\1.\2.downsample.0.weight", _convolution),
    *_norm(rf"{_UNIT}/gn_proj", r"layer\1.\2.downsample.1"),
    *_layer("head", "fc", _dense),
]

LAYOUTS: dict[str, tuple[str, list[Rule], str]] = {
    "ViT": (r"Transformer/encoderblock_", _VIT, "Transformer/encoderblock_0/..."),
    "Mixer": (_BLOCK, _MIXER, "MixerBlock_0/..."),
    "BiT ResNet": (r"conv_root/", _BIT, "conv_root/kernel"),
}
"""By family: a pattern that identifies the layout, its rules, and an example of a name.

A rule is (pattern of a path, timm's name, change of the array)."""
