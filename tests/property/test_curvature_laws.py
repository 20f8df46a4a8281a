"""Laws of curvature that hold for any network, weights and data, and of Lanczos for any matrix."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.curvature import GaussNewton, Hessian, dense, lanczos, top_eigenvalues

SEEDS = st.integers(0, 2**31 - 1)
quick = settings(max_examples=10, deadline=None)
ROUNDING = {"rtol": 1e-9, "atol": 1e-11}  # float64, some hundred operations of 1e-16 each, on entries of any size


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def task(seed: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A random small net, and one to three batches of random sizes."""
    torch.manual_seed(seed)
    width = int(torch.randint(1, 6, ()))
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.LayerNorm(width), nn.Linear(width, 3)).double()
    sizes = torch.randint(1, 7, (int(torch.randint(1, 4, ())),)).tolist()
    return model, [(torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))) for n in sizes]


@given(SEEDS, st.sampled_from([True, False, "auto"]))
@quick
def test_products_are_symmetric_and_linear(seed, retain):
    model, batches = task(seed)
    op = Hessian(model, loss, batches, retain=retain)
    v, w = torch.randn(2, op.size, dtype=torch.float64)
    Hv, Hw = op @ v, op @ w
    torch.testing.assert_close(w @ Hv, v @ Hw, **ROUNDING)
    torch.testing.assert_close(op @ (2 * v - 3 * w), 2 * Hv - 3 * Hw, **ROUNDING)
    torch.testing.assert_close(op @ torch.stack([v, w], dim=1), torch.stack([Hv, Hw], dim=1), **ROUNDING)


@given(SEEDS)
@quick
def test_batches_average_by_their_examples(seed):
    model, batches = task(seed)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    op = Hessian(model, loss, batches)
    v = torch.randn(op.size, dtype=torch.float64)
    torch.testing.assert_close(op @ v, Hessian(model, loss, [(x, y)]) @ v, **ROUNDING)


@given(SEEDS, st.integers(1, 30))
@quick
def test_lanczos_of_all_steps_is_eigvalsh(seed, size):
    torch.manual_seed(seed)
    A = torch.randn(size, size, dtype=torch.float64)
    A = A + A.T
    run = lanczos(A.__matmul__, torch.randn(size).double(), size, restart=lambda: torch.randn(size).double())
    torch.testing.assert_close(run.ritz()[0], torch.linalg.eigvalsh(A), rtol=1e-9, atol=1e-10)


@given(SEEDS, st.integers(1, 5))
@quick
def test_eigenvalues_are_within_their_residuals(seed, k):
    model, batches = task(seed)
    op = Hessian(model, loss, batches)
    pairs = top_eigenvalues(op, k, tol=1e-2)
    true = torch.linalg.eigvalsh(dense(op))
    nearest = (true - pairs.values[:, None]).abs().min(dim=1).values
    slack = 1e-12 * true.abs().max()  # LayerNorm over one or two units cancels digits away
    assert (nearest <= pairs.residuals + slack).all()
    assert pairs.values.abs().max() <= true.abs().max() * (1 + 1e-9)  # a Ritz value never exceeds


@given(SEEDS, st.data())
@quick
def test_the_eigenvalues_of_a_block_interlace_with_those_of_the_whole(seed, data):
    model, batches = task(seed)
    names = [name for name, _ in model.named_parameters()]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    whole = torch.linalg.eigvalsh(dense(Hessian(model, loss, batches)))
    block = torch.linalg.eigvalsh(dense(Hessian(model, loss, batches, params=chosen)))
    slack = 1e-9 * whole.abs().max()
    assert (whole[: len(block)] <= block + slack).all()
    assert (block <= whole[len(whole) - len(block) :] + slack).all()


@given(SEEDS)
@quick
def test_gauss_newton_is_semi_definite_and_the_hessian_where_the_model_is_linear(seed):
    model, batches = task(seed)
    parts = (lambda m, b: m(b[0])), (lambda z, b: F.cross_entropy(z, b[1]))
    eigenvalues = torch.linalg.eigvalsh(dense(GaussNewton(model, *parts, batches)))
    assert eigenvalues[0] >= -1e-12 * max(1.0, float(eigenvalues[-1]))
    head = ["3.weight", "3.bias"]  # the outputs are linear in these
    G, H = GaussNewton(model, *parts, batches, params=head), Hessian(model, loss, batches, params=head)
    torch.testing.assert_close(dense(G), dense(H), **ROUNDING)
