"""Laws of SAM that hold for any weights, data and radius."""

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.sam import SAM, plain_backward, sam_backward

SEEDS = st.integers(0, 2**31 - 1)
RADII = st.floats(1e-6, 10.0)
quick = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def task(seed: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A random small net and a random loss on it."""
    torch.manual_seed(seed)
    width, size = int(torch.randint(1, 9, ())), int(torch.randint(1, 17, ()))
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).to(dtype)
    x, y = torch.randn(size, 4, dtype=dtype), torch.randint(3, (size,))
    return model, lambda model: F.cross_entropy(model(x), y)


def gradient(model: nn.Module, backward: Callable[[nn.Module], Tensor]) -> Tensor:
    """The whole gradient [P] that backward adds."""
    model.zero_grad()
    backward(model)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def perturbation(model: nn.Module, loss_fn: Callable[[nn.Module], Tensor], **options) -> Tensor:
    """e [P], as the second pass sees it."""
    seen = []
    sam_backward(lambda m: seen.append(flat(m)) or loss_fn(m), model, **options)
    return seen[1] - seen[0]


@quick
@given(seed=SEEDS, rho=st.floats(1e-9, 1e-2))
def test_as_rho_vanishes_so_does_the_difference_from_the_plain_gradient(seed, rho):
    torch.manual_seed(seed)
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.randint(2, (8,)).double()
    model = nn.Linear(4, 1).double()

    def loss_fn(model):
        return F.binary_cross_entropy_with_logits(model(x).squeeze(1), y)

    plain = gradient(model, lambda m: plain_backward(loss_fn, m))
    ours = gradient(model, lambda m: sam_backward(loss_fn, m, rho=rho))
    inputs = torch.cat([x, torch.ones(8, 1, dtype=torch.float64)], 1)
    smoothness = float(torch.linalg.matrix_norm(inputs, 2)) ** 2 / 8 / 4  # logistic loss: H <= X^T X / 4 B everywhere
    assert (ours - plain).norm() <= rho * smoothness + 1e-14


@quick
@given(seed=SEEDS, rho=RADII)
def test_on_a_quadratic_the_gradient_is_the_closed_form(seed, rho):
    torch.manual_seed(seed)
    root = torch.randn(5, 5, dtype=torch.float64)
    hessian, w = root @ root.T, torch.randn(5, dtype=torch.float64)
    model = nn.ParameterDict({"w": w.clone()})
    ours = gradient(model, lambda m: sam_backward(lambda m: 0.5 * m["w"] @ hessian @ m["w"], m, rho=rho))
    g = hessian @ w
    torch.testing.assert_close(ours, g + rho * hessian @ g / g.norm(), rtol=1e-11, atol=1e-12)  # |H| up to about 30


@quick
@given(seed=SEEDS, rho=RADII, factor=st.floats(1e-6, 1e6), adaptive=st.booleans())
def test_the_direction_does_not_depend_on_the_scale_of_the_loss(seed, rho, factor, adaptive):
    model, loss_fn = task(seed)
    twin = deepcopy(model)
    options = {"rho": rho, "adaptive": adaptive}
    one = perturbation(model, loss_fn, **options)
    other = perturbation(twin, lambda m: factor * loss_fn(m), **options)
    torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-12)  # a subtraction of weights ~1 loses up to 4 digits


@quick
@given(seed=SEEDS, rho=RADII)
def test_the_perturbation_is_rho_long_and_uphill(seed, rho):
    model, loss_fn = task(seed)
    uphill = gradient(model, lambda m: plain_backward(loss_fn, m))
    e = perturbation(model, loss_fn, rho=rho)
    assert float(e.norm()) == pytest.approx(rho, rel=1e-6)
    assert float(F.cosine_similarity(e, uphill, dim=0)) == pytest.approx(1.0, abs=1e-9)


@quick
@given(seed=SEEDS, rho=RADII, eta=st.floats(1e-3, 1.0))
def test_the_adaptive_perturbation_is_rho_long_in_units_of_t(seed, rho, eta):
    model, loss_fn = task(seed)
    t = torch.cat(
        [
            (p.detach().abs() + eta if "weight" in name else torch.ones_like(p)).flatten()
            for name, p in model.named_parameters()
        ]
    )
    e = perturbation(model, loss_fn, rho=rho, adaptive=True, eta=eta)
    assert float((e / t).norm()) == pytest.approx(rho, rel=1e-6)


@quick
@given(
    seed=SEEDS,
    rho=RADII,
    adaptive=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_weights_come_back_to_the_bit_in_place(seed, rho, adaptive, dtype):
    model, loss_fn = task(seed, dtype)
    before, addresses = flat(model), [p.data_ptr() for p in model.parameters()]
    sam_backward(loss_fn, model, rho=rho, adaptive=adaptive)
    assert torch.equal(flat(model), before)
    assert [p.data_ptr() for p in model.parameters()] == addresses


@quick
@given(seed=SEEDS, weights=st.lists(st.floats(0.1, 2.0), min_size=1, max_size=4))
def test_groups_add_up(seed, weights):
    model, loss_fn = task(seed)

    def all_groups(model):
        for weight in weights:
            sam_backward(lambda m, weight=weight: weight * loss_fn(m), model, rho=0.1)

    one = gradient(model, lambda m: sam_backward(loss_fn, m, rho=0.1))
    torch.testing.assert_close(gradient(model, all_groups), sum(weights) * one, rtol=1e-10, atol=1e-13)


@quick
@given(seed=SEEDS, rho=RADII, groups=st.integers(1, 4), adaptive=st.booleans())
def test_parameter_groups_of_equal_settings_make_no_difference(seed, rho, groups, adaptive):
    model, loss_fn = task(seed)
    twin = deepcopy(model)
    named = list(model.named_parameters())
    split = [{"params": named[i::groups]} for i in range(groups)]
    sam = SAM(torch.optim.SGD(split, lr=0.1), rho=rho, adaptive=adaptive)

    def closure():
        loss = loss_fn(model)
        loss.backward()
        return loss

    sam.step(closure)
    ours = torch.cat([p.grad.flatten() for p in model.parameters()])
    theirs = gradient(twin, lambda m: sam_backward(loss_fn, m, rho=rho, adaptive=adaptive))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


@quick
@given(seed=SEEDS, position=st.integers(0, 3), value=st.sampled_from([math.inf, -math.inf, math.nan]))
def test_no_gradient_that_is_not_finite_ever_reaches_the_weights(seed, position, value):
    model, loss_fn = task(seed)
    before, seen = flat(model), []
    list(model.parameters())[position].register_hook(lambda g: torch.full_like(g, value))
    sam_backward(lambda m: seen.append(flat(m)) or loss_fn(m), model, rho=0.1)
    assert torch.equal(seen[1], before)
    assert torch.equal(flat(model), before)
