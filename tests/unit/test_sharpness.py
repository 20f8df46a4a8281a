"""Average flatness and SAM sharpness against what is known of quadratic and linear losses."""

import math
import random
from collections import UserDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.curvature.inputs import num_examples
from samovar.measure.flatness import average_flatness
from samovar.measure.losses import mean_loss
from samovar.measure.sharpness import sam_sharpness
from samovar.sam import sam_backward


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Point(nn.Module):
    """A point in weight space: one parameter per keyword, in float64."""

    def __init__(self, **tensors: Tensor):
        super().__init__()
        for name, value in tensors.items():
            setattr(self, name, nn.Parameter(value.double().clone()))

    def flat(self) -> Tensor:
        return torch.cat([p.flatten() for p in self.parameters()])


SIZE = 6
BATCH = [torch.zeros(1)]


def quadratic(seed: int = 0, *, lift: float = 0.0):
    """A random (H, slope) and the loss 1/2 w.H w + slope.w; at w = 0 its gradient is the slope."""
    generator = seeded(seed)
    root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    slope = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    hessian = (root + root.T) / 2 + lift * torch.eye(SIZE)
    return hessian, slope, lambda model, batch: 0.5 * model.flat() @ hessian @ model.flat() + slope @ model.flat()


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def origin() -> Point:
    return Point(weight=torch.zeros(4), bias=torch.zeros(2))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3))


def data(sizes=(4, 4, 2)) -> list[tuple[Tensor, Tensor]]:
    generator = seeded(1)
    return [(torch.rand(n, 1, 4, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def cross_entropy(model: nn.Module, batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


# --- the mean loss ---------------------------------------------------------------------------------------------------


def test_the_mean_loss_is_over_examples_in_eval_mode():
    model, batches = net(), data()
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    measured = mean_loss(model, cross_entropy, batches)
    assert model.training
    assert measured == pytest.approx(F.cross_entropy(model.eval()(images), labels).item(), rel=1e-6)  # float32


class Sized:
    def __len__(self):
        return 7


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(5, 2), 5),
        ((torch.zeros(4, 2), torch.zeros(9)), 4),
        ([torch.zeros(3, 2), torch.zeros(9)], 3),
        ({"pixels": torch.zeros(2, 2), "labels": torch.zeros(9)}, 2),
        (UserDict(pixels=torch.zeros(2, 2), labels=torch.zeros(9)), 2),
        (Sized(), 7),
    ],
)
def test_the_examples_of_a_batch_are_counted(batch, size):
    assert num_examples(batch) == size


@pytest.mark.parametrize("batch", [object(), (), {"labels": [1]}, torch.zeros(0, 3)])
def test_a_batch_whose_examples_cannot_be_counted_is_refused(batch):
    with pytest.raises(ValueError, match="batch"):
        num_examples(batch)


# --- average flatness ------------------------------------------------------------------------------------------------


def test_average_flatness_of_a_quadratic_is_half_the_trace_and_its_error_is_as_known():
    hessian, slope, loss = quadratic(lift=1.0)
    sigma, n = 0.3, 1000
    flat = average_flatness(origin(), loss, BATCH, sigma=sigma, num_draws=n, generator=seeded())
    deviation = math.sqrt(sigma**2 * float(slope @ slope) + sigma**4 / 2 * float((hessian @ hessian).trace()))
    assert abs(flat.increase - sigma**2 / 2 * float(hessian.trace())) < 4 * flat.stderr
    # a deviation of 1000 draws with a kurtosis of about 4 is known to sqrt((4 - 1) / 4000) = 2.7 %; four of these
    assert flat.stderr == pytest.approx(deviation / math.sqrt(n), rel=0.11)
    assert flat.stderr == pytest.approx(float(torch.tensor(flat.draws).std()) / math.sqrt(n), rel=1e-5)
    assert (flat.n, flat.clean, flat.value) == (n, 0, pytest.approx(sum(flat.draws) / n))


def test_antithetic_draws_cancel_a_slope():
    _, slope, _ = quadratic()
    noise = {"sigma": 0.3, "num_draws": 5, "antithetic": True, "generator": seeded()}
    flat = average_flatness(origin(), lambda model, batch: 1 + slope @ model.flat(), BATCH, **noise)
    assert flat.draws == pytest.approx([1] * 5, abs=1e-14)  # rounding of float64
    assert flat.stderr < 1e-14


def test_the_first_draw_of_an_antithetic_pair_is_that_of_a_plain_one():
    seen = []

    def loss(model, batch):
        seen.append(model.flat().detach().clone())
        return model.flat().sum()

    for antithetic in (False, True):
        average_flatness(origin(), loss, BATCH, sigma=1.0, num_draws=2, antithetic=antithetic, generator=seeded())
    (plain, pairs) = seen[1:3], seen[4:8]
    assert torch.equal(torch.stack(plain), torch.stack(pairs[::2]))
    assert torch.equal(torch.stack(plain), -torch.stack(pairs[1::2]))


def test_noise_per_filter_has_sigma_times_the_filters_norm_and_spares_biases():
    model = Point(weight=torch.tensor([[1.0], [10.0], [0.0]]).expand(3, 200), bias=torch.ones(3))
    clean, steps = model.flat().detach().clone(), []

    def loss(model, batch):
        steps.append((model.flat() - clean).detach())
        return model.flat().sum()

    average_flatness(model, loss, BATCH, sigma=0.1, num_draws=50, scaling="filter", generator=seeded())
    noise = torch.stack(steps[1:])
    norms = noise[:, :600].unflatten(1, (3, 200)).square().sum(2).mean(0).sqrt()
    # the root mean square of 50 * 200 normal draws is known to 1 / sqrt(20000) = 0.7 %; four of these
    assert norms[:2].tolist() == pytest.approx([0.1 * 200**0.5, 0.1 * 10 * 200**0.5], rel=0.03)
    assert not norms[2].any()
    assert not noise[:, 600:].any()


def test_no_noise_changes_nothing():
    flat = average_flatness(net(), cross_entropy, data(), sigma=0.0, num_draws=3, generator=seeded())
    assert flat.draws == (flat.clean,) * 3
    assert (flat.increase, flat.stderr) == (0, 0)


def test_a_single_draw_has_no_error_bar():
    flat = average_flatness(net(), cross_entropy, data(), sigma=0.1, num_draws=1, generator=seeded())
    assert flat.stderr is None
    assert flat.value == flat.draws[0]


def test_draws_are_a_function_of_the_generator_and_not_of_the_global_one():
    torch.manual_seed(1)
    first = average_flatness(net(), cross_entropy, data(), sigma=0.1, num_draws=2, generator=seeded(5))
    torch.manual_seed(2)
    assert average_flatness(net(), cross_entropy, data(), sigma=0.1, num_draws=2, generator=seeded(5)) == first
    assert average_flatness(net(), cross_entropy, data(), sigma=0.1, num_draws=2, generator=seeded(6)) != first


def test_random_numbers_of_the_loss_are_the_same_in_every_pass():
    def noisy(model, batch):
        return model.flat().sum() + torch.rand(()) + random.random()

    flat = average_flatness(origin(), noisy, BATCH * 3, sigma=0.0, num_draws=2, generator=seeded())
    assert flat.draws == (flat.clean,) * 2


def test_a_draw_that_overflows_is_reported_not_hidden():
    calls = []

    def loss(model, batch):
        calls.append(batch)
        return model.flat().sum() * 0 + (math.inf if len(calls) == 3 else 1.0)

    flat = average_flatness(origin(), loss, BATCH, sigma=0.1, num_draws=3, generator=seeded())
    assert flat.draws == (1, math.inf, 1)
    assert (flat.value, flat.increase, flat.stderr, flat.clean) == (math.inf, math.inf, None, 1)


def test_noise_reaches_a_loss_inside_the_callers_autocast():
    model, batches = nn.Linear(16, 3), [(torch.rand(8, 16), torch.arange(8) % 3)]
    with torch.autocast("cpu", torch.bfloat16):
        flat = average_flatness(model, cross_entropy, batches, sigma=1.0, num_draws=4, generator=seeded())
        sharp = sam_sharpness(model, cross_entropy, batches, rho=1.0)
    assert len({flat.clean, *flat.draws}) == 5
    assert sharp.value > 0.01


# --- SAM sharpness ---------------------------------------------------------------------------------------------------


def trust_region_maximum(hessian: Tensor, slope: Tensor, rho: float) -> float:
    """max of 1/2 e.H e + slope.e over |e| = rho: e = (s - H)^-1 slope for the s > lambda_max where |e| = rho."""
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    along = vectors.T @ slope
    low, high = float(eigenvalues[-1]), float(eigenvalues[-1] + slope.norm() / rho)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (along / (middle - eigenvalues)).norm() > rho else (low, middle)
    e = along / (high - eigenvalues)
    return float(0.5 * (eigenvalues * e * e).sum() + along @ e)


@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
def test_one_step_on_a_quadratic_is_the_closed_form(rho):
    hessian, slope, loss = quadratic()
    sharp = sam_sharpness(origin(), loss, BATCH, rho=rho)
    unit = slope / slope.norm()
    expected = rho * float(slope.norm()) + rho**2 / 2 * float(unit @ hessian @ unit)
    assert sharp.value == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert (sharp.loss_clean, sharp.loss_perturbed, sharp.num_gradients) == (0, sharp.value, 1)


@pytest.mark.parametrize("rho", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("lift", [4.0, 0.0])
def test_many_steps_approach_the_maximum_over_the_ball(rho, lift):
    hessian, slope, loss = quadratic(3, lift=lift)
    best = trust_region_maximum(hessian, slope, rho)
    one = sam_sharpness(origin(), loss, BATCH, rho=rho).value
    many = sam_sharpness(origin(), loss, BATCH, rho=rho, num_steps=300).value
    assert one < many <= best * (1 + 1e-12)  # rounding
    assert many == pytest.approx(best, rel=1e-6)  # linear convergence, as of power iteration


def test_at_a_minimum_sharpness_is_zero_in_one_step_and_half_lambda_max_after_restarts():
    hessian, _, _ = quadratic(lift=8.0)

    def loss(model, batch):
        return 0.5 * model.flat() @ hessian @ model.flat()

    still = sam_sharpness(origin(), loss, BATCH, rho=0.5)
    assert (still.value, still.num_gradients) == (0, 1)
    assert sam_sharpness(origin(), loss, BATCH, rho=0.5, num_steps=5).value == 0
    found = sam_sharpness(origin(), loss, BATCH, rho=0.5, num_steps=200, restarts=1, generator=seeded())
    assert found.value == pytest.approx(0.5**2 / 2 * float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)


@pytest.mark.parametrize("num_steps", [1, 10])
def test_at_a_minimum_known_to_float32_rounding_sharpness_is_not_negative(num_steps):
    x, y = torch.randn(32, 5, generator=seeded()), torch.randn(32, 1, generator=seeded(1))
    model = nn.Linear(5, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    sharp = sam_sharpness(model, lambda m, _: F.mse_loss(m(x), y), BATCH, rho=0.1, num_steps=num_steps)
    assert 0 < sharp.value <= 0.1**2 * float(torch.linalg.eigvalsh(x.T @ x / 32)[-1]) * 1.001


def test_one_step_that_overshoots_is_negative_and_several_are_not():
    def narrow_hill(model, batch):  # highest at 0.1
        return -(model.flat() - 0.1).square().sum()

    assert sam_sharpness(origin(), narrow_hill, BATCH, rho=2.0).value < 0
    assert sam_sharpness(origin(), narrow_hill, BATCH, rho=2.0, num_steps=3, step_size=0.01).value == 0


def test_the_adaptive_form_on_a_diagonal_quadratic_is_the_closed_form():
    weight, bias, rho = tensor(1.0, -2.0, 0.0), tensor(3.0), 0.7
    h, w = tensor(1.0, 2.0, 3.0, 4.0), torch.cat([weight, bias])
    t = tensor(1.01, 2.01, 0.01, 1.0)  # the bias is not scaled
    sharp = sam_sharpness(
        Point(weight=weight, bias=bias),
        lambda model, batch: 0.5 * (h * model.flat().square()).sum(),
        BATCH,
        rho=rho,
        adaptive=True,
        eta=0.01,
    )
    e = rho * t * t * h * w / (t * h * w).norm()
    assert sharp.value == pytest.approx(float((0.5 * h * ((w + e) ** 2 - w**2)).sum()), rel=1e-12)


def test_adaptive_ascent_of_many_steps_reaches_the_maximum_over_the_ellipsoid():
    hessian, slope, _ = quadratic(2, lift=3.0)
    start = tensor(1.0, -0.5, 2.0, 0.1, 1.0, 1.0)
    t = torch.cat([start[:4].abs() + 0.5, torch.ones(2)])

    def loss(model, batch):
        e = model.flat() - start
        return 0.5 * e @ hessian @ e + slope @ e

    model = Point(weight=start[:4], bias=start[4:])
    found = sam_sharpness(model, loss, BATCH, rho=0.5, num_steps=300, adaptive=True, eta=0.5).value
    assert found == pytest.approx(trust_region_maximum(t[:, None] * hessian * t, t * slope, 0.5), rel=1e-6)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_point_of_one_step_is_the_one_sam_trains_at(adaptive):
    model, batch = net().eval(), data()[0]
    seen = []

    def loss(model, batch=batch):
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return cross_entropy(model, batch)

    sam_backward(loss, model, rho=0.3, adaptive=adaptive)
    sam_sharpness(model, lambda model, _: loss(model), [batch], rho=0.3, adaptive=adaptive)
    torch.testing.assert_close(seen[3], seen[1], rtol=1e-5, atol=1e-6)  # float32
    assert not torch.equal(seen[3], seen[2])


def test_sharpness_over_several_batches_is_that_of_their_union():
    model, batches = net().double(), [(x.double(), y) for x, y in data()]
    union = [tuple(torch.cat(part) for part in zip(*batches, strict=True))]
    parts, whole = (sam_sharpness(model, cross_entropy, b, rho=0.5, num_steps=3) for b in (batches, union))
    assert parts.value == pytest.approx(whole.value, rel=1e-10)  # float64
    assert (parts.n, parts.num_gradients) == (3, 9)
    assert whole.stderr is None


def test_per_batch_is_the_mean_over_batches_of_their_own_sharpness_with_its_error():
    model, batches = net(), data((4, 4, 4))
    own = [sam_sharpness(model, cross_entropy, [batch], rho=0.5).value for batch in batches]
    sharp = sam_sharpness(model, cross_entropy, batches, rho=0.5, per_batch=True)
    assert sharp.values == pytest.approx(own, rel=1e-6)
    assert sharp.value == pytest.approx(sum(own) / 3, rel=1e-6)
    assert sharp.stderr == pytest.approx(float(torch.tensor(own).std()) / math.sqrt(3), rel=1e-5)
    assert (sharp.n, sharp.num_gradients) == (3, 3)


def test_per_batch_weights_batches_by_their_examples():
    slopes = {2: 1.0, 6: 5.0}

    def loss(model, batch):
        return slopes[len(batch)] * model.weight.sum()

    sharp = sam_sharpness(Point(weight=torch.zeros(1)), loss, [torch.zeros(2), torch.zeros(6)], rho=1.0, per_batch=True)
    assert sharp.values == (1, 5)
    assert sharp.value == 4  # (2 * 1 + 6 * 5) / 8


def test_opposed_batches_are_sharp_each_but_not_together():
    signs = [torch.full((1,), 1.0), torch.full((1,), -1.0)]

    def loss(model, batch):
        return batch.sum() * model.weight.sum()

    model = Point(weight=torch.zeros(1))
    assert sam_sharpness(model, loss, signs, rho=1.0).value == 0
    assert sam_sharpness(model, loss, signs, rho=1.0, per_batch=True).value == 1


@pytest.mark.parametrize("per_batch", [False, True])
def test_the_number_of_gradients_is_counted_and_the_last_look_takes_none(per_batch):
    calls = []

    def loss(model, batch):
        calls.append(torch.is_grad_enabled())
        return cross_entropy(model, batch)

    sharp = sam_sharpness(
        net(), loss, data(), rho=0.1, num_steps=4, restarts=2, per_batch=per_batch, generator=seeded()
    )
    assert sharp.num_gradients == sum(calls) == 3 * 4 * (1 + 2)
    assert len(calls) - sum(calls) == 3 * (1 + 2)


def test_an_ascent_into_an_infinite_loss_says_so():
    def cliff(model, batch):
        return model.flat().sum() + torch.where(model.flat().norm() > 0.5, math.inf, 0.0)

    sharp = sam_sharpness(origin(), cliff, BATCH, rho=1.0, num_steps=5)
    assert (sharp.value, sharp.loss_perturbed, sharp.stderr, sharp.loss_clean) == (math.inf, math.inf, None, 0)


# --- lending ---------------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Counts its calls in a buffer, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


MEASURES = {
    "mean": lambda model, loss: mean_loss(model, loss, data()),
    "flat": lambda model, loss: average_flatness(
        model, loss, data(), sigma=0.1, num_draws=2, antithetic=True, generator=seeded()
    ),
    "sharp": lambda model, loss: sam_sharpness(
        model, loss, data(), rho=0.1, num_steps=2, restarts=1, adaptive=True, generator=seeded()
    ),
    "batch": lambda model, loss: sam_sharpness(model, loss, data(), rho=0.1, per_batch=True),
}


@pytest.mark.parametrize("fails_at", [None, 1, 3])
@pytest.mark.parametrize("measure", MEASURES)
def test_the_model_comes_back_bit_for_bit_also_after_an_exception(measure, fails_at):
    model = nn.Sequential(Restless(), net())
    model[1][1].eval()
    model[1][5].bias.requires_grad_(False)
    with torch.no_grad():
        model[1][0].weight[0] = -0.0  # which w + 0 would turn into 0
    model[1][0].weight.grad = torch.ones_like(model[1][0].weight)
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        assert not any(module.training for module in model.modules())
        torch.rand(1)
        value = cross_entropy(model, batch)
        if value.requires_grad:
            value.backward(retain_graph=True)
        if calls == fails_at:
            model.train()
            raise KeyError("in the loss")
        return value

    def look():
        grads = [(id(p.grad), p.grad is not None and p.grad.sum().item()) for p in model.parameters()]
        bits = [t.view(torch.uint8).tolist() if t.ndim else t.item() for t in model.state_dict().values()]
        modes = [m.training for m in model.modules()]
        flags = [p.requires_grad for p in model.parameters()]
        places = [p.data_ptr() for p in model.parameters()]
        return grads, bits, modes, flags, places, torch.get_rng_state().tolist(), random.getstate()

    before = look()
    if fails_at is None:
        MEASURES[measure](model, loss)
    else:
        with pytest.raises(KeyError, match="in the loss"):
            MEASURES[measure](model, loss)
    assert look() == before


def test_frozen_weights_are_not_perturbed():
    model = Point(weight=torch.zeros(3), bias=torch.zeros(3))
    model.bias.requires_grad_(False)
    both = sam_sharpness(model, lambda m, _: m.flat().sum(), BATCH, rho=1.0)
    assert both.value == pytest.approx(math.sqrt(3), rel=1e-12)  # rho times the norm of three ones


def test_a_model_in_inference_mode_can_be_measured():
    model = net()
    expected = sam_sharpness(model, cross_entropy, data(), rho=0.1)
    with torch.inference_mode():
        assert sam_sharpness(model, cross_entropy, data_outside, rho=0.1) == expected


data_outside = data()


# --- bad input -------------------------------------------------------------------------------------------------------


def flatness(**options):
    settings = {"sigma": 0.1, "num_draws": 2, "generator": seeded()} | options
    return average_flatness(settings.pop("model", None) or net(), cross_entropy, data(), **settings)


def sharpness(**options):
    return sam_sharpness(net(), cross_entropy, data(), **({"rho": 0.1} | options))


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        (flatness, {"sigma": -1.0}, "sigma=-1.0"),
        (flatness, {"sigma": math.nan}, "sigma=nan"),
        (flatness, {"num_draws": 0}, "num_draws=0"),
        (flatness, {"scaling": "layer"}, "isotropic, filter"),
        (flatness, {"model": nn.LayerNorm(3), "scaling": "filter"}, "no filters"),
        (flatness, {"model": nn.Flatten()}, "no parameter"),
        (sharpness, {"rho": -0.1}, "rho=-0.1"),
        (sharpness, {"rho": math.inf}, "rho=inf"),
        (sharpness, {"num_steps": 0}, "num_steps=0"),
        (sharpness, {"step_size": 0.0}, "step_size=0.0"),
        (sharpness, {"eta": 0.0}, "eta=0.0"),
        (sharpness, {"restarts": -1}, "restarts=-1"),
        (sharpness, {"restarts": 1}, "give a generator"),
    ],
)
def test_bad_settings_are_refused(measure, options, message):
    with pytest.raises(ValueError, match=message):
        measure(**options)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: model.flat(), r"shape \[6\].*shape \[\]"),
        (lambda model, batch: 0.0, "of type float"),
        (lambda model, batch: model.flat().sum() * math.nan, "batch 0 is nan"),
        (lambda model, batch: model.flat().sum() + math.inf, "batch 0 is inf"),
    ],
)
def test_bad_losses_are_refused_everywhere(loss, message):
    with pytest.raises(ValueError, match=message):
        mean_loss(origin(), loss, BATCH)
    with pytest.raises(ValueError, match=message):
        average_flatness(origin(), loss, BATCH, sigma=0.1, num_draws=1, generator=seeded())
    with pytest.raises(ValueError, match=message):
        sam_sharpness(origin(), loss, BATCH, rho=0.1)


def test_losses_without_a_usable_gradient_are_refused():
    with pytest.raises(ValueError, match="does not depend on the weights"):
        sam_sharpness(origin(), lambda model, batch: torch.ones(()), BATCH, rho=0.1)
    with pytest.raises(ValueError, match="gradient at the weights as given is not finite"):
        sam_sharpness(origin(), lambda model, batch: model.flat().abs().sqrt().sum(), BATCH, rho=0.1)


@pytest.mark.parametrize("per_batch", [False, True])
def test_batches_that_are_empty_or_read_only_once_are_refused(per_batch):
    with pytest.raises(ValueError, match="batches is empty"):
        sam_sharpness(net(), cross_entropy, [], rho=0.1, per_batch=per_batch)
    with pytest.raises(TypeError, match="iterator"):
        sam_sharpness(net(), cross_entropy, iter(data()), rho=0.1, per_batch=per_batch)
    with pytest.raises(ValueError, match="batches is empty"):
        mean_loss(net(), cross_entropy, [])
