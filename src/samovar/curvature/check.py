"""A check that an operator's products are those of its loss: once per operator, on a few examples.

A product relies on second derivatives, which a user's or torch's own functions may get wrong: a
backward pass marked `once_differentiable`, or a kernel that returns gradients without a graph.
First derivatives are what training uses, so they are trusted. Along a random direction u these must
agree, where g is the gradient (for Gauss-Newton, J^T times the slope over the outputs):

    H u = (g(w + h u) - g(w)) / h

in float64 and for a single example, with h so small that hardly a ReLU changes sign. Where they do
not, or the loss does not run so, a slower comparison decides, on two examples:

    H u = (g(w + h u) - g(w - h u)) / 2h   and   u.Hv = v.Hu

It allows for kinks and rounding (see `differences`). Lanczos compares u.Hv with v.Hu too, on all
examples, with the products that it has."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samovar.curvature.borrow import Mode, borrow, seed
from samovar.curvature.differences import agrees, fault, filled, size_of
from samovar.curvature.graphs import Graph, NotTwiceDifferentiable, Parts
from samovar.curvature.inputs import cast, convert, first_examples
from samovar.curvature.twice import Precision

EXAMPLES = 2
"""Examples of the first batch that the slower comparison runs on. With a single one, torch 2.15
takes a wrong gradient of BatchNorm where the slope is laid out channels last."""
PERIOD = 65_537
"""Random numbers of the direction before they repeat; millions of them would take as long as the
derivatives. It is prime, so that no two rows of a weight get the same ones."""
ASYMMETRIC = 0.02
"""Largest |u.Hv - v.Hu| of two unit vectors, relative to the size of the products. That of
right ones is about 1e-8 in float32."""
JITTER = 1e-2
"""How far from the weights the check takes place, relative to their size."""


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
    place = _Place(model, names, mode, graph_of, slope_of)
    few = first_examples(batch, EXAMPLES)
    dtypes = list(dict.fromkeys((torch.float64, dtype)))
    attempts: list[tuple[Any, torch.dtype, bool]] = [
        (first_examples(batch, 1), torch.float64, True),
        *((b, d, False) for b in (few, batch) for d in dtypes),
    ]
    for part, precision, quick in attempts:
        try:
            wrong = place.fault(part, precision, quick=quick)
        except NotTwiceDifferentiable:
            raise
        except Exception:  # a loss may refuse float64, or so few examples, by any error
            continue
        if wrong:
            raise ValueError(f"the products are not those of the loss: {wrong}; {_ADVICE}")
        if wrong is not None:
            return True
    return False


def symmetric(apart: float, size: float, *, strict: bool) -> bool:
    """Return whether the products H u and H v of two unit vectors are those of a symmetric matrix.

    Args:
        apart: |u.Hv - v.Hu|.
        size: norm of the larger product.
        strict: whether what is not symmetric is an error.

    Raises:
        ValueError: they are not, and it is strict.

    Warns:
        UserWarning: they are not, and it is not strict."""
    if apart <= ASYMMETRIC * size:
        return True
    found = f"the products are not symmetric: u.Hv and v.Hu differ by {apart / size:.0%} of Hv"
    if strict:
        raise ValueError(f"{found}; {_ADVICE}")
    warnings.warn(
        f"{found}, so neither they nor eigenvalues can be trusted. Rounding may be the cause: "
        "compute in float64 (dtype=torch.float64, --dtype float64)",
        stacklevel=2,
    )
    return False


_ADVICE = (
    "look for a function whose gradient has no right derivative (once_differentiable, a custom "
    "kernel, a detach, a straight-through estimator) and use its reference implementation in plain "
    "torch (weight_norm: remove_parametrizations first), or skip this check with check=False "
    "(--no-check)"
)


@dataclass(frozen=True)
class _Place:
    """A model near its weights, and the graph of its products; see `check_products`."""

    model: nn.Module
    names: Sequence[str]
    mode: Mode
    graph_of: Callable[[Any, Sequence[Tensor]], Graph]
    slope_of: Callable[[Any, Sequence[Tensor]], Parts]

    def fault(self, batch: Any, dtype: torch.dtype, *, quick: bool) -> str | None:
        """Return what is wrong in a few words, "" if nothing is, None if it cannot be seen.

        The quick comparison sees that nothing is wrong, or does not."""
        params = {name: param.detach() for name, param in self.model.named_parameters()}
        u = _direction([params[name] for name in self.names], dtype)
        # A little off the weights, where the input of no ReLU is exactly 0, as at a bias of 0.
        leaves = [
            torch.add(params[name], x, alpha=JITTER, out=torch.empty_like(x)).requires_grad_()
            for name, x in zip(self.names, u, strict=True)
        ]
        others = {name: cast(x, dtype) for name, x in params.items() if name not in set(self.names)}
        batch = convert(batch, leaves[0].device, dtype)

        def slope(weights: Sequence[Tensor]) -> list[Tensor]:
            moved = [w.detach().requires_grad_() for w in weights]
            return filled(self._run(lambda: self.slope_of(batch, moved), moved, others))

        def compared() -> str | None:
            with Precision() as precision:
                graph = self.graph_of(batch, leaves)
            if not any(bool(x.any()) for x in filled(graph.slope())):
                return None
            single = dtype == torch.float32 or precision.single
            # `data`: to move weights by a rounding must not invalidate a graph that saved them.
            weights = [leaf.data for leaf in leaves]
            if not quick:
                return fault(graph, slope, weights, u, single=single)
            return "" if not single and agrees(graph, slope, weights, u) else None

        wrong: str | None = self._run(compared, leaves, others)
        return wrong

    def _run(
        self, task: Callable[[], Any], weights: Sequence[Tensor], others: Mapping[str, Tensor]
    ) -> Any:
        """Return task(), run with these weights, the random numbers that every product draws."""
        device, dtype = weights[0].device, weights[0].dtype
        copies = {name: cast(x, dtype, copy=True) for name, x in self.model.named_buffers()}

        def seeded() -> Any:
            seed(0, device)
            return task()

        tensors = dict(zip(self.names, weights, strict=True)) | copies | dict(others)
        return borrow(self.model, tensors, self.mode, device, seeded)


def _direction(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return random numbers in the shapes of weights, each tensor of the size of its weights."""
    size = min(PERIOD, sum(w.numel() for w in weights))
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
    noise = noise.to(weights[0].device, dtype).repeat(2)
    found, start = [], 0
    for w in weights:
        period = noise[start : start + min(w.numel(), size)] * size_of(w)
        times = -(-w.numel() // size)
        found.append(period.repeat(times)[: w.numel()].view(w.shape).to(w.device))
        start = (start + w.numel()) % size
    return found
