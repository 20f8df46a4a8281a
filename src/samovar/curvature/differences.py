"""Compare a product with differences of gradients, beyond kinks and rounding.

Two things may hide the derivative: the ReLUs that change sign between the two gradients, which the
second difference g(w + h u) + g(w - h u) - 2 g(w) shows, and rounding, which is relative to the
terms of g. Where the examples are fitted these cancel; at random weights they do not. What is not
beyond both is no fault, and neither is what differs from one h to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

from samovar.curvature.graphs import Graph, Parts

Slope = Callable[[Sequence[Tensor]], list[Tensor]]
"""Maps weights to the slope of a batch there."""

STEPS, SINGLE_STEPS = (1e-8, 1e-7, 1e-6), (1e-4, 1e-3, 1e-2)
"""Steps h, relative to the size of each weight tensor, for float64 and float32; the next is taken
if one shows nothing. Larger ones change the signs of many ReLUs."""
FINE = 0.02
"""Largest relative error of each weight tensor, in float64."""
NEAR, COARSE = 0.1, 0.5
"""Largest relative error of all weights together in float32: without noise, and with any."""
ASYMMETRY = 0.3
"""Largest |u.Hv - v.Hu|, relative to the size that a sum of such terms has at random."""
LEAST = 1e3
"""Multiple of the precision below which a second derivative of a loss around 1 is only rounding."""
NOISE_FACTOR = 10.0
"""Multiple of the measured noise that is allowed."""
FLOOR = 1e-5
"""Share of the whole that does not count."""


def agrees(graph: Graph, slope: Slope, weights: list[Tensor], u: list[Tensor]) -> bool:
    """Return whether a product is the difference of two slopes, with nothing allowed for noise.

    Args:
        graph: the products, in float64.
        slope: maps weights to the slope there.
        weights: where the graph was built; they move by about 1e-8 of their size.
        u: a random direction, each weight tensor in units of its size; it is overwritten."""
    scales, u = [size_of(w) for w in weights], _moving(u, graph)
    product = _dense(graph.product(u, keep=True), weights)
    step = STEPS[0]
    torch._foreach_add_(weights, u, alpha=step)
    change = [x - y for x, y in zip(slope(weights), filled(graph.slope()), strict=True)]
    torch._foreach_div_(change, step)
    expected = _dense(graph.pull(change), weights)
    return _error(product, expected, [0.0] * len(scales), scales, single=False)[0] == 0


def fault(
    graph: Graph, slope: Slope, weights: list[Tensor], u: list[Tensor], *, single: bool
) -> str | None:
    """Compare a product with central differences of slopes, and with a second one.

    Args:
        graph: the products.
        slope: maps weights to the slope there.
        weights: where the graph was built.
        u: a random direction, each weight tensor in units of its size; it is overwritten.
        single: whether the loss computes in float32.

    Returns:
        What differs, "" if nothing does, None if the noise hides it."""
    scales = [size_of(w) for w in weights]
    u, v = (_moving(x, graph) for x in (u, [x.flatten().flip(0).view_as(x) for x in u]))
    hu, hv = (_dense(graph.product(x, keep=True), weights) for x in (u, v))
    here = filled(graph.slope())

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


def _moving(u: list[Tensor], graph: Graph) -> list[Tensor]:
    """Return a direction, overwritten, in which entries without a gradient stay.

    The row of a padding token moves the loss, but not itself."""
    for x, g in zip(u, graph.gradient(), strict=True):
        if g is not None and 0 < int(torch.count_nonzero(g)) < g.numel():
            x.mul_(g != 0)
    return u


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
    # one after the other, because memory that is new takes longer than the subtraction
    difference = (a - b for a, b in zip(product, expected, strict=True))
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
        return (error if error > min(COARSE, NEAR + share) else 0.0), share
    errors = (
        off / max(a, b)
        for off, a, b, n in zip(wrong, has, wants, noise, strict=True)
        if off > FINE * max(a, b) + n + FLOOR * whole
    )
    return max(errors, default=0.0), share


def _sizes(parts: Iterable[Tensor], scales: list[float]) -> list[float]:
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


def size_of(w: Tensor) -> float:
    """Return the root mean square of a weight tensor, or a hundredth where that is smaller."""
    return max(1e-2, float(torch.linalg.vector_norm(w)) / math.sqrt(max(1, w.numel())))


def _dense(parts: Parts, like: Sequence[Tensor]) -> list[Tensor]:
    return [
        torch.zeros_like(w) if x is None else x.detach() for x, w in zip(parts, like, strict=True)
    ]


def filled(parts: Parts) -> list[Tensor]:
    """Return detached tensors, 0 for None."""
    return [torch.zeros(()) if x is None else x.detach() for x in parts]
