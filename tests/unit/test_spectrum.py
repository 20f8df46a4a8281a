"""Eigenvalues, trace and density against dense float64 matrices of small networks."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samovar.curvature import Hessian, power_iteration, spectral_density, top_eigenvalues, trace
from samovar.curvature.probes import _mean
from tests.unit.test_operators import NETS, by_functorch, images, loss

EXACT = 1e-6  # relative, the target for float64; the solves run to residuals of 1e-9


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Matrix:
    """A dense matrix as an operator."""

    def __init__(self, A: Tensor):
        self.A, self.size, self.device, self.dtype = A, len(A), A.device, A.dtype
        self.num_products = 0

    def __matmul__(self, v: Tensor) -> Tensor:
        self.num_products += 1 if v.dim() == 1 else v.shape[1]
        return self.A @ v


@pytest.fixture(scope="module", params=NETS)
def net(request) -> dict[str, Any]:
    """A net after a few steps, its batch and its dense Hessian."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, batch = NETS[request.param](), images(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(15):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    H = by_functorch(model, batch)
    return {"model": model, "batch": batch, "H": H, "eigenvalues": torch.linalg.eigvalsh(H)}


def hessian(net: dict[str, Any], dtype: torch.dtype = torch.float64) -> Hessian:
    return Hessian(net["model"], loss, [net["batch"]], dtype=dtype)


def by_magnitude(values: Tensor) -> Tensor:
    return values[values.abs().argsort(descending=True)]


@pytest.mark.parametrize("which", ["magnitude", "largest"])
def test_the_largest_eigenvalues_are_those_of_the_dense_hessian(net, which):
    expected = by_magnitude(net["eigenvalues"]) if which == "magnitude" else net["eigenvalues"].flip(0)
    for k in (1, 5):
        pairs = top_eigenvalues(hessian(net), k, which=which, tol=1e-9)
        assert pairs.converged
        torch.testing.assert_close(pairs.values, expected[:k], rtol=EXACT, atol=0)
        X = pairs.vectors
        torch.testing.assert_close(X.T @ X, torch.eye(k).double(), rtol=0, atol=1e-12)
        assert ((net["H"] @ X - X * pairs.values).norm(dim=0) <= pairs.residuals).all()


def test_float32_eigenvalues_are_within_the_printed_residual(net):
    for tol in (1e-3, 1e-6):
        pairs = top_eigenvalues(hessian(net, torch.float32), 5, tol=tol)
        expected = by_magnitude(net["eigenvalues"])[:5]
        assert ((pairs.values - expected).abs() <= pairs.residuals).all()


def test_the_default_takes_few_products_for_an_error_far_below_its_residual(net):
    op = hessian(net)
    pairs = top_eigenvalues(op)
    expected = by_magnitude(net["eigenvalues"])[0]
    assert pairs.num_products == op.num_products <= 20
    assert op.num_graphs == 1
    assert pairs.residuals[0] <= 1.01e-3 * expected.abs()
    assert (pairs.values[0] - expected).abs() <= pairs.residuals[0]


@pytest.mark.costly
def test_exact_and_random_traces(net):
    true = float(net["H"].trace())
    exact = trace(hessian(net), method="exact")
    assert exact.value == pytest.approx(true, rel=EXACT)
    assert exact.stderr == 0
    for method in ("hutchinson", "hutch++"):
        found = trace(hessian(net), method=method, num_probes=60)
        assert abs(found.value - true) < 4 * found.stderr  # 4 standard errors; the seed is fixed
    assert trace(hessian(net), method="hutchinson", num_probes=60).n == 60


def test_density_moments_are_exact_but_for_the_probes(net):
    op = hessian(net)
    density = spectral_density(op, num_probes=4, num_steps=6)
    assert density.num_products == op.num_products == 24
    generator = torch.Generator().manual_seed(0)
    signs = [2 * torch.randint(2, (op.size,), generator=generator, dtype=torch.int8) - 1 for _ in range(4)]
    v = torch.stack(signs, dim=1).double() / math.sqrt(op.size)
    powered = v
    for power in range(2 * 6):  # Gauss quadrature of 6 nodes
        samples = (v * powered).sum(dim=0)
        found = density.moment(power)
        assert found.value == pytest.approx(float(samples.mean()), rel=EXACT, abs=1e-12), power
        assert found.stderr == pytest.approx(float(samples.std() / 2), rel=1e-4, abs=1e-12)
        powered = net["H"] @ powered


@pytest.mark.costly
def test_density_is_the_smoothed_spectrum_within_its_error(net):
    sigma = 0.05 * float(net["eigenvalues"].abs().max())
    density = spectral_density(hessian(net), num_probes=8, num_steps=25, sigma=sigma)
    z = (density.grid - net["eigenvalues"][:, None]) / sigma
    expected = (torch.exp(-0.5 * z**2) / (sigma * math.sqrt(2 * math.pi))).mean(dim=0)
    assert torch.trapezoid(density.density, density.grid) == pytest.approx(1, rel=1e-3)  # cut at 4 sigma
    away = (density.density - expected).abs() / (density.stderr + 1e-3 * expected.max())
    assert away.max() < 5  # standard errors, of 1024 correlated points; the seed is fixed


def test_results_depend_on_the_seed_and_on_nothing_else(net):
    def all_of(seed: int) -> list[float]:
        def generator() -> torch.Generator:
            return torch.Generator().manual_seed(seed)

        torch.rand(seed)  # the global stream is not used
        op = hessian(net, torch.float32)
        return [
            float(top_eigenvalues(op, generator=generator()).values[0]),
            trace(op, num_probes=4, generator=generator()).value,
            trace(op, method="hutch++", num_probes=6, generator=generator()).value,
            spectral_density(op, num_probes=2, num_steps=3, generator=generator()).moment(2).value,
        ]

    assert all_of(1) == all_of(1)
    assert all(a != b for a, b in zip(all_of(1), all_of(2), strict=True))


def test_the_papers_power_iteration_agrees_but_takes_longer(net):
    pairs = top_eigenvalues(hessian(net), tol=1e-3)
    power = power_iteration(hessian(net), num_steps=2000, tol=1e-3)
    assert power.converged
    assert power.num_products > pairs.num_products
    assert (power.values[0] - by_magnitude(net["eigenvalues"])[0]).abs() <= power.residuals[0]
    assert power_iteration(hessian(net), num_steps=7).num_products == 7


def test_too_few_steps_give_a_result_that_says_so():
    A = torch.diag(torch.linspace(0.99, 1, 200).double())
    pairs = top_eigenvalues(Matrix(A), 2, max_steps=4)
    assert not pairs.converged or pairs.residuals.max() < 1e-3
    pairs = top_eigenvalues(Matrix(A), 2, tol=1e-9, max_steps=4)
    assert not pairs.converged
    assert pairs.num_products == 4
    nearest = (A.diagonal() - pairs.values[:, None]).abs().min(dim=1).values
    assert (nearest <= pairs.residuals).all()


def test_fewer_distinct_eigenvalues_than_k_are_no_obstacle():
    assert torch.equal(top_eigenvalues(Matrix(torch.zeros(6, 6)), 3).values, torch.zeros(3).double())
    low_rank = Matrix(torch.diag(torch.tensor([4.0] + [0.0] * 9)))
    pairs = top_eigenvalues(low_rank, 3)
    torch.testing.assert_close(pairs.values, torch.tensor([4.0, 0, 0]).double(), rtol=1e-6, atol=1e-5)
    assert pairs.converged
    every = top_eigenvalues(Matrix(torch.eye(5)), 5)
    torch.testing.assert_close(every.values, torch.ones(5).double())


def test_hutch_pp_is_exact_for_low_rank_and_has_a_smaller_error_elsewhere():
    torch.manual_seed(0)
    U = torch.randn(50, 4).double()
    found = trace(Matrix(U @ U.T), method="hutch++", num_probes=18)
    assert found.value == pytest.approx(float((U * U).sum()), rel=1e-10)
    assert found.stderr < 1e-10
    full = trace(Matrix(U @ U.T), method="hutch++", num_probes=500)
    assert (full.stderr, full.n) == (0, 0)
    decaying = Matrix(torch.linalg.qr(torch.randn(50, 50).double())[0])
    Q = decaying.A
    decaying.A = (Q / torch.arange(1, 51) ** 2) @ Q.T
    plain, better = (trace(decaying, method=m, num_probes=30).stderr for m in ("hutchinson", "hutch++"))
    assert better < plain / 3


def test_several_probes_are_drawn_one_by_one():
    A = Matrix(torch.randn(30, 30).double())
    few, many = (trace(A, num_probes=n) for n in (9, 10))
    last = many.value * 10 - few.value * 9
    generator = torch.Generator().manual_seed(0)
    signs = [2 * torch.randint(2, (30,), generator=generator, dtype=torch.int8).double() - 1 for _ in range(10)]
    assert last == pytest.approx(float(signs[-1] @ A.A @ signs[-1]))


ODD = Matrix(torch.eye(4))
BAD: dict[str, Any] = {
    "k above P": (lambda: top_eigenvalues(ODD, 5), "k=5 is not within the 4 steps"),
    "k above the steps": (lambda: top_eigenvalues(ODD, 3, max_steps=2), "k=3 is not within the 2 steps"),
    "no k": (lambda: top_eigenvalues(ODD, 0), "k=0"),
    "no tolerance": (lambda: top_eigenvalues(ODD, tol=0), "tol=0"),
    "an unknown end": (lambda: top_eigenvalues(ODD, which="smallest"), "which='smallest'"),
    "an unknown method": (lambda: trace(ODD, method="guess"), "method='guess' is unknown"),
    "one probe": (lambda: trace(ODD, num_probes=1), "no error bar"),
    "five probes": (lambda: trace(ODD, method="hutch++", num_probes=5), "takes 6 or more"),
    "one density probe": (lambda: spectral_density(ODD, num_probes=1), "num_probes >= 2"),
    "no width": (lambda: spectral_density(ODD, sigma=0.0), "sigma > 0"),
    "no density steps": (lambda: spectral_density(ODD, num_steps=0), "num_steps=0"),
    "no power": (lambda: power_iteration(ODD, num_steps=0), "num_steps=0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    run, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        run()


def test_an_autocast_around_the_readers_changes_no_bit(net):
    op = hessian(net, torch.float32)

    def read() -> list[Tensor]:
        density = spectral_density(op, num_probes=2, num_steps=5)
        return [
            top_eigenvalues(op, k=2).values,
            torch.tensor(trace(op, method="hutch++", num_probes=12).value),
            density.nodes,
            power_iteration(op, num_steps=4).values,
        ]

    wanted = read()
    with torch.autocast("cpu", torch.bfloat16):
        found = read()
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


@pytest.mark.parametrize(
    ("outliers", "probes", "least"),
    # without Student's t, six probes hold the truth in 87 to 88 %; a few large eigenvalues make the moments skewed
    [([], 6, 0.92), ([3.0, 5.0], 6, 0.85), ([3.0, 5.0], 30, 0.91)],
)
def test_intervals_of_moments_hold_about_as_often_as_they_say(outliers, probes, least):
    values = np.concatenate([np.linspace(-0.7, 1.3, 40 - len(outliers)), outliers])
    random = np.random.default_rng(0)
    basis, _ = np.linalg.qr(random.standard_normal((40, 40)))
    signs = random.choice([-1.0, 1.0], (1000, probes, 40))
    for power in (1, 2, 3):
        matrix = (basis * values**power) @ basis.T
        samples = torch.from_numpy(np.einsum("rni,ij,rnj->rn", signs, matrix, signs) / 40)
        bounds = np.array([_mean(row).interval() for row in samples])
        truth = (values**power).mean()
        held = ((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean()
        assert least <= held <= 0.97
