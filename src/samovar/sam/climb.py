"""The climb from the weights w to w + e, which parameters take part in it, and the way back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# parameters per foreach call: few kernel launches, yet temporaries that are a small part of the
# weights
CHUNK = 16
CHUNK_ON_CPU = 1  # where launches cost nothing, and temporaries should stay in the cache


class Leaf(NamedTuple):
    """One parameter of the ascent; eta is None where ASAM does not apply."""

    param: Tensor
    grad: Tensor
    rho: float
    eta: float | None


def leaves_of(
    names: Iterable[str],
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    rho: float,
    eta: float | None,
) -> list[Leaf]:
    """The parameters that have a gradient, ready to be perturbed; eta is None for plain SAM."""
    # "weight" in the name is the rule of the authors of ASAM: github.com/SamsungLabs/ASAM, asam.py
    return [
        Leaf(
            param,
            grad.to_dense(),
            rho,
            eta if "weight" in name and "bias" not in name.rpartition(".")[2] else None,
        )
        for name, param, grad in zip(names, params, grads, strict=True)
        if grad is not None
    ]


@contextmanager
def climbed(leaves: list[Leaf], again: Iterable[Callable[[], list[Leaf]]] = ()) -> Iterator[None]:
    """Inside, the weights are at the top of the climb; outside, as before to the bit. Empties
    `leaves`.

    Args:
        again: each gives the leaves of a further step at the weights then; those that are not of
            the first stay."""
    params = [leaf.param for leaf in leaves]
    copies = [
        param.detach().clone() for param in params
    ]  # (w + e) - e restores only 99.6 % of float32 weights exactly
    moved = set(map(id, params))
    try:
        _climb(leaves)
        leaves.clear()  # frees the ascent gradient before the descent needs the memory
        # an outer autocast would go on with its 16-bit copies of the clean weights
        torch.clear_autocast_cache()
        for more in again:
            _climb([leaf for leaf in more() if id(leaf.param) in moved])
            torch.clear_autocast_cache()
        yield
    finally:
        if params:
            with torch.no_grad():
                torch._foreach_copy_(params, copies)
        torch.clear_autocast_cache()


@torch.no_grad()
def _climb(leaves: list[Leaf]) -> None:
    """Move every leaf to w + rho T^2 g / |T g| in place, or nowhere if |T g| is 0 or not finite. No
    host sync."""
    if not leaves:
        return
    norms = [
        n
        for params, grads, _, eta in _chunks(leaves)
        for n in torch._foreach_norm(_times_t(params, grads, eta))
    ]
    norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    for params, grads, rho, eta in _chunks(leaves):
        steps = torch._foreach_mul(
            _times_t(params, _times_t(params, grads, eta), eta), (rho / norm).to(grads[0])
        )
        for (
            step
        ) in steps:  # an unusable norm made all of them 0, nan (0 * inf among them) or infinite
            step.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        torch._foreach_add_(params, steps)


@torch.no_grad()
def layerwise(leaves: list[Leaf]) -> list[Leaf]:
    """Leaves whose gradients are as long as their weights, so that the climb is rho |w_l| / |w|
    along each g_l / |g_l|.

    Source: the layer-wise rule of Liu et al. (LookSAM), arXiv:2203.02714, with rho the length of
        the whole climb."""
    return [leaf._replace(grad=_as_long_as(leaf.param, leaf.grad)) for leaf in leaves]


def _as_long_as(param: Tensor, grad: Tensor) -> Tensor:
    precise = torch.promote_types(grad.dtype, torch.float32)
    length = torch.linalg.vector_norm(grad, dtype=precise)
    ratio = torch.linalg.vector_norm(param, dtype=precise) / length
    return grad.to(precise) * torch.where(length == 0, torch.zeros_like(ratio), ratio)


def against_momentum(named: Mapping[str, Tensor], optimizer: Optimizer) -> list[Tensor | None]:
    """Minus the momentum that an optimizer keeps of each parameter, the way its next step goes;
    None before its first.

    Raises:
        ValueError: the optimizer keeps none.

    Source: Becker et al. (MSAM), arXiv:2401.12033: SGD's buffer, Adam's first moment."""
    without = any(
        group.get("momentum") == 0 and "betas" not in group for group in optimizer.param_groups
    )
    states = [optimizer.state.get(param, {}) for param in named.values()]
    found = [
        next((state[key] for key in _MOMENTA if state.get(key) is not None), None)
        for state in states
    ]
    if without or (any(states) and all(each is None for each in found)):
        raise ValueError(
            f"{type(optimizer).__name__} keeps no momentum to climb along; give it some (momentum=0.9), or use AdamW"
        )
    return [None if each is None else -each for each in found]


_MOMENTA = ("momentum_buffer", "exp_avg")


def norm_parameters(modules: Iterable[nn.Module]) -> set[nn.Parameter]:
    """Parameters of normalization layers: modules with "norm" in the name of their class, which
    libraries adhere to.

    Source: Mueller et al. (SAM-ON), arXiv:2306.04226."""
    layers = (module for module in modules if "norm" in type(module).__name__.lower())
    return {param for layer in layers for param in layer.parameters(recurse=False)}


def _chunks(leaves: list[Leaf]) -> Iterator[tuple[list[Tensor], list[Tensor], float, float | None]]:
    """(params, gradients in at least float32, rho, eta) of a few leaves at a time, alike in device,
    types, settings."""
    alike = defaultdict(list)
    for leaf in leaves:
        alike[leaf.param.device, leaf.param.dtype, leaf.grad.dtype, leaf.rho, leaf.eta].append(leaf)
    for (device, _, dtype, rho, eta), members in alike.items():
        precise = torch.promote_types(dtype, torch.float32)
        size = CHUNK_ON_CPU if device.type == "cpu" else CHUNK
        for start in range(0, len(members), size):
            chunk = members[start : start + size]
            yield (
                [leaf.param for leaf in chunk],
                [leaf.grad.to(precise) for leaf in chunk],
                rho,
                eta,
            )


def _times_t(params: list[Tensor], grads: list[Tensor], eta: float | None) -> list[Tensor]:
    """T g, with T = |w| + eta, or 1 if eta is None; g, which autograd may give to two leaves, is
    not written to."""
    if eta is None:
        return grads
    t = torch._foreach_abs(
        [param.to(grad.dtype) for param, grad in zip(params, grads, strict=True)]
    )
    torch._foreach_add_(t, eta)
    torch._foreach_mul_(t, grads)
    return list(t)
