"""Extreme eigenvalues of a symmetric operator, with their errors; see `probes` for the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from samovar.curvature.lanczos import Tridiagonal, dot, exact, lanczos
from samovar.curvature.operators import LinearOperator, symmetry_of
from samovar.curvature.probes import Density, Estimate, gaussian, on_cpu, spectral_density, trace

__all__ = [
    "Density",
    "Eigenpairs",
    "Estimate",
    "power_iteration",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]

Which = Literal["magnitude", "largest"]

ROUNDING = 30
"""Residuals below this, times machine precision and the largest eigenvalue, are noise."""


@dataclass(frozen=True)
class RitzValue:
    """An estimate of an eigenvalue, with its error."""

    value: float
    residual: float
    """As in `Eigenpairs`."""
    converged: bool
    """Whether the residual is at most tol times the value, or only rounding."""


@dataclass(frozen=True)
class Eigenpairs:
    """k eigenpairs, the most wanted first."""

    values: Tensor
    """[k] float64 on the host."""
    vectors: Tensor | None
    """[P, k] of norm 1, on the operator's device (or that of the basis, if it has its own)."""
    residuals: Tensor
    """[k], |A x - lambda x|. Some eigenvalue is at most this far from the value, and much closer if
    it is isolated: residual^2 / gap to the rest."""
    converged: bool
    """Whether every residual is at most tol times its value, or only rounding."""
    num_products: int
    """Number of products with single vectors that they took."""
    smallest: RitzValue | None = None
    """Smallest Ritz value of the run, at or above the smallest eigenvalue; None of power iteration.
    The run does not wait for it to settle."""
    largest: RitzValue | None = None
    """Largest Ritz value, at or below the largest eigenvalue."""


@runtime_checkable
class _HasGradient(Protocol):
    def loss_and_gradient(self) -> tuple[float, Tensor]: ...


@exact
def top_eigenvalues(
    op: LinearOperator,
    k: int = 1,
    *,
    which: Which = "magnitude",
    tol: float = 1e-3,
    max_steps: int = 100,
    generator: Generator | None = None,
    start: Tensor | None = None,
    vectors: bool = True,
    basis_device: torch.device | str | None = None,
) -> Eigenpairs:
    """Compute the k eigenpairs of largest magnitude or value by Lanczos, until residuals are small.

    A neural network takes about 10 products to reach 1e-3. Of a repeated eigenvalue one copy is
    sure to be found.

    Args:
        op: the operator.
        k: number of eigenpairs, at most min(max_steps, P).
        which: "magnitude" for the largest |lambda|, signs kept; "largest" for the largest lambda.
        tol: largest residual, relative to the eigenvalue.
        max_steps: the most products; pairs found by then are returned with converged=False.
        generator: on the CPU, for the random start; None is a fresh one with seed 0. If the
            operator has `loss_and_gradient`, the gradient is added to the start; it leans towards
            the top eigenvectors and saves about two products.
        start: [P] to start from instead, such as the eigenvector of nearby weights.
        vectors: whether to compute eigenvectors.
        basis_device: where the up to max_steps vectors of size P are kept.

    Raises:
        ValueError: k, max_steps or tol is out of range, the start is zero, or an error of the
            operator.

    Source: Lanczos (1950); residuals after Parlett, The Symmetric Eigenvalue Problem."""
    steps = min(max_steps, op.size)
    if not 1 <= k <= steps:
        raise ValueError(
            f"k={k} is not within the {steps} steps allowed; "
            f"pick 1 <= k <= min(max_steps, P={op.size})"
        )
    if not tol > 0 or which not in ("magnitude", "largest"):
        raise ValueError(f"tol={tol}, which={which!r}: pick tol > 0, and 'magnitude' or 'largest'")
    generator = on_cpu(generator)
    v0 = _start(op, generator) if start is None else start.to(op.device, op.dtype)
    run = lanczos(
        op.__matmul__,
        v0,
        steps,
        stop=lambda run: _settled(run, k, which, tol, op.dtype),
        restart=lambda: gaussian(op, generator),
        basis_device=basis_device,
        symmetry=symmetry_of(op),
    )
    values, combination, residuals = run.ritz()
    order = _order(values, which)[:k]
    rounding, small = _rounding(values, op.dtype), _small(values, residuals, tol, op.dtype)
    smallest, largest = (
        RitzValue(float(values[i]), float(residuals[i]) + rounding, bool(small[i])) for i in (0, -1)
    )
    return Eigenpairs(
        values[order],
        run.basis.combine(combination[:, order]) if vectors else None,
        residuals[order] + rounding,
        _settled(run, k, which, tol, op.dtype),
        run.num_products,
        smallest,
        largest,
    )


def _start(op: LinearOperator, generator: Generator) -> Tensor:
    v0 = gaussian(op, generator)
    if not isinstance(op, _HasGradient):
        return v0
    gradient = op.loss_and_gradient()[1]
    size = math.sqrt(dot(gradient, gradient))
    # The random part is as large as the gradient, which alone may have no component along the
    # eigenvector; at a minimum it is only rounding.
    return v0 if size == 0 else gradient.mul_(math.sqrt(dot(v0, v0)) / size).add_(v0)


def _settled(run: Tridiagonal, k: int, which: Which, tol: float, dtype: torch.dtype) -> bool:
    if len(run.alphas) < k:
        return False
    values, _, residuals = run.ritz()
    return bool(_small(values, residuals, tol, dtype)[_order(values, which)[:k]].all())


def _small(values: Tensor, residuals: Tensor, tol: float, dtype: torch.dtype) -> Tensor:
    """Return which residuals are at most tol times their value, or only rounding."""
    return residuals <= (tol * values.abs()).clamp(min=_rounding(values, dtype))


def _order(values: Tensor, which: Which) -> Tensor:
    return torch.argsort(values.abs() if which == "magnitude" else values, descending=True)


def _rounding(values: Tensor, dtype: torch.dtype) -> float:
    return ROUNDING * torch.finfo(dtype).eps * float(values.abs().max())


@exact
def power_iteration(
    op: LinearOperator,
    *,
    num_steps: int = 100,
    tol: float | None = None,
    generator: Generator | None = None,
) -> Eigenpairs:
    """Compute the eigenpair of largest magnitude by power iteration, the paper's protocol.

    It is slower than `top_eigenvalues`.

    Args:
        op: the operator.
        num_steps: number of products, >= 1.
        tol: stop earlier at this residual, relative to the eigenvalue; None does not.
        generator: as for `top_eigenvalues`.

    Raises:
        ValueError: num_steps < 1, or a product is not finite.

    Source: appendix C of arXiv:2106.01548."""
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} is too few; pick num_steps >= 1")
    v = gaussian(op, on_cpu(generator))
    v /= math.sqrt(dot(v, v))
    for step in range(1, num_steps + 1):
        w = op @ v
        value, size = dot(v, w), math.sqrt(dot(w, w))
        if not math.isfinite(size):
            raise ValueError(f"product {step} is not finite; look at the weights and the loss")
        rest = torch.sub(w, v, alpha=value)
        residual = math.sqrt(dot(rest, rest))
        settled = residual <= (1e-3 if tol is None else tol) * abs(value)
        if step == num_steps or size == 0 or (tol is not None and settled):
            break
        v = w / size
    values, residuals = (
        torch.tensor([value], dtype=torch.float64),
        torch.tensor([residual], dtype=torch.float64),
    )
    return Eigenpairs(values, v[:, None], residuals + _rounding(values, op.dtype), settled, step)
