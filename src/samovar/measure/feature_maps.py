"""Views inside networks without attention: token mixing of Mixers, channel means of ResNets.

Source: arXiv:2106.01548, appendix B.2; token-mixing weights: Tolstikhin et al., arXiv:2105.01601.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from samovar.anymodel.restore import bare
from samovar.measure.attention import NothingToDraw
from samovar.measure.capture import capture, channel_axis, network


def token_mixing(model: nn.Module) -> Tensor:
    """Return the weights [C, N] of a Mixer's first token MLP: C hidden units see N patches.

    Raises:
        ValueError: the model has no token mixing."""
    body = network(model)
    for name, module in body.named_modules():
        if _TOKEN_MIXING.search(name) and isinstance(module, nn.Linear):
            return module.weight.detach().clone()
    raise NothingToDraw(
        f"{type(body).__name__} has no token-mixing layer (mlp_tokens.fc1, linear_tokens); "
        "for a ViT call attention_maps, for a convolutional network channel_means"
    )


_TOKEN_MIXING = re.compile(r"(^|\.)(mlp_tokens\.fc1|linear_tokens|mlp_channels\.gate\.proj)$")


def channel_means(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the last feature maps of each stage of a network, averaged over channels, [n, h, w].

    Stages are modules like `layer1`, `stages.0` or `layers.0`. A network without such modules is
    cut where the resolution changes: after a block, or, without blocks, after a layer of the
    network or of a sequence in it.

    Raises:
        ValueError: the model has no feature maps."""
    model = bare(model)
    body = network(model)
    modules = dict(body.named_modules())
    stages = [name for name in modules if _STAGE.search(name)]
    # a stage inside a stage is a block
    stages = [name for name in stages if not any(name.startswith(f"{other}.") for other in stages)]
    inner = [name for name, module in modules.items() if any(True for _ in module.children())]
    parents = {name: body.get_submodule(name.rpartition(".")[0]) for name in modules if name}
    layers = [
        name
        for name, parent in parents.items()
        if parent is body or isinstance(parent, nn.Sequential)
    ]
    found: list[Tensor] = []
    # from the coarsest kind of module to the finest, until there are two maps to compare
    for chosen in (stages, inner, layers):
        if len(found) < 2:
            found = _last_maps(model, images, chosen, by_size=chosen is not stages) or found
    if not found:
        raise NothingToDraw(
            f"{type(body).__name__} has no feature maps [B, C, h, w] between layers; "
            "call attention_maps for a ViT, token_mixing for a Mixer"
        )
    return found


# layer1 of ResNet, stages.0 of ConvNeXt, layers.0 of Swin
_STAGE = re.compile(r"^(\w+\.)*?(layer[1-4]|stages\.\d+|layers\.\d+)$")


def _last_maps(
    model: nn.Module, images: Tensor, modules: list[str], *, by_size: bool
) -> list[Tensor]:
    """Return each module's last feature maps, averaged over channels.

    Args:
        by_size: return only the last maps of each resolution above 1 x 1 instead."""
    latest: dict[tuple[int, ...], Tensor] = {}

    def keep(output: Tensor) -> Tensor | None:
        if output.ndim != 4 or len(output) != len(images):
            return None
        mean = output.mean(channel_axis(output))
        rows, columns = mean.shape[1:]
        if abs(rows * images.shape[-1] - columns * images.shape[-2]) > max(images.shape[-2:]):
            return None  # of another shape than the images, by more than the rounding of strides
        # of equal resolutions the last one remains
        latest[rows, columns] = mean
        return mean

    with torch.no_grad(), capture(network(model), modules, keep=keep) as seen:
        model(images)
    # 1 x 1 is the result of pooling, not a map
    if by_size:
        return [mean for size, mean in latest.items() if size != (1, 1)]
    return [calls[-1] for calls in seen.outputs.values() if calls and calls[-1] is not None]
