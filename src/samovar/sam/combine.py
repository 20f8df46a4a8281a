"""Combine the two gradients of a step: g at the weights w, g_s at the top of the climb.

No function here makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samovar.sam.shards import WHOLE, Shards, is_sharded, local, spread_as
from samovar.sam.variant import SamVariant

Grads = Sequence[Tensor | None]
"""One gradient for each parameter, in the same order; None (an unused parameter) counts as zero.

Of sharded parameters each is the rank's part, and a `Shards` sums what is global."""


@torch.no_grad()
def combined(
    variant: SamVariant, clean: Grads, robust: Grads, shards: Shards = WHOLE
) -> list[Tensor | None]:
    """Return the gradient for the optimizer; None where neither pass used a parameter.

    Source: GSAM, Zhuang et al., arXiv:2203.08065; WSAM, Yue et al., arXiv:2305.15817."""
    if variant.decoupled:
        return mixed(0.0, robust, 1.0, clean)
    if variant.alpha:  # g_s - alpha (g - share g_s)
        along = _coefficients([(clean, robust)], shards)[0]
        return mixed(1 + variant.alpha * along, robust, -variant.alpha, clean)
    if variant.gamma != 0.5:
        return mixed(variant.weight, robust, 1 - variant.weight, clean)
    # SAM's own g_s, copied: autograd may give one tensor to two parameters.
    return mixed(1.0, robust, 0.0, clean)


@torch.no_grad()
def across(clean: Grads, robust: Grads, shards: Shards = WHOLE) -> list[Tensor | None]:
    """Return the component of each parameter's g_s orthogonal to its g, as a unit vector.

    It is zero where nothing but rounding is left.

    Source: LookSAM, Liu et al., arXiv:2203.02714; parameter by parameter, as in the published
        code."""
    along = _coefficients([([g_s], [g]) for g, g_s in zip(clean, robust, strict=True)], shards)
    found: list[Tensor | None] = [
        mixed(1.0, [g_s], -each, [g])[0] for g, g_s, each in zip(clean, robust, along, strict=True)
    ]
    # without g_s there is no direction to make a unit vector of
    used = [i for i, g_s in enumerate(robust) if g_s is not None]
    lengths = shards.lengths([norm([found[i]]) for i in used])
    whole = shards.lengths([norm([robust[i]]) for i in used])
    for i, length, of_g_s in zip(used, lengths, whole, strict=True):
        found[i] = _unit(found[i], length, of_g_s)
    return found


def _unit(component: Tensor | None, length: Tensor, of_g_s: Tensor) -> Tensor | None:
    if component is None:
        return None
    # A parameter of one number has no orthogonal component, only rounding.
    rounding = 100 * torch.finfo(component.dtype).eps * of_g_s
    inverse = torch.where(length <= rounding, torch.zeros_like(length), 1 / length)
    return component * inverse.to(component)


def mixed(a: float | Tensor, xs: Grads, b: float | Tensor, ys: Grads) -> list[Tensor | None]:
    """Return a x + b y of each pair, in new tensors of its precision."""
    return [_mix(a, x, b, y) for x, y in zip(xs, ys, strict=True)]


def _mix(a: float | Tensor, x: Tensor | None, b: float | Tensor, y: Tensor | None) -> Tensor | None:
    found = None
    for factor, each in ((a, x), (b, y)):
        if each is not None and not (isinstance(factor, float) and factor == 0):
            term = each * (factor.to(each) if isinstance(factor, Tensor) else factor)
            found = term if found is None else found.add_(term)
    present = x if x is not None else y
    return torch.zeros_like(present) if found is None and present is not None else found


def norm(grads: Grads, shards: Shards = WHOLE) -> Tensor:
    """Return the Euclidean norm [] of all gradients together, in at least float32; 0 if none."""
    norms = [
        torch.linalg.vector_norm(each.to_dense(), dtype=_precise(each))
        for each in grads
        if each is not None
    ]
    here = (
        torch.linalg.vector_norm(torch.stack([each.to(norms[0]) for each in norms]))
        if norms
        else torch.zeros(())
    )
    return shards.lengths([here])[0]


def laid_out_as(param: Tensor, grad: Tensor | None) -> Tensor | None:
    """Return the gradient with the strides of its parameter, which fused optimizers assume.

    A part of a sharded parameter's gradient becomes a gradient that is sharded alike."""
    if is_sharded(param):
        part = laid_out_as(local(param), grad)
        return None if part is None else spread_as(param, part)
    if grad is None or grad.is_sparse or grad.stride() == param.stride():
        return grad
    return torch.empty_like(param, dtype=grad.dtype, requires_grad=False).copy_(grad)


def _coefficients(pairs: Sequence[tuple[Grads, Grads]], shards: Shards) -> list[Tensor]:
    """Return (x . y) / |y|^2 of each pair, the coefficient of x along y; 0 if y is zero."""
    dots = [dot for x, y in pairs for dot in (_dot(x, y), _dot(y, y))]
    sums = shards.sums(dots)
    return [along * _inverse(square) for along, square in zip(sums[::2], sums[1::2], strict=True)]


def _dot(x: Grads, y: Grads) -> Tensor:
    pairs = [
        (a.to(_precise(a)), b.to(_precise(b)))
        for a, b in zip(x, y, strict=True)
        if a is not None and b is not None
    ]
    dots = [(a * b).sum() for a, b in pairs]
    return torch.stack([each.to(dots[0]) for each in dots]).sum() if dots else torch.zeros(())


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.zeros_like(x), 1 / x)


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
