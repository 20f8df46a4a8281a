"""Build networks by name: the paper's variants, any timm model, or a function of another package.

Images are [B, C, H, W] in [0, 1] at the border; the first layer normalizes them.
`Classifier.body` below it is timm's (or your) module with its own state-dict keys: `vit-b16`
fits timm's `vit_base_patch16_224` (pass `act_layer="gelu_tanh"` there, the paper's GELU),
`mixer-b16` fits `mixer_b16_224`, and `resnet50-bn` fits `resnet50`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.mlp_mixer import MixerBlock, MlpMixer
from timm.models.resnet import ResNet
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from samovar import plugins
from samovar.anymodel.outputs import logits_of
from samovar.config import ModelConfig
from samovar.models import trust
from samovar.models.import_function import import_function
from samovar.models.networks import Sizes, build, heads, zero_head
from samovar.models.table import (
    MODELS,
    Family,
    Variant,
    check_patch,
    has_constructor,
    names,
    unknown,
)

__all__ = ["MODELS", "Classifier", "create", "describe", "family"]


class Classifier(nn.Module):
    """A network that normalizes first: images [B, C, H, W] in [0, 1] to logits [B, K].

    `mean` and `std` are buffers that are not saved: they belong to the config, and a state dict
    holds the body only."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of images [B, C, H, W] in [0, 1].

        Raises:
            TypeError: integer images, which are on another scale."""
        return logits_of(self.body(self._normalized(images)))

    def features(self, images: Tensor) -> Tensor:
        """Return the input [B, D] of the classifier layer: the class token or the pooled features.

        Args:
            images: [B, C, H, W] in [0, 1].

        Raises:
            TypeError: integer images.
            ValueError: the network has no `forward_features` and `forward_head`, as timm's have."""
        body: Any = self.body
        if not (hasattr(body, "forward_features") and hasattr(body, "forward_head")):
            raise ValueError(
                f"{type(body).__name__} has no forward_features and forward_head, which timm's "
                "networks have; both are needed for the features before the classifier"
            )
        return cast(
            Tensor,
            body.forward_head(body.forward_features(self._normalized(images)), pre_logits=True),
        )

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the classifier layer.

        Raises:
            ValueError: the network has no `get_classifier`."""
        found = [p for layer in heads(self.body) for p in layer.parameters()]
        if not found:
            raise ValueError(
                f"{type(self.body).__name__} has no get_classifier, which returns the classifier "
                "layer of timm's networks; add one"
            )
        return found

    def _normalized(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise TypeError(
                f"images are {images.dtype}; give floating point in [0, 1], for uint8 images / 255"
            )
        return (images - self.mean) / self.std


def create(
    config: ModelConfig, *, num_classes: int, image_size: int, channels: int = 3
) -> Classifier:
    """Build the network that a config names, behind the normalization of the config.

    A `Classifier` that `network` returns is not wrapped again.

    Args:
        config: name, initialization, dropout, normalization.
        num_classes: number of logits K.
        image_size: height and width in pixels.
        channels: color channels C.

    Raises:
        ValueError: as `network`, or a mean or std that does not fit the channels."""
    for flag, values in (("mean", config.mean), ("std", config.std)):
        if len(values) not in (1, channels):
            raise ValueError(
                f"--model.{flag} has {len(values)} values and images have {channels} channels; "
                f"give {'1' if channels == 1 else f'1 or {channels}'}"
            )
    body = network(config, num_classes=num_classes, image_size=image_size, channels=channels)
    return body if isinstance(body, Classifier) else Classifier(body, config.mean, config.std)


def network(
    config: ModelConfig, *, num_classes: int, image_size: int, channels: int = 3
) -> nn.Module:
    """Build the network that a config names, with weights drawn from torch's global generator.

    Under `init="paper"` a timm model gets a zero head and is otherwise as timm made it. A
    `module:function`, or a function that an installed package adds under a name (entry points of
    `samovar.models`), is called with those of num_classes, image_size, channels, dropout, drop_path
    and head_bias that its signature takes. It returns an nn.Module from normalized images to
    logits, or to an object that has them as `.logits`; or a `Classifier`, which is left as it is.

    Args:
        config: name, initialization, dropout.
        num_classes: number of logits K.
        image_size: height and width in pixels.
        channels: color channels C.

    Raises:
        ValueError: an unknown name (suggests the closest), or a size or setting that does not
            fit the network."""
    sizes = Sizes(num_classes, image_size, channels)
    # names of ours hide those of other packages, which hide timm's
    if config.name in MODELS:
        return build(MODELS[config.name], config, sizes)
    if has_constructor(config.name):
        return _constructed(config, sizes)
    return _timm_model(config, sizes)


def family(model: nn.Module | str) -> Family:
    """Return the family of a network, or of the network of this name."""
    if isinstance(model, str):
        return describe(model).family
    body = model.body if isinstance(model, Classifier) else model
    if isinstance(body, VisionTransformer):
        return "vit"
    if isinstance(body, MlpMixer) and all(isinstance(block, MixerBlock) for block in body.blocks):
        return "mixer"  # ResMLP and gMLP are MlpMixers with other blocks
    return "resnet" if isinstance(body, ResNet | ResNetV2) else "other"


def describe(name: str) -> Variant:
    """Return what is known of the network of this name without its weights; 0 stands for unknown.

    A timm model is built on the meta device. Nothing is known of a network that a function of
    another package builds, before that function is called.

    Raises:
        ValueError: an unknown name."""
    if name in MODELS:
        return MODELS[name]
    if has_constructor(name):
        return Variant("other", 0)
    _check_timm_name(name)
    with torch.device("meta"):
        body: Any = timm.create_model(name)
    embed = next((m for m in body.modules() if isinstance(m, PatchEmbed)), None)
    channels, image_size, _ = body.pretrained_cfg.get("input_size", (0, 0, 0))
    return Variant(
        family(body),
        sum(p.numel() for p in body.parameters() if p.requires_grad),
        width=getattr(body, "num_features", 0),
        depth=len(getattr(body, "blocks", ())),
        patch=embed.patch_size[0] if embed else 0,
        image_size=image_size,
        channels=channels,
        classes=body.num_classes,
    )


def _timm_model(config: ModelConfig, sizes: Sizes) -> nn.Module:
    _check_timm_name(config.name)
    rates = {"drop_rate": config.dropout, "drop_path_rate": config.drop_path}
    options: dict[str, Any] = {"num_classes": sizes.num_classes, "in_chans": sizes.channels}
    options |= {"img_size": sizes.image_size} | {name: rate for name, rate in rates.items() if rate}
    try:
        options = _accepted(config.name, options)
        # one image on the meta device costs no memory and shows whether the model takes this size
        with torch.device("meta"):
            image = torch.zeros(1, sizes.channels, sizes.image_size, sizes.image_size)
            timm.create_model(config.name, **options).eval()(image)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"timm's {config.name} does not take {sizes.channels} x {sizes.image_size} x "
            f"{sizes.image_size} images ({reason}); pick another --data.image-size or model"
        ) from error
    # a rate that the model drops silently would train another recipe than the config says
    for name, flag in (("drop_rate", "dropout"), ("drop_path_rate", "drop-path")):
        if rates[name] and name not in options:
            raise ValueError(f"timm's {config.name} has no {name}; leave --model.{flag} at 0")
    body: nn.Module = timm.create_model(config.name, **options)
    for embed in (m for m in body.modules() if isinstance(m, PatchEmbed) and not m.dynamic_img_pad):
        # timm would cut off the part of the image that no patch covers
        check_patch(embed.patch_size[0], sizes.image_size)
    if config.init == "paper":
        zero_head(body, config, sizes.num_classes)
    return body


def _accepted(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that a timm model takes; the only way to find out is to try."""
    try:
        with torch.device("meta"):
            timm.create_model(name, **options)
        return dict(options)
    except TypeError as error:
        refused = next((option for option in options if f"argument '{option}'" in str(error)), None)
        if refused is None:
            raise
        return _accepted(
            name, {option: value for option, value in options.items() if option != refused}
        )


def _constructed(config: ModelConfig, sizes: Sizes) -> nn.Module:
    """Call the function of another package with those settings that its signature takes."""
    added = config.name in plugins.names("models")
    trust.remember(config.name)
    function = plugins.load("models", config.name) if added else import_function(config.name)
    if not callable(function):
        raise ValueError(
            f"--model.name {config.name} is added by a package as {type(function).__name__}; "
            "its entry point has to name a function"
        )
    settings = {
        "dropout": config.dropout,
        "drop_path": config.drop_path,
        "head_bias": config.head_bias,
    }
    # as for timm's models: a setting that the function cannot take must not be lost silently
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in settings.items():
        if value and not takes_any and name not in parameters:
            raise ValueError(
                f"{config.name} takes no {name}; leave --model.{name.replace('_', '-')} at 0"
            )
    offered: dict[str, Any] = dataclasses.asdict(sizes) | settings
    body = function(
        **{name: value for name, value in offered.items() if takes_any or name in parameters}
    )
    if not isinstance(body, nn.Module):
        raise ValueError(
            f"{config.name} returned {type(body).__name__}; "
            "return an nn.Module from images to logits"
        )
    return body


def _check_timm_name(name: str) -> None:
    if not timm.is_model(name):
        raise unknown(name, [*names(), *timm.list_models()])
