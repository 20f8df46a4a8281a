"""A check that an operator's products are those of its loss: once per operator, on a few examples.

A product relies on second derivatives, which a user's or torch's own functions may get wrong: a
backward pass marked `once_differentiable`, or a kernel that returns gradients without a graph.
First derivatives are what training uses, so they are trusted. Along a random direction u these must
agree, where g is the gradient (for Gauss-Newton, J^T times the slope over the outputs):

    H u = (g(w + h u) - g(w - h u)) / 2h   and   u.Hv = v.Hu

The check runs on two examples and in float64 where the loss allows, with h so small that hardly a
ReLU changes sign. Two things may hide the derivative: the ReLUs that do, which the second
difference g(w + h u) + g(w - h u) - 2 g(w) shows, and rounding, which is relative to the terms of
g. Where the examples are fitted these cancel; at random weights they do not. What is not beyond
both is no fault, and neither is what differs from one h to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from samovar.curvature.borrow import Mode, borrow, seed
from samovar.curvature.graphs import Graph, NotTwiceDifferentiable, Parts
from samovar.curvature.inputs import cast, convert, first_examples
from samovar.curvature.twice import Precision

EXAMPLES = 2
"""Examples of the first batch that the check runs on. With a single one, torch 2.15 takes a wrong
gradient of BatchNorm where the slope is laid out channels last."""
STEPS, SINGLE_STEPS = (1e-8, 1e-7, 1e-6), (1e-4, 1e-3, 1e-2)
"""Steps h, relative to the size of each weight tensor, for float64 and float32; the next is taken
if one shows nothing. Larger ones change the signs of many ReLUs."""
JITTER = 1e-2
"""How far from the weights the check takes place, relative to their size."""
FINE, COARSE = 0.02, 0.5
"""Largest relative error: of each weight tensor in float64, else of all of them together."""
ASYMMETRY = 0.3
"""Largest |u.Hv - v.Hu|, relative to the size that a sum of such terms has at random."""
LEAST = 1e3
"""Multiple of the precision below which a second derivative of a loss around 1 is only rounding."""
NOISE_FACTOR = 10.0
"""Multiple of the measured noise that is allowed."""
FLOOR = 1e-5
"""Share of the whole that does not count."""


def check_products(
    model: nn.Module,
    names: Sequence[str],
    batch: Any,
    dtype: torch.dtype,
    mode: Mode,
    graph_of: Callable[[Any, Sequence[Tensor]], Graph],
    slope_of: Callable[[Any, Sequence[Tensor]], Parts],
) -> bool:
    """Check the products of a batch's graph.

    Args:
        model: whose weights the graph differentiates.
        names: of the parameters that are differentiated.
        batch: as the operator's user gave it.
        dtype: of the operator, where the loss does not run in float64.
        mode: of the modules.
        graph_of: maps (batch, leaves) to the graph.
        slope_of: maps (batch, leaves) to what the graph's `slope` is.

    Returns:
        Whether they were seen to be right: noise may hide it, or the slope be zero.

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
            return True
    return False


def _fault(
    model: nn.Module,
    names: Sequence[str],
    batch: Any,
    dtype: torch.dtype,
    mode: Mode,
    graph_of: Callable[[Any, Sequence[Tensor]], Graph],
    slope_of: Callable[[Any, Sequence[Tensor]], Parts],
) -> str | None:
    """Return what is wrong in a few words, "" if nothing is, None if it cannot be seen."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: cast(x, dtype) for name, x in model.named_parameters()}
    buffers = dict(model.named_buffers())
    # A little off the weights, where the input of no ReLU is exactly 0, as at a bias of 0.
    leaves = [
        (
            tensors[name] + JITTER * _size(tensors[name]) * _random(tensors[name], generator)
        ).requires_grad_()
        for name in names
    ]
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
        with Precision() as precision:
            graph = graph_of(batch, leaves)
        if not any(bool(x.any()) for x in _filled(graph.slope())):
            return None
        single = dtype == torch.float32 or precision.single
        return _compare(graph, slope, [leaf.detach() for leaf in leaves], single)

    wrong: str | None = run(leaves, found)
    return wrong


def _compare(
    graph: Graph,
    slope: Callable[[Sequence[Tensor]], list[Tensor]],
    weights: list[Tensor],
    single: bool,
) -> str | None:
    """Compare a product with central differences of slopes, and with a second one.

    Args:
        graph: the products.
        slope: maps weights to the slope there.
        weights: where the graph was built.
        single: whether the loss computes in float32.

    Returns:
        What differs, "" if nothing does, None if the noise hides it."""
    scales = [_size(w) for w in weights]
    u, v = _directions(weights, _dense(graph.gradient(), weights), scales)
    hu, hv = (_dense(graph.product(x, keep=True), weights) for x in (u, v))
    here = _filled(graph.slope())

    def at(step: float) -> list[Tensor]:
        return slope([w + step * x for w, x in zip(weights, u, strict=True)])

    def sizes(slopes: list[Tensor]) -> list[float]:
        return _sizes(_dense(graph.pull(slopes), weights), scales)

    eps = torch.finfo(torch.float32 if single else torch.float64).eps

    @cache
    def rounding() -> list[float]:
        """Return the rounding of a slope, by its terms: they do not cancel at random weights."""
        away = slope([(w + x) / 2**0.5 for w, x in zip(weights, u, strict=True)])
        return [eps * size for size in sizes(away)]

    before: list[Tensor] | None = None
    for step in SINGLE_STEPS if single else STEPS:
        right, left = at(step), at(-step)
        first = [(r - s) / (2 * step) for r, s in zip(right, left, strict=True)]
        second = [(r + s - 2 * x) / (2 * step) for r, s, x in zip(right, left, here, strict=True)]
        expected, kinks = _dense(graph.pull(first), weights), sizes(second)
        error, share = _error(hu, expected, kinks, scales, single=single)
        if error == 0:
            apart, size = _asymmetry(u, v, hu, hv)
            if apart <= (ASYMMETRY + share) * size or apart <= LEAST * eps:
                return ""
            return f"u.Hv and v.Hu differ by {apart / size:.1%}"
        hiding = [kink + each / step for kink, each in zip(kinks, rounding(), strict=True)]
        error = _error(hu, expected, hiding, scales, single=single)[0]
        if 0 < error < math.inf:
            if before and _error(before, expected, hiding, scales, single=single)[0] == 0:
                return f"they are {error:.0%} off a difference of gradients"
            before = expected
    return None


def _directions(
    weights: list[Tensor], gradient: list[Tensor], scales: list[float]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return two random directions, each weight tensor in units of its size."""
    generator = torch.Generator().manual_seed(0)
    noise = [_random(w, generator) for w in weights]
    # Entries without a gradient stay: the row of a padding token moves the loss, but not itself.
    moving = [
        s if g.all() or not g.any() else s * (g != 0) for g, s in zip(gradient, scales, strict=True)
    ]
    return (
        [s * x for x, s in zip(noise, moving, strict=True)],
        [s * x.flatten().flip(0).view_as(x) for x, s in zip(noise, moving, strict=True)],
    )


def _error(
    product: list[Tensor],
    expected: list[Tensor],
    noise: list[float],
    scales: list[float],
    *,
    single: bool,
) -> tuple[float, float]:
    """Return the relative error, and the share of the noise.

    The error is 0 where it is within its tolerance, and inf where noise hides it."""
    difference = [a - b for a, b in zip(product, expected, strict=True)]
    wrong, has, wants = (_sizes(parts, scales) for parts in (difference, product, expected))
    whole = max(math.hypot(*has), math.hypot(*wants))
    if whole == 0:
        return 0.0, 0.0
    noise = [NOISE_FACTOR * each for each in noise]
    share = math.hypot(*noise) / whole
    # Nothing moves at all where the step is below the precision in which the loss computes.
    if not share <= 1 or not any(wants):
        return math.inf, share
    if single:
        error = math.hypot(*wrong) / whole
        return (error if error > COARSE else 0.0), share
    errors = (
        off / max(a, b)
        for off, a, b, n in zip(wrong, has, wants, noise, strict=True)
        if off > FINE * max(a, b) + n + FLOOR * whole
    )
    return max(errors, default=0.0), share


def _sizes(parts: Sequence[Tensor], scales: list[float]) -> list[float]:
    return [float(torch.linalg.vector_norm(x)) * s for x, s in zip(parts, scales, strict=True)]


def _asymmetry(
    u: list[Tensor], v: list[Tensor], hu: list[Tensor], hv: list[Tensor]
) -> tuple[float, float]:
    """Return |u.Hv - v.Hu|, and the size of such a number at random."""

    def total(x: list[Tensor], y: list[Tensor]) -> float:
        return sum(float(a.flatten() @ b.flatten()) for a, b in zip(x, y, strict=True))

    size = math.hypot(
        *(
            float(torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
            / math.sqrt(max(1, a.numel()))
            for a, b in zip(u + v, hv + hu, strict=True)
        )
    )
    return abs(total(u, hv) - total(v, hu)), size


def _size(w: Tensor) -> float:
    """Return the root mean square of a weight tensor, or a hundredth where that is smaller."""
    return max(1e-2, float(torch.linalg.vector_norm(w)) / math.sqrt(max(1, w.numel())))


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def _dense(parts: Parts, like: Sequence[Tensor]) -> list[Tensor]:
    return [
        torch.zeros_like(w) if x is None else x.detach() for x, w in zip(parts, like, strict=True)
    ]


def _filled(parts: Parts) -> list[Tensor]:
    return [torch.zeros(()) if x is None else x.detach() for x in parts]
