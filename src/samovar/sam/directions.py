"""Which parameters climb, how far, and along which direction if not the gradient itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from samovar.sam.shards import WHOLE, Shards, local

Named = dict[str, Tensor]


class Climber(NamedTuple):
    """A parameter that takes part in the climb."""

    param: Tensor
    rho: float
    """Radius of the whole climb, > 0."""
    eta: float | None
    """ASAM's offset; None where ASAM does not apply."""


class Leaf(NamedTuple):
    """One step of the climb for one parameter."""

    param: Tensor
    grad: Tensor
    """Dense, in the shape of `param`; of a sharded parameter both are the rank's part."""
    rho: float
    eta: float | None


def asam_offset(name: str, eta: float | None) -> float | None:
    """Return ASAM's offset for a parameter, None where its perturbation is not adaptive.

    Source: "weight" in the name is the rule of ASAM's authors, github.com/SamsungLabs/ASAM."""
    return eta if "weight" in name and "bias" not in name.rpartition(".")[2] else None


def norm_parameters(modules: Iterable[nn.Module]) -> set[nn.Parameter]:
    """Return the parameters of normalization layers: modules with "norm" in their class's name.

    Source: Mueller et al. (SAM-ON), arXiv:2306.04226."""
    layers = (module for module in modules if "norm" in type(module).__name__.lower())
    return {param for layer in layers for param in layer.parameters(recurse=False)}


@torch.no_grad()
def layerwise(leaves: list[Leaf], shards: Shards = WHOLE) -> list[Leaf]:
    """Make each gradient as long as its weights: the climb is rho |w_l| / |w| along g_l / |g_l|.

    Source: the layer-wise rule of Liu et al. (LookSAM), arXiv:2203.02714, with rho the length of
        the whole climb."""
    lengths = shards.lengths([_length(leaf.grad, leaf.grad) for leaf in leaves])
    weights = shards.lengths([_length(leaf.param, leaf.grad) for leaf in leaves])
    return [
        leaf._replace(grad=_as_long_as(weight, leaf.grad, length))
        for leaf, weight, length in zip(leaves, weights, lengths, strict=True)
    ]


def _length(tensor: Tensor, grad: Tensor) -> Tensor:
    precise = torch.promote_types(grad.dtype, torch.float32)
    length: Tensor = torch.linalg.vector_norm(tensor, dtype=precise)
    return length


def _as_long_as(weight: Tensor, grad: Tensor, length: Tensor) -> Tensor:
    ratio = weight / length
    precise = torch.promote_types(grad.dtype, torch.float32)
    return grad.to(precise) * torch.where(length == 0, torch.zeros_like(ratio), ratio)


@torch.no_grad()
def noise(
    climbers: Mapping[str, Climber], squares: Mapping[str, Tensor], eta: float
) -> dict[str, Tensor | None]:
    """Return Gaussian noise for each parameter, to be added rho times; it draws from torch's RNG.

    Its standard deviation is |w_r| / sqrt(1 + eta S_r), where r is the row (filter) of an entry:
    its index in the first dimension. A vector has one norm, and S of its own for each entry.

    Args:
        climbers: the parameters, by name.
        squares: running means of squared gradients, by name; S_r is their sum over a row. 0 where
            there are none.
        eta: ARWP's eta.

    Source: Li et al. (ARWP), arXiv:2404.00357; rows, sums and vectors as in the authors' code."""
    return {name: _noise(each.param, squares.get(name), eta) for name, each in climbers.items()}


def _noise(param: Tensor, squares: Tensor | None, eta: float) -> Tensor:
    precise = torch.promote_types(param.dtype, torch.float32)
    rest = tuple(range(1, param.ndim))
    norms = torch.linalg.vector_norm(param, dim=rest or None, keepdim=True, dtype=precise)
    drawn: Tensor = torch.randn_like(param, dtype=precise) * norms
    if squares is None or not eta:
        return drawn
    sums = squares.to(precise).sum(rest, keepdim=True) if rest else squares.to(precise)
    return drawn.div_((1 + eta * sums).sqrt())


def second_moments(climbers: Mapping[str, Climber], optimizer: Optimizer | None) -> Named:
    """Return the optimizer's running means of squared gradients; empty if it keeps none (yet)."""
    states = {} if optimizer is None else optimizer.state
    found = {name: states.get(each.param, {}) for name, each in climbers.items()}
    return {
        name: local(state["exp_avg_sq"]) for name, state in found.items() if "exp_avg_sq" in state
    }


_MOMENTA = ("momentum_buffer", "exp_avg")
"""Where SGD and Adam keep their momentum in the optimizer's state."""


def against_momentum(
    climbers: Mapping[str, Climber], optimizer: Optimizer
) -> dict[str, Tensor | None]:
    """Return minus the optimizer's momentum of each parameter; None before its first step.

    Raises:
        ValueError: the optimizer keeps none.

    Source: Becker et al. (MSAM), arXiv:2401.12033: SGD's buffer, Adam's first moment."""
    without = any(
        group.get("momentum") == 0 and "betas" not in group for group in optimizer.param_groups
    )
    states = {name: optimizer.state.get(each.param, {}) for name, each in climbers.items()}
    found = {
        name: next((state[key] for key in _MOMENTA if state.get(key) is not None), None)
        for name, state in states.items()
    }
    if without or (any(states.values()) and all(each is None for each in found.values())):
        raise ValueError(
            f"{type(optimizer).__name__} keeps no momentum to climb along; give it some "
            "(momentum=0.9), or use AdamW"
        )
    return {name: None if each is None else -local(each) for name, each in found.items()}
