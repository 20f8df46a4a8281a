"""Define the network that several benchmarks share, the 32-px ViT of their targets."""

import timm
from torch import nn


def vit32() -> nn.Module:
    """Return a ViT of 4 million parameters for images of 32 px, patch 4."""
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=192, depth=9, num_heads=3, num_classes=10
    )
