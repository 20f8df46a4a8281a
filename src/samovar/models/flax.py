"""Weights of Google's Flax code, as `.npz` files hold them, under timm's names.

ViT, MLP-Mixer and BiT ResNets of google-research/vision_transformer and big_vision, the SAM and
GSAM ones among them: with a class token or pooled, with the optimizer's prefix or without, and
    under the child names of either generation.
Dense kernels are [in, out] there, convolutions [H, W, in, out], attention has an axis of heads."""

from __future__ import annotations

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
"""Of checkpoints that hold an optimizer, or of the newer code."""


def read_npz(path: Path) -> dict[str, Tensor]:
    """The weights in a Flax `.npz` file, under timm's names.

    Raises:
        ValueError: no such file, or not one of the layouts known here; says what was found."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as .npz: it is damaged, or holds more than arrays of numbers"
        ) from error
    try:
        return from_flax(arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def num_heads(path: Path) -> int:
    """Attention heads in a Flax `.npz` file that `read_npz` reads, which timm's names do not tell;
    0 without any."""
    with np.load(path, allow_pickle=False) as file:
        name = next(
            (
                name
                for name in file.files
                if re.search(r"MultiHeadDotProductAttention_\d/query/bias$", name)
            ),
            "",
        )
        return int(file[name].shape[-2]) if name else 0


def from_flax(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Flax parameters by path, as timm's state dict.

    Raises:
        ValueError: they are of no layout known here, or one of them has no place in it."""
    found = _unstacked(_without_prefix(arrays))
    family = next(
        (name for name, (sign, *_) in LAYOUTS.items() if any(re.match(sign, key) for key in found)),
        None,
    )
    if family is None:
        names = f"{', '.join(sorted(found)[:3]) or 'none'}{', ...' if len(found) > 3 else ''}"
        raise ValueError(
            f"its {len(found)} names ({names}) are of no ViT, Mixer or BiT ResNet of vision_transformer or big_vision, "
            f"which have {', '.join(example for _, _, example in LAYOUTS.values())}"
        )
    state: dict[str, Tensor] = {}
    for name, value in found.items():
        target, array = _placed(name, value, LAYOUTS[family][1], family)
        state[target] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return _with_joined_attention(state)


def _without_prefix(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters alone: moments of an optimizer and step counters lie beside them."""
    for prefix in PREFIXES:
        inside = {
            name.removeprefix(prefix): value
            for name, value in arrays.items()
            if name.startswith(prefix)
        }
        if inside:
            return _without_prefix(inside)
    return {_from_zero(name): value for name, value in arrays.items()}


def _from_zero(name: str) -> str:
    """Units of a ResNet count from 1, or 01, there."""
    return re.sub(r"/unit(\d+)/", lambda match: f"/unit{int(match[1]) - 1}/", name)


def _unstacked(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Blocks that were scanned over lie in one array with a first axis of depth."""
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
    for pattern, target, change in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(target), change(value)
    if name.startswith("pre_logits/"):
        raise ValueError(
            "it has pre_logits, a layer between encoder and head that ImageNet-21k checkpoints have and networks here "
            "have not; give one that was fine-tuned or trained without"
        )
    raise ValueError(
        f"{name} {list(value.shape)} has no place in timm's {family}; such weights are not supported"
    )


def _with_joined_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value as timm's one layer, [3 D, D] and [3 D]."""
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


# --- how an array of Flax becomes one of torch
# -----------------------------------------------------------------------


def _same(value: Array) -> Array:
    return value


def _vector(value: Array) -> Array:
    return value.reshape(
        -1
    )  # of GroupNorms in older files with axes of 1, of attention's biases with heads


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
"""A pattern that tells a layout, where its parameters go, and an example of a name.

Where they go is (pattern of a path, timm's name, change of the array)."""
