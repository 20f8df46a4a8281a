"""Write a folder that plain timm opens: `config.json` with architecture and arguments, and weights.

Whether timm builds the same network from what JSON can express is tried out: timm opens the
folder, and the logits are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.layers.activations import GELUTanh
from timm.models.mlp_mixer import MixerBlock, MlpMixer
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from samovar.anymodel import restore
from samovar.export.original import Original, compare
from samovar.export.preprocessing import KEY, Interface, resize_side, to_dict
from samovar.models.timm_folder import CONFIG, WEIGHTS


@dataclass(frozen=True)
class Built:
    """A call by which timm may build a network."""

    architecture: str
    """timm's name."""
    args: dict[str, Any]
    """Arguments that differ from the architecture's own, as JSON can express them."""


def write_timm(original: Original, folder: Path) -> float:
    """Write the folder; return the largest difference of a logit.

    Raises:
        ValueError: timm builds no such network from a `config.json`."""
    # safetensors refuses views and tensors that share memory
    weights = {
        name: tensor.detach().contiguous().clone()
        for name, tensor in _body(original).state_dict().items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    reasons = []
    for built in _candidates(original):
        text = json.dumps(config_of(original, built), indent=2) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        try:
            return compare(original, open_plainly(folder, original.interface))
        except Exception as error:  # any error of timm means that it cannot build this network
            line = (str(error).strip() or repr(error)).splitlines()[0]
            reasons.append(f"{built.architecture}: {line}")
    reason = next(
        (why for kind, why in _REASONS.items() if isinstance(_body(original), kind)),
        "; ".join(reasons),
    )
    raise ValueError(
        f"{original.opened.config.name} is no architecture of timm {timm.__version__} that a "
        f"config.json can name{f' ({reason})' if reason else ''}; "
        "give --format torch or --format onnx"
    )


_REASONS: dict[type[nn.Module], str] = {
    MlpMixer: "its Mixers take no tanh GELU there",
    ResNet: "its ResNets have no standardized kernels, and a plain stem only for 64 channels",
}


def open_plainly(folder: Path, interface: Interface) -> Callable[[Tensor], Tensor]:
    """Return timm's own model of a folder: images [B, C, S, S] in [0, 1] to logits [B, K]."""
    with restore.rng():  # the initial weights are overwritten
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    resolve: Any = resolve_model_data_config  # timm gives it no types
    pixels = resolve(model)
    mean, std = (torch.tensor(pixels[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    size = interface.image_size
    if tuple(pixels["input_size"]) != (interface.channels, size, size):
        raise ValueError(f"it takes images of {pixels['input_size']}")
    model.eval()

    def run(images: Tensor) -> Tensor:
        logits: Tensor = model((images - mean) / std)
        return logits

    return run


def config_of(original: Original, built: Built) -> dict[str, Any]:
    """Return the content of `config.json`: arguments of the network, preprocessing, class names."""
    body, interface, size = _body(original), original.interface, original.interface.image_size
    known: Any = timm.get_pretrained_cfg(built.architecture)
    config: dict[str, Any] = {
        "architecture": built.architecture,
        "num_classes": len(interface.classes),
        "num_features": getattr(body, "num_features", None),
        "model_args": built.args,
        "label_names": list(interface.classes),
        "pretrained_cfg": {
            "tag": KEY,
            "custom_load": False,
            "input_size": [interface.channels, size, size],
            "fixed_input_size": bool(known and known.fixed_input_size),
            "interpolation": "bilinear",
            "crop_pct": crop_pct(interface),
            "crop_mode": "squash" if interface.whole else "center",
            "mean": _per_channel(original.opened.config.mean, interface.channels),
            "std": _per_channel(original.opened.config.std, interface.channels),
            "num_classes": len(interface.classes),
            "pool_size": None,
            "first_conv": known.first_conv if known else None,
            "classifier": known.classifier if known else None,
        },
        KEY: to_dict(interface),
    }
    return {name: value for name, value in config.items() if value is not None}


def crop_pct(interface: Interface) -> float:
    """Return the share of the resized side that timm's crop keeps.

    timm resizes to floor(size / share). 224 of 256 is 0.875; other sizes round to whole pixels,
    so their share is chosen to floor to the same side."""
    size, side = interface.image_size, resize_side(interface)
    common = 1.0 if interface.whole else 224 / 256
    return common if math.floor(size / common) == side else size / (side + 0.5)


def _per_channel(values: tuple[float, ...], channels: int) -> list[float]:
    return list(values) * (channels if len(values) == 1 else 1)


def _body(original: Original) -> Any:
    return original.opened.model.body


# --- timm's names and arguments for a network -----------------------------------------------------


def _candidates(original: Original) -> Iterator[Built]:
    """Yield ways to build the network, likely ones first."""
    body, opened = _body(original), original.opened
    # the exact class: a subclass may compute something else
    own = next((describe for kind, describe in _FAMILIES.items() if type(body) is kind), None)
    if own:
        yield own(body)
    name = opened.config.name.partition(".")[0]
    if timm.is_model(name):
        args = {"in_chans": opened.channels, "img_size": opened.image_size}
        yield Built(name, args)
        # networks of convolutions take images of any size and have no argument for it
        yield Built(name, {"in_chans": opened.channels})


def _vit(body: Any) -> Built:
    block, patch = body.blocks[0], body.patch_embed.patch_size[0]
    sizes = (body.embed_dim, len(body.blocks), block.attn.num_heads, patch)
    args = {
        "img_size": body.patch_embed.img_size[0],
        "patch_size": patch,
        "in_chans": body.patch_embed.proj.in_channels,
        "embed_dim": body.embed_dim,
        "depth": len(body.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / body.embed_dim,
        "act_layer": _activation(block.mlp.act),
    }
    # by default timm moves the last norm behind the mean; the paper's networks do not
    if body.cls_token is None:
        args |= {"class_token": False, "global_pool": body.global_pool}
        args["fc_norm"] = not isinstance(body.fc_norm, nn.Identity)
    return Built(_VITS.get(sizes, "vit_base_patch16_224"), args)


def _mixer(body: Any) -> Built:
    patch = body.stem.patch_size[0]
    args = {"img_size": body.stem.img_size[0], "in_chans": body.stem.proj.in_channels}
    block: Any = body.blocks[0]
    if isinstance(block, MixerBlock) and _activation(block.mlp_tokens.act) != "gelu":
        args["act_layer"] = _activation(block.mlp_tokens.act)
    sizes = (body.embed_dim, len(body.blocks), patch)
    # no name of timm has these sizes, so they are arguments of another one
    if sizes not in _MIXERS:
        args |= {"patch_size": patch, "embed_dim": body.embed_dim, "num_blocks": len(body.blocks)}
    return Built(_MIXERS.get(sizes, "mixer_b16_224"), args)


def _resnet(body: Any) -> Built:
    stages = tuple(len(stage) for stage in (body.layer1, body.layer2, body.layer3, body.layer4))
    return Built(_RESNETS.get(stages, "resnet50"), {"in_chans": body.in_chans})


def _activation(layer: Any) -> str:
    return "gelu_tanh" if isinstance(layer, GELUTanh) else "gelu"


_FAMILIES: dict[type[nn.Module], Callable[[Any], Built]] = {
    VisionTransformer: _vit,
    MlpMixer: _mixer,
    ResNet: _resnet,
}
_VITS = {
    (384, 12, 6, 8): "vit_small_patch8_224",
    (384, 12, 6, 16): "vit_small_patch16_224",
    (384, 12, 6, 32): "vit_small_patch32_224",
    (768, 12, 12, 8): "vit_base_patch8_224",
    (768, 12, 12, 16): "vit_base_patch16_224",
    (768, 12, 12, 32): "vit_base_patch32_224",
    (1024, 24, 16, 16): "vit_large_patch16_224",
    (1024, 24, 16, 32): "vit_large_patch32_224",
}
"""timm's names by width, depth, heads and patch; other sizes are arguments of one of them."""
_MIXERS = {
    (512, 8, 16): "mixer_s16_224",
    (512, 8, 32): "mixer_s32_224",
    (768, 12, 16): "mixer_b16_224",
    (768, 12, 32): "mixer_b32_224",
}
"""timm's names by width, depth and patch."""
_RESNETS: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}
"""timm's names by blocks of each stage."""
