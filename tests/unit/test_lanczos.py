"""One Lanczos against dense eigensolves, and where it ends."""

import pytest
import torch
from torch import Tensor

from samovar.curvature import Basis, lanczos
from samovar.curvature.lanczos import dot


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def symmetric(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    A = torch.randn(size, size, dtype=dtype)
    return A + A.T


def spectrum(values: Tensor) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    Q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=values.dtype))[0]
    return (Q * values) @ Q.T


def test_all_steps_give_all_eigenvalues():
    A = symmetric(40)
    run = lanczos(A.__matmul__, torch.randn(40).double(), 100)
    assert run.num_products == 40
    torch.testing.assert_close(run.ritz()[0], torch.linalg.eigvalsh(A), rtol=1e-12, atol=1e-12)


def test_the_basis_is_orthonormal_and_tridiagonalizes():
    # eigenvalues that fall by 10 a step: without reorthogonalization ghosts appear here within 10 steps
    A = spectrum(10.0 ** -torch.arange(30).double() + 0.01 * torch.rand(30).double())
    run = lanczos(A.__matmul__, torch.randn(30).double(), 25)
    Q = run.basis.combine(torch.eye(25))
    T = Q.T @ A @ Q
    torch.testing.assert_close(Q.T @ Q, torch.eye(25).double(), rtol=0, atol=1e-14 * 30)
    torch.testing.assert_close(T.diagonal(), torch.tensor(run.alphas, dtype=torch.float64), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(T.diagonal(1), torch.tensor(run.betas[:-1], dtype=torch.float64), rtol=1e-10, atol=1e-14)
    assert (T - T.tril(1).triu(-1)).abs().max() < 1e-14


def test_residuals_are_those_of_the_ritz_vectors():
    A = symmetric(60)
    run = lanczos(A.__matmul__, torch.randn(60).double(), 20)
    values, combination, residuals = run.ritz()
    X = run.basis.combine(combination)
    torch.testing.assert_close((A @ X - X * values).norm(dim=0), residuals, rtol=1e-9, atol=1e-12)
    nearest = (torch.linalg.eigvalsh(A) - values[:, None]).abs().min(dim=1).values
    assert (nearest <= residuals).all()


def test_it_ends_where_the_space_is_invariant_and_restarts_if_asked():
    A = torch.diag(torch.tensor([3.0, 1.0, 1.0, 1.0, -2.0]).double())
    v0 = torch.ones(5).double()
    alone = lanczos(A.__matmul__, v0, 5)
    torch.testing.assert_close(alone.ritz()[0], torch.tensor([-2.0, 1.0, 3.0]).double())
    assert alone.betas[-1] == 0
    on = lanczos(A.__matmul__, v0, 5, restart=lambda: torch.randn(5).double())
    torch.testing.assert_close(on.ritz()[0], torch.tensor([-2.0, 1.0, 1.0, 1.0, 3.0]).double())


def test_a_zero_matrix_takes_one_product():
    run = lanczos(torch.zeros_like, torch.ones(7), 5)
    assert (run.alphas, run.betas, run.num_products) == ([0.0], [0.0], 1)


def test_stop_is_asked_after_every_step():
    asked = []
    run = lanczos(
        symmetric(20).__matmul__, torch.ones(20).double(), 10, stop=lambda r: asked.append(r) or len(asked) == 4
    )
    assert run.num_products == len(run.alphas) == len(run.basis) == 4


def test_a_product_that_is_not_finite_ends_the_run_and_keeps_what_was_found():
    A, count = symmetric(20), [0]

    def breaks_at_5(v: Tensor) -> Tensor:
        count[0] += 1
        return A @ v * (torch.nan if count[0] == 5 else 1)

    assert len(lanczos(breaks_at_5, torch.ones(20).double(), 10).ritz()[0]) == 4
    with pytest.raises(ValueError, match="first product is not finite"):
        lanczos(lambda v: v * torch.inf, torch.ones(3), 2)


def test_float32_sums_of_long_vectors_are_not_what_limits_it():
    v = torch.randn(4_000_000)
    assert dot(v, v) == pytest.approx(float(v.double() @ v.double()), rel=1e-6)
    run = lanczos(lambda v: 3 * v, v, 1)
    assert run.alphas[0] == pytest.approx(3, rel=1e-6)  # 1e-4 with torch's float32 norm


def test_a_named_device_for_the_basis_changes_nothing():
    A = symmetric(30)
    here, there = (lanczos(A.__matmul__, torch.ones(30).double(), 12, basis_device=d) for d in (None, "cpu"))
    assert here.alphas == there.alphas
    assert isinstance(there.basis, Basis)


@pytest.mark.parametrize("v0", [torch.zeros(3), torch.full((3,), torch.nan), torch.ones(3, 1)])
def test_a_start_without_direction_is_refused(v0):
    with pytest.raises(ValueError, match="finite vector"):
        lanczos(lambda v: v, v0, 2)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps=0"):
        lanczos(lambda v: v, torch.ones(3), 0)


def test_symmetry_is_told_once_for_the_first_two_vectors():
    A, v0 = torch.randn(20, 20).double(), torch.randn(20).double()
    told = []
    run = lanczos(A.__matmul__, v0, 3, symmetry=lambda *seen: told.append(seen))
    q = run.basis.combine(torch.eye(3).double())
    u, v = q[:, 0], q[:, 1]
    size = max(run.alphas[0], run.betas[0], float((A @ v).norm()))
    assert told == [(pytest.approx(abs(float(u @ A @ v - v @ A @ u))), pytest.approx(size))]
    told.clear()
    lanczos((A + A.T).__matmul__, v0, 20, symmetry=lambda *seen: told.append(seen))
    assert len(told) == 1
    assert told[0][0] < 1e-12 * told[0][1]
