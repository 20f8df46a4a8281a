"""Attention of a ViT: the probabilities of all layers, rollout, and mean distances.

The attention of the class token is that to the patches; its attention to itself is left out, and
the rest is not renormalized, as in DINO. Where a network pools patches instead of reading a class
token, the mean over the patches' queries stands in for it. Distances are between the centres of
patches, in pixels; prefix tokens have no place in the image, so they are left out and the rest is
renormalized.

Source: arXiv:2106.01548, appendix B.2; rollout: Abnar and Zuidema, arXiv:2005.00928; mean attention
distance: Dosovitskiy et al., arXiv:2010.11929.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from samovar.anymodel.restore import bare
from samovar.measure.capture import capture, network

PixelPair: TypeAlias = tuple[float, float]
"""Height and width in pixels."""


class NothingToDraw(ValueError):
    """The network has nothing of the kind that was asked for."""


@dataclass(frozen=True)
class Attention:
    """Attention probabilities of a ViT, layer by layer."""

    layers: tuple[str, ...]
    """Names of the modules that compute attention, in the order in which they ran."""
    probabilities: tuple[Tensor, ...]
    """A tensor [n, H, N, N] per layer: image, head, query, key; float32 or more."""
    grid: tuple[int, int]
    """Patches down and across, h and w."""
    num_prefix_tokens: int
    """Class and register tokens before the patches."""
    query: Literal["class", "mean"]
    """Query whose attention `to_patches` takes: the class token, or the mean over all patches."""

    def to_patches(self, probabilities: Tensor) -> Tensor:
        """Return the map [..., h, w] that the query attends to, of probabilities [..., N, N]."""
        first = self.num_prefix_tokens
        rows = (
            probabilities[..., 0, :]
            if self.query == "class"
            else probabilities[..., first:, :].mean(-2)
        )
        return rows[..., first:].reshape(*rows.shape[:-1], *self.grid)


def attention_maps(model: nn.Module, images: Tensor) -> Attention:
    """Return the attention probabilities of all layers of a ViT for images [n, C, H, W].

    Works with fused attention and without. Attention with a single query, as in a pooling head, is
    left out. Memory: n H N^2 numbers per layer.

    Raises:
        ValueError: the model has no attention, or none over all patches, as with windows or several
            resolutions.

    Source: appendix B.2 of Chen et al., arXiv:2106.01548."""
    model = bare(model)
    body = network(model)
    with torch.no_grad(), capture(body, attention=True) as seen:
        model(images)
    # a single query is that of a pooling head
    calls = [(name, found) for name, found in seen.attention if found.shape[-2] > 1]
    title = type(body).__name__
    if not calls:
        raise NothingToDraw(
            f"{title} has no attention that torch computes; for token-mixing weights of a Mixer "
            "call token_mixing, for feature maps of a convolutional network channel_means"
        )
    shapes = {(found.ndim, len(found), *found.shape[-2:]) for _, found in calls}
    tokens = calls[0][1].shape[-1]
    if shapes != {(4, len(images), tokens, tokens)}:
        raise NothingToDraw(
            f"{title} attends within windows or at several resolutions, so there is no map of the "
            "whole image; capture(model, attention=True) gives the probabilities, channel_means "
            "the feature maps"
        )
    grid, prefix = patch_grid(body, tokens, (images.shape[-2], images.shape[-1]))
    query: Literal["class", "mean"] = "class" if prefix and _reads_class_token(body) else "mean"
    return Attention(
        tuple(name for name, _ in calls), tuple(found for _, found in calls), grid, prefix, query
    )


def rollout(
    probabilities: Sequence[Tensor], *, fuse: Literal["mean", "max", "min"] = "mean"
) -> Tensor:
    """Return the attention through all layers, [n, N, N].

    It is the product, last layer first, of (fused heads + identity) / 2.

    Args:
        probabilities: a tensor [n, H, N, N] per layer.
        fuse: how the heads of a layer become one; rows are renormalized afterwards. The paper takes
            the mean.

    Raises:
        ValueError: no layers, or an unknown `fuse`.

    Source: Abnar and Zuidema, arXiv:2005.00928."""
    if not len(probabilities) or fuse not in _FUSE:
        raise ValueError(
            f"{len(probabilities)} layers, fuse={fuse!r}; "
            f"give one layer or more, and a fuse of {list(_FUSE)}"
        )
    # the identity stands for the residual branch around attention
    eye = torch.eye(probabilities[0].shape[-1]).to(probabilities[0])
    product = eye
    for layer in probabilities:
        mixed = (_FUSE[fuse](layer) + eye) / 2
        product = mixed / mixed.sum(-1, keepdim=True) @ product
    return product


_FUSE = {
    "mean": lambda layer: layer.mean(-3),
    "max": lambda layer: layer.amax(-3),
    "min": lambda layer: layer.amin(-3),
}


def attention_distance(
    probabilities: Tensor,
    grid: tuple[int, int],
    patch_pixels: PixelPair,
    num_prefix_tokens: int = 0,
) -> Tensor:
    """Return the mean distance [...] in pixels between a patch and the patches it attends to.

    It is the mean over the patches' queries; a query that attends to prefix tokens alone is left
    out.

    Args:
        probabilities: [..., N, N], the last two axes are queries and keys.
        grid: patches down and across.
        patch_pixels: height and width of a patch.
        num_prefix_tokens: class and register tokens, which come first.

    Source: Dosovitskiy et al., arXiv:2010.11929, figure 7."""
    inside = probabilities[..., num_prefix_tokens:, num_prefix_tokens:]
    # patches without prefix tokens; the division below renormalizes the rest
    mass = inside.sum(-1)
    between = patch_distances(grid, patch_pixels).to(inside)
    means = torch.where(mass == 0, 0.0, (inside * between).sum(-1) / mass)
    return means.sum(-1) / (mass != 0).sum(-1)


def patch_grid(body: nn.Module, tokens: int, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Return the patches down and across, and the number of tokens before them.

    The number of prefix tokens is the one that the model declares, or the lowest that fits.

    Args:
        body: the network, see `network`.
        tokens: of one image.
        size: height and width of the images in pixels.

    Raises:
        NothingToDraw: no grid of square patches has so many tokens."""
    declared = (getattr(module, "num_prefix_tokens", None) for module in body.modules())
    known = [number for number in declared if isinstance(number, int)]
    # a declared prefix need not be there in all layers, as where attention pools only patches
    for prefix in (*known, 0, 1, 2):
        patches = tokens - prefix
        rows = round(math.sqrt(max(0, patches) * size[0] / size[1]))
        if rows and rows * rows * size[1] == patches * size[0]:
            return (rows, patches // rows), prefix
    raise NothingToDraw(
        f"{type(body).__name__} has {tokens} tokens, which are no grid of square patches of "
        f"{size[0]} x {size[1]} images; capture(model, attention=True) gives the probabilities"
    )


def _reads_class_token(body: nn.Module) -> bool:
    """Return True if the head reads token 0, by timm's attributes; without these, it does."""
    return (
        getattr(body, "global_pool", "token") == "token"
        and getattr(body, "cls_token", body) is not None
    )


def patch_distances(grid: tuple[int, int], patch_pixels: PixelPair) -> Tensor:
    """Return the distances [N, N] in pixels between the centres of patches, in row-major order."""
    rows, columns = (
        torch.arange(n, dtype=torch.float64) * side
        for n, side in zip(grid, patch_pixels, strict=True)
    )
    # row-major, as patch embeddings flatten the grid
    centres = torch.cartesian_prod(rows, columns)
    return (centres[:, None] - centres).square().sum(-1).sqrt()
