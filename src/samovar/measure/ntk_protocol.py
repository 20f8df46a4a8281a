"""Temporary changes that the NTK protocol makes to a model: ReLU for GELU, a random head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from samovar.curvature.twice import ReplacedFunctions


@contextmanager
def gelu_as_relu(model: nn.Module) -> Iterator[None]:
    """Replace GELU by ReLU inside: modules of such a class, and calls of F.gelu.

    A module counts as GELU if its class has GELU in its name, no parameters and no children."""
    swapped = [
        (parent._modules, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and _is_gelu(child)
    ]
    try:
        # in the dict of the parent, since a model may override setattr
        for siblings, name, _ in swapped:
            siblings[name] = nn.ReLU()
        with ReplacedFunctions({F.gelu: _relu_for_gelu}):
            yield
    finally:
        for siblings, name, child in swapped:
            siblings[name] = child


def _relu_for_gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """Return the ReLU of `input`; takes the arguments of F.gelu."""
    return F.relu(input)


def _is_gelu(module: nn.Module) -> bool:
    return (
        "GELU" in type(module).__name__
        and not module._modules
        and not any(True for _ in module.parameters())
    )


@contextmanager
def random_head(model: nn.Module, generator: Generator) -> Iterator[None]:
    """Draw the classifier's weights from N(0, 1 / fan_in), LeCun's scale; restore them on exit.

    Its bias stays as it is: no gradient of a logit depends on it.

    Args:
        generator: on the CPU; weights are drawn in float32.

    Raises:
        ValueError: the model has no classifier that can be found."""
    weights = [layer.weight for layer in head_layers(model)]
    if not weights:
        raise ValueError(
            "no classifier head found (get_classifier(), or a last nn.Linear); use head='keep'"
        )
    # a copy, since subtracting what was added does not restore all bits
    copies = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                z = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
                weight.copy_(z * weight[0].numel() ** -0.5)
        yield
    finally:
        with torch.no_grad():
            for weight, copy in zip(weights, copies, strict=True):
                weight.copy_(copy)


def head_layers(model: nn.Module) -> list[Any]:
    """Return the layers of the classifier: those of timm's `get_classifier`, or the last nn.Linear.

    Only layers with a weight of two or more dimensions count."""
    owner: Any = next(
        (module for module in model.modules() if hasattr(module, "get_classifier")), None
    )
    if owner is None:
        return [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    heads = owner.get_classifier()
    parts = [
        module
        for head in (heads if isinstance(heads, tuple | list) else (heads,))
        for module in head.modules()
    ]
    return [
        m for m in parts if isinstance(w := getattr(m, "weight", None), nn.Parameter) and w.ndim > 1
    ]
