"""What is made of the two gradients of a step: g at the weights, g_s at the top of the climb. No
host sync."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samovar.sam.variant import SamVariant

Grads = Sequence[Tensor | None]
"""Of the same parameters in the same order; None, of one that a pass did not use, counts as
zero."""


@torch.no_grad()
def combined(variant: SamVariant, clean: Grads, robust: Grads) -> list[Tensor | None]:
    """The gradient that goes to the optimizer; None where neither pass used a parameter.

    Source: GSAM, Zhuang et al., arXiv:2203.08065; WSAM, Yue et al., arXiv:2305.15817."""
    if variant.decoupled:
        return mixed(0.0, robust, 1.0, clean)
    if variant.alpha:  # g_s - alpha (g - share g_s)
        return mixed(1 + variant.alpha * _share(clean, robust), robust, -variant.alpha, clean)
    if variant.gamma != 0.5:
        return mixed(variant.weight, robust, 1 - variant.weight, clean)
    return mixed(
        1.0, robust, 0.0, clean
    )  # copies, as autograd may give one tensor to two parameters


@torch.no_grad()
def across(clean: Grads, robust: Grads) -> list[Tensor | None]:
    """The component of each parameter's g_s across its g as a unit vector; zero where there is none
    but rounding.

    Source: LookSAM, Liu et al., arXiv:2203.02714; parameter by parameter, as in the code that is in
        use."""
    return [_across(g, g_s) for g, g_s in zip(clean, robust, strict=True)]


def _across(clean: Tensor | None, robust: Tensor | None) -> Tensor | None:
    (component,) = mixed(1.0, [robust], -_share([robust], [clean]), [clean])
    if component is None or robust is None:
        return component
    length = norm([component])
    rounding = (
        100 * torch.finfo(component.dtype).eps * norm([robust])
    )  # all that a parameter of one number has
    return component * torch.where(length <= rounding, torch.zeros_like(length), 1 / length).to(
        component
    )


def mixed(a: float | Tensor, xs: Grads, b: float | Tensor, ys: Grads) -> list[Tensor | None]:
    """a x + b y of each pair, in new tensors of its precision."""
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
    """Euclidean norm of all together, a scalar in at least float32; 0 of none."""
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
    """The gradient with the strides of its parameter, which fused optimizers read it by
    unchecked."""
    if grad is None or grad.is_sparse or grad.stride() == param.stride():
        return grad
    return torch.empty_like(param, dtype=grad.dtype, requires_grad=False).copy_(grad)


def _share(x: Grads, y: Grads) -> Tensor:
    """How much of y there is in x, (x . y) / |y|^2; 0 where y is."""
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
