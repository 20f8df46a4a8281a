"""Lanczos tridiagonalization of a symmetric matvec: A Q ~ Q T after num_steps products.

Full reorthogonalization, so no ghost eigenvalues; memory is num_steps vectors of size P."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from samovar.anymodel.devices import to_float64_device

P = ParamSpec("P")
R = TypeVar("R")

ROWS = 8
"""Vectors per block of the basis: growing copies nothing, and few are allocated in advance."""
CHUNK = 1 << 14
"""Numbers that one float32 sum on a CPU may run over before its rounding shows."""
KEPT_SHARE = 0.7
"""Smallest share of a vector's norm left by a projection that needs no second one."""


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function so that it ignores an autocast around it: 16-bit sums spoil eigenvalues."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as off:
            for kind in ("cpu", "cuda", "mps"):
                off.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return wrapped


class Basis:
    """Orthonormal vectors of size P, kept in blocks of rows."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device):
        self.size, self.dtype, self.device = size, dtype, device
        self._blocks: list[Tensor] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, v: Tensor, norm: float) -> Tensor:
        """Add v / norm [P] and return it, on the device of v."""
        if self._length == ROWS * len(self._blocks):
            self._blocks.append(torch.empty(ROWS, self.size, dtype=self.dtype, device=self.device))
        row = self._blocks[-1][self._length % ROWS]
        torch.div(v.to(self.device), norm, out=row)
        self._length += 1
        return row.to(v.device)

    def _filled(self, length: int) -> list[Tensor]:
        return [
            block[: length - ROWS * i] for i, block in enumerate(self._blocks) if length > ROWS * i
        ]

    def orthogonalize(self, w: Tensor) -> tuple[Tensor, float]:
        """Return w [P] without its part in the span of the basis, and its norm.

        w may be overwritten. Two projections are enough (Kahan, Parlett)."""
        rest, norm = w.to(self.device), math.nan
        for _ in range(2):
            removed = 0.0
            for block in self._filled(len(self)):
                along = block @ rest
                removed += float(to_float64_device(along).double().square().sum())
                rest.addmv_(block.T, along, alpha=-1)
            norm = math.sqrt(dot(rest, rest))
            if norm > KEPT_SHARE * math.sqrt(removed + norm * norm):
                break
        return rest.to(w.device), norm

    def combine(self, weights: Tensor) -> Tensor:
        """Return linear combinations [P, k] of the first m vectors by weights [m, k].

        They are on the basis's device."""
        weights = weights.to(self.dtype).to(self.device)
        total = torch.zeros(self.size, weights.shape[1], dtype=self.dtype, device=self.device)
        for block, part in zip(self._filled(len(weights)), torch.split(weights, ROWS), strict=True):
            total.addmm_(block.T, part)
        return total


@dataclass
class Tridiagonal:
    """The matrix T of a Lanczos run after m steps, in float64 on the host, with the basis Q."""

    basis: Basis
    """The m vectors q_0 .. q_{m-1}, and one more if the run was about to go on."""
    alphas: list[float] = field(default_factory=list)
    """The diagonal, m numbers."""
    betas: list[float] = field(default_factory=list)
    """betas[j] couples q_j and q_{j+1}; the last, number m, is the norm of the remainder. 0 means
    an invariant space."""
    num_products: int = 0

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Ritz values [m] in ascending order, vectors in the basis [m, m], residuals [m].

        The residual |A x - theta x| is |beta_m s_mi|, exact up to rounding. Some eigenvalue of A is
        no farther than that from theta."""
        off = torch.tensor(self.betas[:-1], dtype=torch.float64)
        T = (
            torch.diag(torch.tensor(self.alphas, dtype=torch.float64))
            + torch.diag(off, 1)
            + torch.diag(off, -1)
        )
        values, vectors = torch.linalg.eigh(T)
        return values, vectors, (self.betas[-1] * vectors[-1]).abs()


@exact
def lanczos(
    matvec: Callable[[Tensor], Tensor],
    v0: Tensor,
    num_steps: int,
    *,
    stop: Callable[[Tridiagonal], bool] | None = None,
    restart: Callable[[], Tensor] | None = None,
    basis_device: torch.device | str | None = None,
    symmetry: Callable[[float, float], None] | None = None,
) -> Tridiagonal:
    """Tridiagonalize a symmetric matrix [P, P] by at most `num_steps` products, starting from v0.

    Args:
        matvec: maps [P] to [P]; must be symmetric. What it returns is overwritten.
        v0: [P], not zero; its device and dtype are those of the vectors.
        num_steps: the most products, >= 1; there are never more than P.
        stop: is called after every step with the run so far; True ends the run.
        restart: returns a new direction [P] when the space is invariant; without it the run ends
            there.
        basis_device: where to keep the basis; None is with v0. On the host it costs a transfer per
            step.
        symmetry: is called once, after the second product, with |q0 . A q1 - q1 . A q0| and the
            size of the products; it may raise.

    Returns:
        The steps made. A product that is not finite ends the run and does not count.

    Raises:
        ValueError: num_steps < 1; v0 is zero, or v0 or the first product is not finite.

    Source: Lanczos (1950)."""
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} is too few; pick num_steps >= 1")
    run = Tridiagonal(Basis(len(v0), v0.dtype, torch.device(basis_device or v0.device)))
    v, previous, scale = run.basis.append(v0, _norm(v0)), None, 0.0
    for step in range(1, min(num_steps, len(v0)) + 1):
        w = matvec(v)
        run.num_products = step
        alpha = dot(v, w)
        if step == 2 and previous is not None and symmetry is not None:
            symmetry(abs(dot(previous, w) - run.betas[0]), max(scale, math.sqrt(dot(w, w))))
        w = torch.sub(w, v, alpha=alpha) if w.data_ptr() == v.data_ptr() else w.sub_(v, alpha=alpha)
        if previous is not None:
            w.sub_(previous, alpha=run.betas[-1])
        w, beta = run.basis.orthogonalize(w)
        if not math.isfinite(alpha + beta):
            break
        run.alphas.append(alpha)
        scale = max(scale, abs(alpha), beta)
        invariant = step == len(v0) or beta <= 10 * torch.finfo(v0.dtype).eps * scale
        run.betas.append(0.0 if invariant else beta)
        if step == len(v0) or (stop is not None and stop(run)):
            break
        if invariant:
            if restart is None:
                break
            previous, v = None, run.basis.append(*run.basis.orthogonalize(restart()))
        else:
            previous, v = v, run.basis.append(w, beta)
    if not run.alphas:
        raise ValueError("the first product is not finite; look at the weights, the loss and v0")
    return run


def dot(a: Tensor, b: Tensor) -> float:
    """Return the inner product of two vectors [P], with partial sums added in float64.

    `a @ b` and `norm` are not used because on a CPU torch's norm of 11 million float32 numbers is
    off by 4e-4, and so would be every eigenvalue of a network of that size."""
    # Other devices sum in trees, and calls cost more there.
    size = CHUNK if a.device.type == "cpu" else max(1, a.numel())
    parts = [x @ y for x, y in zip(torch.split(a, size), torch.split(b, size), strict=True)]
    return float(to_float64_device(torch.stack(parts)).double().sum())


def _norm(v: Tensor) -> float:
    norm = math.sqrt(dot(v, v)) if v.dim() == 1 else math.nan
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(
            f"v0 has shape {list(v.shape)} and norm {norm}; give a finite vector [P] that is not "
            "zero"
        )
    return norm
