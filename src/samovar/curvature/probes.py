"""Trace and eigenvalue density of a symmetric operator from random probes, with their errors.

Random vectors come from a generator on the CPU, so a seed means the same on every device and in
every process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from samovar.anymodel.devices import to_float64_device
from samovar.curvature.lanczos import exact, lanczos
from samovar.curvature.operators import LinearOperator, symmetry_of

COLUMNS = 8
"""Vectors per product: a batch's graph is built once for all of them, and all are in memory."""


@dataclass(frozen=True)
class Estimate:
    """A mean over random probes."""

    value: float
    stderr: float
    """Standard error of the mean over probes; 0 if nothing was random."""
    n: int
    """Number of probes."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval that holds the expected value with a probability of `level`.

        Few probes make the standard error itself uncertain, so its multiple is Student's t with
        n - 1 degrees of freedom (2.6 for six probes at 95 %), not the normal's 1.96.

        Source: Student, Biometrika 6 (1908)."""
        from scipy.stats import t

        reach = float(t.ppf((1 + level) / 2, self.n - 1)) * self.stderr if self.stderr else 0.0
        return self.value - reach, self.value + reach


@dataclass(frozen=True)
class Density:
    """A density of eigenvalues, each smoothed to a Gaussian of width sigma; it integrates to 1."""

    grid: Tensor
    """[G] float64."""
    density: Tensor
    """[G], per unit of eigenvalue."""
    stderr: Tensor
    """[G], standard error over probes."""
    sigma: float
    """Width of the Gaussians, in units of the eigenvalues."""
    nodes: Tensor
    """[n, m] Ritz values of each probe."""
    weights: Tensor
    """[n, m] their weights, which sum to 1; 0 where a run ended early."""
    num_products: int
    """Number of products with single vectors that it took."""

    def moment(self, power: int) -> Estimate:
        """Return the mean of eigenvalue^power, which is tr(A^power) / P.

        For power < 2 num_steps its only error is that of the probes; `Estimate.interval` turns it
        into bounds that hold for few probes too."""
        return _mean((self.weights * self.nodes**power).sum(dim=1))


@exact
def trace(
    op: LinearOperator,
    *,
    method: Literal["hutchinson", "hutch++", "exact"] = "hutchinson",
    num_probes: int = 32,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate the trace by random probes of +-1, or compute it exactly.

    Args:
        op: the operator.
        method: "hutchinson" is the mean of z^T A z. "hutch++" spends two thirds of the products on
            the part of the trace in the largest eigenvalues, which it takes exactly, and the last
            third on the rest; its error falls with 1 / n instead of 1 / sqrt(n) if the spectrum
            decays. "exact" sums the diagonal.
        num_probes: number of products, >= 2, for hutch++ >= 6; "exact" always makes P.
        generator: on the CPU; None is a fresh one with seed 0.

    Raises:
        ValueError: too few probes, an unknown method, or an error of the operator.

    Source: Hutchinson (1990); Hutch++: Meyer et al., arXiv:2010.09649."""
    methods = {"hutchinson": _hutchinson, "hutch++": _hutch_pp, "exact": _exact_trace}
    least = {"hutchinson": 2, "hutch++": 6, "exact": 0}
    if method not in methods:
        raise ValueError(f"method={method!r} is unknown; pick one of {', '.join(methods)}")
    if num_probes < least[method]:
        raise ValueError(
            f"num_probes={num_probes} gives no error bar; {method} takes {least[method]} or more"
        )
    return methods[method](op, num_probes, on_cpu(generator))


def _hutchinson(op: LinearOperator, num_probes: int, generator: Generator) -> Estimate:
    return _mean(torch.cat([_column_sums(z * (op @ z)) for z in signs(op, num_probes, generator)]))


def _hutch_pp(op: LinearOperator, num_probes: int, generator: Generator) -> Estimate:
    rank = min(num_probes // 3, op.size)
    sketch = torch.cat([op @ z for z in signs(op, rank, generator)], dim=1)
    # devices without float64 (MPS) have no QR either
    Q = torch.linalg.qr(to_float64_device(sketch))[0].to(op.device)
    head = sum(float(_column_sums(q * (op @ q)).sum()) for q in Q.split(COLUMNS, dim=1))
    if rank == op.size:  # Q spans everything
        return Estimate(head, 0.0, 0)
    samples = []
    for z in signs(op, num_probes - 2 * rank, generator):
        rest = z - Q @ (Q.T @ z)
        samples.append(_column_sums(rest * (op @ rest)))
    tail = _mean(torch.cat(samples))
    return Estimate(head + tail.value, tail.stderr, tail.n)


def _exact_trace(op: LinearOperator, num_probes: int, generator: Generator) -> Estimate:
    total = 0.0
    for start in range(0, op.size, COLUMNS):
        rows = torch.arange(start, min(start + COLUMNS, op.size), device=op.device)
        units = torch.zeros(op.size, len(rows), device=op.device, dtype=op.dtype)
        units[rows, rows - start] = 1
        total += float(_column_sums(units * (op @ units)).sum())
    return Estimate(total, 0.0, op.size)


@exact
def spectral_density(
    op: LinearOperator,
    *,
    num_probes: int = 8,
    num_steps: int = 64,
    sigma: float | None = None,
    grid: Tensor | None = None,
    generator: Generator | None = None,
    basis_device: torch.device | str | None = None,
) -> Density:
    """Estimate the density of eigenvalues by stochastic Lanczos quadrature.

    It takes num_probes x num_steps products.

    Args:
        op: the operator.
        num_probes: random vectors of +-1, >= 2; the error falls with 1 / sqrt(num_probes).
        num_steps: Lanczos steps from each vector, which are the nodes of its quadrature.
        sigma: width of the Gaussians; None is 1 % of the range of the nodes.
        grid: [G] where to evaluate; None is 1024 points over all nodes and 4 sigma on either side.
        generator: on the CPU; None is a fresh one with seed 0.
        basis_device: where the num_steps vectors of size P of one probe are kept.

    Raises:
        ValueError: too few probes or steps, sigma is not positive, or an error of the operator.

    Source: Lin, Saad and Yang, arXiv:1308.5467; for networks Ghorbani et al., arXiv:1901.10159."""
    if num_probes < 2 or (sigma is not None and not sigma > 0):
        raise ValueError(
            f"num_probes={num_probes}, sigma={sigma}: pick num_probes >= 2 and sigma > 0"
        )
    generator = on_cpu(generator)
    steps = min(num_steps, op.size)
    nodes = torch.zeros(num_probes, max(steps, 0), dtype=torch.float64)
    weights, num_products = torch.zeros_like(nodes), 0
    for i in range(num_probes):
        (z,) = signs(op, 1, generator)
        run = lanczos(
            op.__matmul__, z[:, 0], steps, basis_device=basis_device, symmetry=symmetry_of(op)
        )
        values, vectors, _ = run.ritz()
        nodes[i, : len(values)], weights[i, : len(values)] = values, vectors[0] ** 2
        num_products += run.num_products
    return _smoothed(nodes, weights, sigma, grid, num_products)


def _smoothed(
    nodes: Tensor, weights: Tensor, sigma: float | None, grid: Tensor | None, num_products: int
) -> Density:
    found = nodes[weights > 0]
    low, high = float(found.min()), float(found.max())
    if sigma is None:
        sigma = 0.01 * (high - low) or 0.01 * abs(high) or 1.0
    if grid is None:
        grid = torch.linspace(low - 4 * sigma, high + 4 * sigma, 1024, dtype=torch.float64)
    grid = grid.double().cpu()
    heights = torch.exp(-0.5 * ((grid - nodes[..., None]) / sigma) ** 2) / (
        sigma * math.sqrt(2 * math.pi)
    )
    each = (weights[..., None] * heights).sum(dim=1)
    return Density(
        grid,
        each.mean(dim=0),
        each.std(dim=0) / math.sqrt(len(each)),
        sigma,
        nodes,
        weights,
        num_products,
    )


def _mean(samples: Tensor) -> Estimate:
    return Estimate(
        float(samples.mean()), float(samples.std()) / math.sqrt(len(samples)), len(samples)
    )


def on_cpu(generator: Generator | None) -> Generator:
    """Return the generator, or a fresh one with seed 0 for None.

    Raises:
        ValueError: it is not on the CPU."""
    if generator is None:
        return torch.Generator().manual_seed(0)
    if generator.device.type != "cpu":
        raise ValueError(
            f"the generator is on {generator.device}; give torch.Generator(), so that seeds mean "
            "the same"
        )
    return generator


def gaussian(op: LinearOperator, generator: Generator) -> Tensor:
    """Draw a Gaussian vector [P], in float32 so that a float64 operator gets the same numbers."""
    return torch.randn(op.size, generator=generator).to(op.device, op.dtype)


def signs(op: LinearOperator, num_probes: int, generator: Generator) -> Iterator[Tensor]:
    """Yield probes of +-1 as matrices [P, up to COLUMNS].

    They are drawn one by one, so the first ones do not depend on their number."""
    for start in range(0, num_probes, COLUMNS):
        count = min(COLUMNS, num_probes - start)
        bits = [
            torch.randint(2, (op.size,), generator=generator, dtype=torch.int8)
            for _ in range(count)
        ]
        yield (2 * torch.stack(bits, dim=1) - 1).to(op.device, op.dtype)


def _column_sums(x: Tensor) -> Tensor:
    """Return the sums [k] of the columns of [P, k], added in float64, on the host."""
    return to_float64_device(x).double().sum(dim=0).cpu()
