"""Build the paper's networks as timm modules, with the paper's initialization.

ViT and Mixer follow Google's code: tanh GELU, LayerNorm eps 1e-6, dropout where the Flax code
has it, no dropout of attention probabilities. ResNets are BiT-style v1: post-activation,
GroupNorm (eps 1e-6, as in Flax), standardized kernels, SAME padding, and the last scale of a
block at 0; or plain ones with BatchNorm. Both have the stride in the 3x3 convolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers._fx import register_notrace_module
from timm.layers.activations import GELUTanh
from timm.layers.drop import DropPath
from timm.layers.norm import GroupNorm
from timm.layers.padding import pad_same
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.std_conv import StdConv2dSame
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from samovar.config import ModelConfig
from samovar.models.table import Family, Variant, check_patch


@dataclass(frozen=True)
class Sizes:
    """The sizes that a network takes from the data."""

    num_classes: int
    """Number of logits K."""
    image_size: int
    """Height and width in pixels."""
    channels: int
    """Color channels C."""


def build(row: Variant, config: ModelConfig, sizes: Sizes) -> nn.Module:
    """Build the timm module of a row, from normalized images [B, C, H, W] to logits [B, K].

    Raises:
        ValueError: the patch does not divide the image."""
    check_patch(row.patch, sizes.image_size)
    make, initialize = _FAMILIES[row.family]
    body = make(row, config, sizes)
    if config.init == "paper":
        initialize(body)
        zero_head(body, config, sizes.num_classes)
    return body


def _vit(row: Variant, config: ModelConfig, sizes: Sizes) -> nn.Module:
    return VisionTransformer(
        img_size=sizes.image_size,
        patch_size=row.patch,
        in_chans=sizes.channels,
        num_classes=sizes.num_classes,
        embed_dim=row.width,
        depth=row.depth,
        num_heads=row.heads,
        class_token=row.pool == "token",
        global_pool="token" if row.pool == "token" else "avg",
        fc_norm=False,  # timm would move the encoder's last norm behind the mean
        pos_drop_rate=config.dropout,
        proj_drop_rate=config.dropout,
        # timm's linear growth over the blocks; Google's ViT code has no stochastic depth to follow
        drop_path_rate=config.drop_path,
        act_layer=GELUTanh,
    )


def _mixer(row: Variant, config: ModelConfig, sizes: Sizes) -> nn.Module:
    body = MlpMixer(
        num_classes=sizes.num_classes,
        img_size=sizes.image_size,
        in_chans=sizes.channels,
        patch_size=row.patch,
        num_blocks=row.depth,
        embed_dim=row.width,
        proj_drop_rate=config.dropout,
        act_layer=GELUTanh,
    )
    for i, block in enumerate(body.blocks):
        rate = config.drop_path * i / max(1, row.depth - 1)
        # as in big_vision: the rate grows over the blocks and nothing is rescaled by 1 / (1 - p);
        # timm has one rate for all blocks and rescales
        block.drop_path = DropPath(rate, scale_by_keep=False) if rate else nn.Identity()
    return body


def _resnet(row: Variant, config: ModelConfig, sizes: Sizes) -> nn.Module:
    body: Any = ResNet(
        cast(Any, Bottleneck if row.bottleneck else BasicBlock),
        row.stages,
        num_classes=sizes.num_classes,
        in_chans=sizes.channels,
        # timm's plain stem is always 64 wide; the deep one follows stem_width, and its conv1 is
        # replaced below
        stem_type="deep",
        stem_width=row.width // 2,
        channels=tuple(row.width * 2**i for i in range(4)),
        norm_layer=partial(GroupNorm, num_groups=row.groups, eps=1e-6)
        if row.groups
        else nn.BatchNorm2d,
        drop_rate=config.dropout,
        drop_path_rate=config.drop_path,
    )
    size, stride = (3, 1) if row.small_images else (7, 2)
    body.conv1 = nn.Conv2d(sizes.channels, row.width, size, stride, size // 2, bias=False)
    if row.groups:  # as in BiT: SAME padding in every convolution and in the pooling
        _standardize(body)
        body.maxpool = MaxPool2dSame(3, 2)
    if row.small_images:
        body.maxpool = nn.Identity()
    body.init_weights()
    return cast(nn.Module, body)


def _standardize(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            size, stride = child.kernel_size[0], child.stride[0]
            setattr(
                module,
                name,
                StandardizedConv2d(child.in_channels, child.out_channels, size, stride),
            )
        else:
            _standardize(child)


@register_notrace_module
class StandardizedConv2d(StdConv2dSame):
    """A convolution with SAME padding whose kernels have mean 0 and deviation s / (s + 1e-5).

    s is the deviation of the kernel as stored. Google adds eps to the deviation, timm's layer to
    the variance; the names of the weights are timm's."""

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps [B, C', h', w'] of [B, C, h, w]."""
        if self.same_pad:
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        kernels = _standardized(self.weight)
        return F.conv2d(
            x, kernels, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


def _standardized(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return (w - mean(w)) / (std(w) + eps) of w [C', C, h, w], over all axes but the first."""
    flat = weight.flatten(1)
    # a norm and a mean cost a tenth of `std`; rounding errors in s hardly change s / (s + eps),
    # and group_norm below computes its own s
    square = torch.linalg.vector_norm(flat, dim=1).square() / flat.shape[1] - flat.mean(1).square()
    # a constant kernel has variance 0, where the root has no finite derivative
    s = square.clamp_min(1e-20).sqrt()
    return F.group_norm(flat[None], len(flat), s / (s + eps), eps=1e-20).reshape_as(weight)


# --- the paper's initialization, as in vision_transformer and big_vision -------------------------


@torch.no_grad()
def _init_vit(body: Any) -> None:
    for name, layer in body.blocks.named_modules():
        if isinstance(layer, nn.Linear):
            # query, key and value are three kernels [D, D] in Flax, so the Xavier bound is the one
            # of [D, D], not of timm's joined [3 D, D]
            for kernel in layer.weight.chunk(3) if name.endswith("qkv") else (layer.weight,):
                nn.init.xavier_uniform_(kernel)
            nn.init.normal_(layer.bias, std=1e-6) if ".mlp." in name else nn.init.zeros_(layer.bias)
    _init_default(body.patch_embed)
    nn.init.normal_(body.pos_embed, std=0.02)
    if body.cls_token is not None:
        nn.init.zeros_(body.cls_token)


def _init_default(body: nn.Module) -> None:
    """Set Flax's defaults: kernels lecun_normal, biases 0.

    Both codebases keep them for the Mixer and for convolutions."""
    for layer in body.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            # 0.8796 is the deviation of a standard normal that is cut at two deviations
            std = layer.weight[0].numel() ** -0.5 / 0.87962566103423978
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _init_resnet(body: nn.Module) -> None:
    if any(isinstance(layer, GroupNorm) for layer in body.modules()):
        _init_default(body)  # with BatchNorm, timm's He initialization stays


def heads(body: nn.Module) -> tuple[nn.Module, ...]:
    """Return the classifier layers of a network: several of a distilled one, else one or none."""
    found = cast(Any, body).get_classifier() if hasattr(body, "get_classifier") else ()
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def zero_head(body: nn.Module, config: ModelConfig, num_classes: int) -> None:
    """Set the head of a timm model to 0 and its bias to `config.head_bias`.

    Raises:
        ValueError: the model does not name its head, or the head has no bias to set."""
    layers = [
        m for head in heads(body) for m in head.modules() if isinstance(m, nn.Linear | nn.Conv2d)
    ]
    # a head may hold further layers; only those that give logits are set
    layers = [
        m
        for m in layers
        if len(m.weight) == num_classes and (m.bias is not None or not config.head_bias)
    ]
    if not layers:
        raise ValueError(
            f"--model.init paper finds no head of {num_classes} classes in {config.name} to set; "
            "choose --model.init library"
        )
    for layer in layers:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, config.head_bias)


_FAMILIES: dict[Family, tuple[Callable[..., nn.Module], Callable[..., None]]] = {
    "vit": (_vit, _init_vit),
    "mixer": (_mixer, _init_default),
    "resnet": (_resnet, _init_resnet),
}
