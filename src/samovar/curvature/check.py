"""A check that an operator's products are those of its loss: once per operator, on a few examples.

A product relies on second derivatives, which a user's or torch's own functions may get wrong: a
backward pass marked `once_differentiable`, or a kernel that returns gradients without a graph.
First derivatives are what training uses, so they are trusted. Along a random direction u these must
agree, where g is the gradient (for Gauss-Newton, J^T times the slope over the outputs):

    H u = (g(w + h u) - g(w - h u)) / 2h   and   u.Hv = v.Hu

The check runs on two examples and in float64 where the loss allows, with h so small that hardly a
ReLU changes sign. The second difference g(w + h u) + g(w - h u) - 2 g(w) measures rounding, and the
ReLUs that do; what is not beyond that is no fault."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samovar.curvature.borrow import Mode, borrow, seed
from samovar.curvature.graphs import Graph, NotTwiceDifferentiable, Parts
from samovar.curvature.inputs import cast, convert, first_examples

EXAMPLES = 2
"""Examples of the first batch that the check runs on."""
STEPS = {torch.float64: (1e-8, 1e-6, 1e-4, 1e-2), torch.float32: (1e-3, 1e-2)}
"""Steps h, relative to the size of each weight tensor; the next is taken if one shows nothing."""
FINE_STEP = 1e-6
"""Largest step that hardly changes the sign of a ReLU."""
FINE, COARSE = 0.02, 0.5
"""Largest relative error: of each weight tensor for a fine step, else of all of them together."""
FINE_ASYMMETRY, COARSE_ASYMMETRY = 1e-3, 0.05
"""Largest |u.Hv - v.Hu|, relative to the size that a sum of such terms has at random."""
NOISE_FACTOR, FLOOR = 10.0, 1e-5
"""Multiple of the measured noise that is allowed, and share of the whole that does not count."""


def check_products(
    model: nn.Module,
    names: Sequence[str],
    batch: Any,
    dtype: torch.dtype,
    mode: Mode,
    graph_of: Callable[[Any, Sequence[Tensor]], Graph],
    slope_of: Callable[[Any, Sequence[Tensor]], Parts],
) -> None:
    """Check the products of a batch's graph.

    Args:
        model: whose weights the graph differentiates.
        names: of the parameters that are differentiated.
        batch: as the operator's user gave it.
        dtype: of the operator, where the loss does not run in float64.
        mode: of the modules.
        graph_of: maps (batch, leaves) to the graph.
        slope_of: maps (batch, leaves) to what the graph's `slope` is.

    Raises:
        ValueError: the products are wrong, or cannot be computed."""
    dtypes = list(dict.fromkeys((torch.float64, dtype)))
    attempts = [(b, d) for b in (first_examples(batch, EXAMPLES), batch) for d in dtypes]
    for few, precision in attempts:
        try:
            wrong = _fault(model, names, few, precision, mode, graph_of, slope_of)
        except NotTwiceDifferentiable:
            raise
        except Exception:  # a loss may refuse float64, or two examples, by any error
            continue
        if wrong:
            raise ValueError(
                f"the products are not those of the loss: {wrong}; look for a function whose "
                "gradient has no right derivative (once_differentiable, a custom kernel, a detach, "
                "a straight-through estimator) and use its reference implementation in plain "
                "torch (weight_norm: remove_parametrizations first), or skip this check with "
                "check=False (--no-check)"
            )
        if wrong is not None:
            return


def _fault(
    model: nn.Module,
    names: Sequence[str],
    batch: Any,
    dtype: torch.dtype,
    mode: Mode,
    graph_of: Callable[[Any, Sequence[Tensor]], Graph],
    slope_of: Callable[[Any, Sequence[Tensor]], Parts],
) -> str | None:
    """Return what is wrong in a few words, "" if nothing is, None if the slope is zero."""
    tensors = {name: cast(x, dtype) for name, x in model.named_parameters()}
    buffers = dict(model.named_buffers())
    leaves = [tensors[name].requires_grad_() for name in names]
    batch = convert(batch, leaves[0].device, dtype)

    def run(weights: Sequence[Tensor], task: Callable[[Any, Sequence[Tensor]], Any]) -> Any:
        """Return task(batch, weights), run on the model with these weights."""
        device = leaves[0].device
        copies = {name: cast(x, dtype, copy=True) for name, x in buffers.items()}

        def seeded() -> Any:
            seed(0, device)
            return task(batch, weights)

        replaced = tensors | dict(zip(names, weights, strict=True)) | copies
        return borrow(model, replaced, mode, device, seeded)

    def slope(weights: Sequence[Tensor]) -> list[Tensor]:
        return _filled(run([w.detach().requires_grad_() for w in weights], slope_of))

    def found(batch: Any, leaves: Sequence[Tensor]) -> str | None:
        graph = graph_of(batch, leaves)
        if not any(bool(x.any()) for x in _filled(graph.slope())):
            return None
        return _compare(graph, slope, [leaf.detach() for leaf in leaves])

    wrong: str | None = run(leaves, found)
    return wrong


def _compare(
    graph: Graph, slope: Callable[[Sequence[Tensor]], list[Tensor]], weights: list[Tensor]
) -> str:
    """Compare two products with a central difference of slopes, and with each other.

    Returns:
        What differs, "" if nothing does or the noise hides it."""
    generator = torch.Generator().manual_seed(0)
    # In units of the size of each weight tensor, or of a hundredth where it is small.
    scales = [max(1e-2, float(w.square().mean().sqrt())) for w in weights]
    u, v = ([s * _random(w, generator) for w, s in zip(weights, scales, strict=True)] for _ in "uv")
    hu, hv = (_dense(graph.product(x, keep=True), weights) for x in (u, v))
    here = _filled(graph.slope())
    errors: list[float] = []
    for step in STEPS[weights[0].dtype]:
        fine = step <= FINE_STEP
        if errors and not fine:
            break
        right, left = (
            slope([w + sign * step * x for w, x in zip(weights, u, strict=True)])
            for sign in (1, -1)
        )
        first = [(r - s) / (2 * step) for r, s in zip(right, left, strict=True)]
        second = [(r + s - 2 * x) / (2 * step) for r, s, x in zip(right, left, here, strict=True)]
        expected, noise = (_dense(graph.pull(x), weights) for x in (first, second))
        error = _error(hu, expected, noise, scales, fine=fine)
        if error == 0:
            return _asymmetry(u, v, hu, hv, FINE_ASYMMETRY if fine else COARSE_ASYMMETRY)
        if math.isfinite(error):
            errors.append(error)
    return f"they are {min(errors):.0%} off a difference of gradients" if errors else ""


def _error(
    product: list[Tensor],
    expected: list[Tensor],
    noise: list[Tensor],
    scales: list[float],
    *,
    fine: bool,
) -> float:
    """Return the relative error, 0 where it is within its tolerance, inf where noise hides it."""
    difference = [a - b for a, b in zip(product, expected, strict=True)]
    wrong, has, wants, noisy = (
        [float(torch.linalg.vector_norm(x)) * s for x, s in zip(parts, scales, strict=True)]
        for parts in (difference, product, expected, noise)
    )
    whole = max(math.hypot(*has), math.hypot(*wants))
    if not math.isfinite(whole) or not math.hypot(*noisy) <= 0.1 * whole:
        return math.inf
    if not fine:
        error = math.hypot(*wrong) / whole if whole else 0.0
        return error if error > COARSE else 0.0
    return max(
        (
            off / max(a, b)
            for off, a, b, n in zip(wrong, has, wants, noisy, strict=True)
            if off > FINE * max(a, b) + NOISE_FACTOR * n + FLOOR * whole
        ),
        default=0.0,
    )


def _asymmetry(
    u: list[Tensor], v: list[Tensor], hu: list[Tensor], hv: list[Tensor], allowed: float
) -> str:
    one, other = (
        torch.cat([(x * y).flatten() for x, y in zip(xs, ys, strict=True)]).cpu().double()
        for xs, ys in ((u, hv), (v, hu))
    )
    size = float(one.norm() + other.norm())
    apart = abs(float(one.sum() - other.sum()))
    return f"u.Hv and v.Hu differ by {apart / size:.1%}" if apart > allowed * size else ""


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def _dense(parts: Parts, like: Sequence[Tensor]) -> list[Tensor]:
    return [
        torch.zeros_like(w) if x is None else x.detach() for x, w in zip(parts, like, strict=True)
    ]


def _filled(parts: Parts) -> list[Tensor]:
    return [torch.zeros(()) if x is None else x.detach() for x in parts]
