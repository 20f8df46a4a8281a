"""The networks by name, as a table that can be listed without importing torch.

`models.factory.create` turns a row into a timm module. `params` is exact for the image size,
channels and classes of the row; other sizes that fit are allowed. A name here hides timm's:
`resnet50` is the paper's, with GroupNorm; timm's own is `resnet50.a1_in1k` (any tag will do), or
`resnet50-bn`, the same network with a zero head."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from samovar import plugins, words

Family = Literal["vit", "mixer", "resnet", "other"]


@dataclass(frozen=True)
class Variant:
    """A network: its family, its sizes within that family, and its number of parameters."""

    family: Family
    """`other` is any network outside the paper's three families."""
    params: int
    """Trainable parameters at the image size, channels and classes below."""
    width: int = 0
    """Hidden size D; for a ResNet, the channels after the stem. 0: unknown."""
    depth: int = 0
    """Number of blocks; for a ResNet, layers with weights, as in its name. 0: unknown."""
    patch: int = 0
    """Side of a patch in pixels; 0: no patches."""
    heads: int = 0
    """Attention heads H."""
    stages: tuple[int, ...] = ()
    """Residual blocks in each stage of a ResNet."""
    pool: Literal["token", "mean"] = "token"
    """Input of a ViT's head: the class token, or the mean of the patches (no class token then)."""
    groups: int = 0
    """Groups of a ResNet's GroupNorm, which comes with standardized kernels; 0: BatchNorm."""
    image_size: int = 224
    """Height and width in pixels."""
    channels: int = 3
    """Color channels C."""
    classes: int = 1000
    """Number of logits K."""

    @property
    def bottleneck(self) -> bool:
        """Return whether residual blocks are 1x1, 3x3, 1x1 convolutions rather than two 3x3."""
        # stem and head add 2 layers; a basic block has 2 layers with weights, a bottleneck 3
        return self.depth > 3 * sum(self.stages)

    @property
    def small_images(self) -> bool:
        """Return whether a ResNet's stem is one 3x3 convolution at full resolution.

        Otherwise it is a 7x7 convolution with stride 2 and max pooling."""
        return self.image_size < 64


_TITLES = {"vit": "ViT", "mixer": "MLP-Mixer", "resnet": "ResNet", "other": "network"}
_R50, _R101, _R152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_CIFAR: dict[str, Any] = {"image_size": 32, "classes": 10}
_DIGITS: dict[str, Any] = {"image_size": 8, "channels": 1, "classes": 10}

# Table 7 of arXiv:2106.01548; ResNets have GroupNorm with weight standardization and are
# post-activation (BiT-style v1).
MODELS: dict[str, Variant] = {
    "vit-s32": Variant("vit", 22_878_952, 384, 12, patch=32, heads=6),
    "vit-s16": Variant("vit", 22_050_664, 384, 12, patch=16, heads=6),
    "vit-s14": Variant("vit", 22_004_584, 384, 12, patch=14, heads=6),
    "vit-s8": Variant("vit", 22_055_272, 384, 12, patch=8, heads=6),
    "vit-b32": Variant("vit", 88_224_232, 768, 12, patch=32, heads=12),
    "vit-b16": Variant("vit", 86_567_656, 768, 12, patch=16, heads=12),
    "vit-l32": Variant("vit", 306_535_400, 1024, 24, patch=32, heads=16),
    "vit-l16": Variant("vit", 304_326_632, 1024, 24, patch=16, heads=16),
    # Without a class token, as in the GSAM checkpoints of vision_transformer.
    "vit-s32-gap": Variant("vit", 22_878_184, 384, 12, patch=32, heads=6, pool="mean"),
    "vit-s16-gap": Variant("vit", 22_049_896, 384, 12, patch=16, heads=6, pool="mean"),
    "vit-b32-gap": Variant("vit", 88_222_696, 768, 12, patch=32, heads=12, pool="mean"),
    "vit-b16-gap": Variant("vit", 86_566_120, 768, 12, patch=16, heads=12, pool="mean"),
    "mixer-s32": Variant("mixer", 19_104_624, 512, 8, patch=32),
    "mixer-s16": Variant("mixer", 18_528_264, 512, 8, patch=16),
    "mixer-s8": Variant("mixer", 20_646_504, 512, 8, patch=8),
    "mixer-b32": Variant("mixer", 60_293_428, 768, 12, patch=32),
    "mixer-b16": Variant("mixer", 59_880_472, 768, 12, patch=16),
    "mixer-b8": Variant("mixer", 64_864_168, 768, 12, patch=8),
    "resnet50": Variant("resnet", 25_557_032, 64, 50, stages=_R50, groups=32),
    "resnet101": Variant("resnet", 44_549_160, 64, 101, stages=_R101, groups=32),
    "resnet152": Variant("resnet", 60_192_808, 64, 152, stages=_R152, groups=32),
    "resnet50x2": Variant("resnet", 98_004_072, 128, 50, stages=_R50, groups=32),
    "resnet101x2": Variant("resnet", 173_868_136, 128, 101, stages=_R101, groups=32),
    "resnet152x2": Variant("resnet", 236_350_568, 128, 152, stages=_R152, groups=32),
    "resnet50-bn": Variant("resnet", 25_557_032, 64, 50, stages=_R50),
    "resnet101-bn": Variant("resnet", 44_549_160, 64, 101, stages=_R101),
    "resnet152-bn": Variant("resnet", 60_192_808, 64, 152, stages=_R152),
    "resnet50x2-bn": Variant("resnet", 98_004_072, 128, 50, stages=_R50),
    "resnet101x2-bn": Variant("resnet", 173_868_136, 128, 101, stages=_R101),
    "resnet152x2-bn": Variant("resnet", 236_350_568, 128, 152, stages=_R152),
    # Ours, for small images.
    "vit-cifar": Variant("vit", 4_028_170, 192, 9, patch=4, heads=3, **_CIFAR),
    "mixer-cifar": Variant("mixer", 4_360_970, 256, 8, patch=4, **_CIFAR),
    "resnet-cifar": Variant("resnet", 11_173_962, 64, 18, stages=(2, 2, 2, 2), groups=32, **_CIFAR),
    "resnet-cifar-bn": Variant("resnet", 11_173_962, 64, 18, stages=(2, 2, 2, 2), **_CIFAR),
    "vit-cifar-s": Variant("vit", 1_205_898, 128, 6, patch=4, heads=4, **_CIFAR),
    "vit-cifar-s8": Variant("vit", 1_218_186, 128, 6, patch=8, heads=4, **_CIFAR),
    "mixer-cifar-s": Variant("mixer", 1_132_170, 128, 8, patch=4, **_CIFAR),
    "resnet-cifar-s": Variant("resnet", 1_228_970, 32, 10, stages=(1, 1, 1, 1), groups=8, **_CIFAR),
    "resnet-cifar-s-bn": Variant("resnet", 1_228_970, 32, 10, stages=(1, 1, 1, 1), **_CIFAR),
    "vit-cifar-t8": Variant("vit", 468_778, 96, 4, patch=8, heads=3, **_CIFAR),
    "mixer-cifar-t8": Variant("mixer", 476_842, 96, 6, patch=8, **_CIFAR),
    "resnet-cifar-t": Variant("resnet", 308_826, 16, 10, stages=(1, 1, 1, 1), groups=8, **_CIFAR),
    "vit-digits": Variant("vit", 202_186, 64, 4, patch=4, heads=4, **_DIGITS),
    "mixer-digits": Variant("mixer", 203_682, 64, 6, patch=4, **_DIGITS),
    "resnet-digits": Variant("resnet", 308_538, 16, 10, stages=(1, 1, 1, 1), groups=8, **_DIGITS),
    "resnet-digits-bn": Variant("resnet", 308_538, 16, 10, stages=(1, 1, 1, 1), **_DIGITS),
}


def names() -> list[str]:
    """Return the names of `MODELS`, then those that installed packages add."""
    return [*MODELS, *(name for name in plugins.names("models") if name not in MODELS)]


def has_constructor(name: str) -> bool:
    """Return whether a function outside this project builds the network of this name.

    Such a name is a `module:function`, or one that an installed package adds. Rows of `MODELS`
    take precedence, so that no package changes what their names mean."""
    return name not in MODELS and (":" in name or name in plugins.names("models"))


def line(name: str) -> str:
    """Return one line about a name of `names()`, for a list.

    Raises:
        ValueError: the name is not among them."""
    if name not in MODELS:
        if name in plugins.names("models"):
            return "added by an installed package"
        raise unknown(name, names())
    row = MODELS[name]
    parts = [f"{row.params / 1e6:.1f}M parameters"]
    if row.patch:
        parts.append(f"patch {row.patch}")
    parts += [f"width {row.width}", f"depth {row.depth}"]
    if row.stages:
        parts.append("GroupNorm + standardized kernels" if row.groups else "BatchNorm")
    return f"{_TITLES[row.family]}: {', '.join(parts)}"


def summary(name: str) -> str:
    """Return all that the table says about a name of `names()`.

    Raises:
        ValueError: the name is not among them."""
    first = line(name)
    if name not in MODELS:
        return first
    row = MODELS[name]
    size = f"{row.channels} x {row.image_size} x {row.image_size}"
    facts = [f"{row.params:,} parameters with {size} images", f"{row.classes} classes"]
    if row.patch:
        facts.append(f"{(row.image_size // row.patch) ** 2} patches")
    if row.heads:
        facts.append(f"{row.heads} heads")
    if row.pool == "mean":
        facts.append("mean of the patches, no class token")
    if row.stages:
        facts.append(f"blocks {'-'.join(map(str, row.stages))}")
    return f"{first}\n{', '.join(facts)}; other sizes are allowed"


def unknown(name: str, known: Iterable[str]) -> ValueError:
    """Return the error for a name that is not in `known`; it suggests the closest ones."""
    hint = words.suggest(name, known, instead="`samovar list models` prints ours", count=3)
    return ValueError(
        f"unknown model {name!r}; {hint} (any timm name or module:function works too)"
    )


def check_patch(patch: int, image_size: int) -> None:
    """Refuse an image size that is no multiple of the patch; patch 0 means no patches.

    Raises:
        ValueError: names both sizes and the nearest image sizes that fit."""
    if patch and image_size % patch:
        fits = sorted({max(1, image_size // patch) * patch, math.ceil(image_size / patch) * patch})
        sizes = " or ".join(map(str, fits))
        raise ValueError(
            f"patch_size={patch} does not divide image_size={image_size}; pick {sizes}"
        )
