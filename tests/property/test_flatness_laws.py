"""Laws of flatness and of the tangent kernel that hold for any weights, data and settings."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.measure.flatness import average_flatness
from samovar.measure.jacobian import column_chunks
from samovar.measure.ntk import condition_number
from samovar.measure.ntk_kernel import ntk
from samovar.measure.sharpness import sam_sharpness

SEEDS = st.integers(0, 2**31 - 1)
RADII = st.floats(1e-6, 10.0)
quick = settings(max_examples=25, deadline=None)


def task(seed: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A random small net in float64, with batches of random sizes."""
    generator = torch.Generator().manual_seed(seed)
    width, *sizes = torch.randint(1, 9, (4,), generator=generator).tolist()
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    draw = {"generator": generator}
    return model, [(torch.randn(n, 4, dtype=torch.float64, **draw), torch.randint(3, (n,), **draw)) for n in sizes]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Bowl(nn.Module):
    """1/2 w.H w at a random w, with H positive semi-definite."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))
        self.hessian = root @ root.T

    def forward(self) -> Tensor:
        return 0.5 * self.weight @ self.hessian @ self.weight


@quick
@given(seed=SEEDS, rho=RADII, adaptive=st.booleans(), per_batch=st.booleans(), more=st.integers(1, 4))
def test_sharpness_never_falls_with_steps_and_several_steps_never_end_below_zero(seed, rho, adaptive, per_batch, more):
    model, batches = task(seed)
    options = {"rho": rho, "adaptive": adaptive, "per_batch": per_batch}
    values = [sam_sharpness(model, cross_entropy, batches, num_steps=n, **options).value for n in (1, 2, 2 + more)]
    assert values == sorted(values)
    assert values[1] >= 0


@quick
@given(seed=SEEDS, rho=RADII, num_steps=st.integers(1, 5), restarts=st.integers(0, 2))
def test_sharpness_of_a_bowl_is_within_zero_and_its_bound(seed, rho, num_steps, restarts):
    bowl, generator = Bowl(seed), torch.Generator().manual_seed(seed)
    sharp = sam_sharpness(
        bowl, lambda m, _: m(), [torch.ones(1)], rho=rho, num_steps=num_steps, restarts=restarts, generator=generator
    )
    slope = float((bowl.hessian @ bowl.weight.detach()).norm())
    bound = rho * slope + rho**2 / 2 * float(torch.linalg.eigvalsh(bowl.hessian)[-1])
    rounding = 1e-12 * (1 + sharp.loss_perturbed)
    assert -rounding <= sharp.value <= bound + rounding


@quick
@given(seed=SEEDS, rho=RADII)
def test_batches_are_at_least_as_sharp_each_as_together_to_first_order(seed, rho):
    model, batches = task(seed)

    def linear(model, batch):  # whose worst point is known: |mean g| <= mean |g|
        return (model[0].weight * batch[0].mean(0)).sum()

    together, each = (sam_sharpness(model, linear, batches, rho=rho, per_batch=p).value for p in (False, True))
    assert together <= each + 1e-12 * (1 + rho) * 100  # rounding of losses of some 100


@quick
@given(seed=SEEDS, sigma=RADII, draws=st.integers(1, 5))
def test_antithetic_noise_in_a_bowl_never_lowers_the_loss(seed, sigma, draws):
    flat = average_flatness(
        Bowl(seed),
        lambda m, _: m(),
        [torch.ones(1)],
        sigma=sigma,
        num_draws=draws,
        antithetic=True,
        generator=torch.Generator().manual_seed(seed),
    )
    assert min(flat.draws) >= flat.clean - 1e-12 * (1 + max(flat.draws))  # rounding


@quick
@given(seed=SEEDS, size=RADII, scaling=st.sampled_from(["isotropic", "filter"]), adaptive=st.booleans())
def test_weights_come_back_to_the_bit(seed, size, scaling, adaptive):
    model, batches = task(seed)
    before = [p.detach().clone() for p in model.parameters()]
    generator = torch.Generator().manual_seed(seed)
    average_flatness(model, cross_entropy, batches, sigma=size, num_draws=2, scaling=scaling, generator=generator)
    sam_sharpness(model, cross_entropy, batches, rho=size, num_steps=3, adaptive=adaptive)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@quick
@given(seed=SEEDS)
def test_the_kernel_of_the_sum_is_the_sum_over_logits_of_the_full_kernel(seed):
    model, batches = task(seed)
    images = torch.cat([x for x, _ in batches])[:6]
    full = ntk(model, images, output="full").unflatten(0, (-1, 3)).unflatten(2, (-1, 3))
    torch.testing.assert_close(ntk(model, images), full.sum((1, 3)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ntk(model, images, output=2), full[:, 2, :, 2], rtol=1e-10, atol=1e-10)


@quick
@given(seed=SEEDS)
def test_a_kernel_is_positive_semi_definite_and_follows_the_order_of_its_images(seed):
    model, batches = task(seed)
    images = torch.cat([x for x, _ in batches])[:6]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    theta = ntk(model, images)
    assert torch.equal(theta, theta.T)
    assert torch.linalg.eigvalsh(theta)[0] >= -1e-12 * theta.abs().max()
    torch.testing.assert_close(ntk(model, images[order]), theta[order][:, order], rtol=1e-10, atol=1e-10)


@quick
@given(seed=SEEDS, scale=st.floats(1e-6, 1e6))
def test_the_condition_number_does_not_change_with_the_scale_of_the_kernel(seed, scale):
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kappa = condition_number(rows @ rows.T).value
    assert kappa >= 1
    assert condition_number(scale * rows @ rows.T).value == pytest.approx(kappa, rel=1e-12 * kappa)


@quick
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), width=st.integers(1, 12))
def test_chunks_of_columns_cover_every_column_once_and_are_as_wide_as_can_be(sizes, width):
    params = {str(i): torch.zeros(size) for i, size in enumerate(sizes)}
    chunks = list(column_chunks(params, width))
    columns = [(piece.name, i) for chunk in chunks for piece in chunk for i in range(piece.start, piece.stop)]
    assert columns == [(name, i) for name, p in params.items() for i in range(len(p))]
    assert [sum(piece.stop - piece.start for piece in chunk) for chunk in chunks[:-1]] == [width] * (len(chunks) - 1)
    assert len(chunks) == math.ceil(sum(sizes) / width)
