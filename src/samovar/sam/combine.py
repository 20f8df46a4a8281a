"""Combine the two gradients of a step: g at the weights w, g_s at the top of the climb.

No function here makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samovar.sam.variant import SamVariant

Grads = Sequence[Tensor | None]
"""One gradient for each parameter, in the same order; None (an unused parameter) counts as zero."""


@torch.no_grad()
def combined(variant: SamVariant, clean: Grads, robust: Grads) -> list[Tensor | None]:
    """Return the gradient for the optimizer; None where neither pass used a parameter.

    Source: GSAM, Zhuang et al., arXiv:2203.08065; WSAM, Yue et al., arXiv:2305.15817."""
    if variant.decoupled:
        return mixed(0.0, robust, 1.0, clean)
    if variant.alpha:  # g_s - alpha (g - share g_s)
        return mixed(1 + variant.alpha * _coefficient(clean, robust), robust, -variant.alpha, clean)
    if variant.gamma != 0.5:
        return mixed(variant.weight, robust, 1 - variant.weight, clean)
    # SAM's own g_s, copied: autograd may give one tensor to two parameters.
    return mixed(1.0, robust, 0.0, clean)


@torch.no_grad()
def across(clean: Grads, robust: Grads) -> list[Tensor | None]:
    """Return the component of each parameter's g_s orthogonal to its g, as a unit vector.

    It is zero where nothing but rounding is left.

    Source: LookSAM, Liu et al., arXiv:2203.02714; parameter by parameter, as in the published
        code."""
    return [_across(g, g_s) for g, g_s in zip(clean, robust, strict=True)]


def _across(clean: Tensor | None, robust: Tensor | None) -> Tensor | None:
    (component,) = mixed(1.0, [robust], -_coefficient([robust], [clean]), [clean])
    if component is None or robust is None:
        return component
    length = norm([component])
    # A parameter of one number has no orthogonal component, only rounding.
    rounding = 100 * torch.finfo(component.dtype).eps * norm([robust])
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


def norm(grads: Grads) -> Tensor:
    """Return the Euclidean norm [] of all gradients together, in at least float32; 0 if none."""
    norms = [
        torch.linalg.vector_norm(each.to_dense(), dtype=_precise(each))
        for each in grads
        if each is not None
    ]
    return (
        torch.linalg.vector_norm(torch.stack([each.to(norms[0]) for each in norms]))
        if norms
        else torch.zeros(())
    )


def laid_out_as(param: Tensor, grad: Tensor | None) -> Tensor | None:
    """Return the gradient with the strides of its parameter, which fused optimizers assume."""
    if grad is None or grad.is_sparse or grad.stride() == param.stride():
        return grad
    return torch.empty_like(param, dtype=grad.dtype, requires_grad=False).copy_(grad)


def _coefficient(x: Grads, y: Grads) -> Tensor:
    """Return (x . y) / |y|^2, the coefficient of x along y; 0 if y is zero."""
    return _dot(x, y) * _inverse(_dot(y, y))


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
