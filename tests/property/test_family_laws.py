"""Laws of SAM's relatives for any weights, data and radius: where they are neutral, how far they climb."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.sam import SAM, SamMemory, sam_backward
from samovar.sam.variant import SamVariant, conflict
from tests.property.test_sam_laws import RADII, SEEDS, flat

quick = settings(max_examples=20, deadline=None)
STEPS = 3


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def task(seed: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A random small net with a norm layer and dropout, and a batch for each of a few steps."""
    torch.manual_seed(seed)
    width, size = int(torch.randint(2, 9, ())), int(torch.randint(4, 17, ()))
    layers = [nn.Linear(4, width), nn.LayerNorm(width), nn.Tanh(), nn.Dropout(0.3), nn.Linear(width, 3)]
    data = [(torch.randn(size, 4, dtype=dtype), torch.randint(3, (size,))) for _ in range(STEPS)]
    return nn.Sequential(*layers).to(dtype), data


def steps(model: nn.Module, data, variant: SamVariant | None, own_ascent: bool = False, **options) -> Tensor:
    """Weights [P] of a copy after a few steps of SGD with momentum, and whatever was added beside them."""
    model, memory = deepcopy(model), SamMemory(STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, (x, y) in enumerate(data):
        torch.manual_seed(step)

        def loss_fn(model, x=x, y=y):
            return F.cross_entropy(model(x), y)

        optimizer.zero_grad()
        sam_backward(
            loss_fn, model, variant=variant, memory=memory, optimizer=optimizer,
            ascent_loss_fn=loss_fn if own_ascent else None, **options,
        )  # fmt: skip
        optimizer.step()
        memory.subtract_(optimizer, variant or SamVariant())
    return flat(model)


SETTINGS = {
    "momentum": st.booleans(),
    "sigma": st.sampled_from([0.0, 0.7, 1.0]),
    "ascent_steps": st.sampled_from([1, 1, 2, 3]),
    "norms_only": st.booleans(),
    "layerwise": st.booleans(),
    "every": st.sampled_from([1, 1, 2]),
    "reuse": st.sampled_from([0.0, 0.5]),
    "alpha": st.sampled_from([0.0, 0.4]),
    "gamma": st.sampled_from([0.5, 0.5, 0.8]),
    "decoupled": st.booleans(),
}
TRUE, OF_NOISE = st.just(True), {"noise_eta": st.sampled_from([0.0, 3.0])}
VARIANTS = st.one_of(
    st.builds(SamVariant, **SETTINGS),
    st.builds(SamVariant, stale=TRUE, **{name: SETTINGS[name] for name in ("norms_only", "layerwise")}),
    st.builds(SamVariant, noise=TRUE, norms_only=st.booleans(), **OF_NOISE),
    st.builds(
        SamVariant,
        sharp_only=TRUE,
        c_skip=st.booleans(),
        **{name: SETTINGS[name] for name in ("sigma", "ascent_steps", "norms_only", "layerwise", "gamma")},
    ),
).filter(lambda variant: conflict(variant) is None)
ALONG_A_GRADIENT = ("sigma", "ascent_steps", "norms_only", "layerwise", "every")
OF_ONE_GRADIENT = st.builds(SamVariant, **{name: SETTINGS[name] for name in ALONG_A_GRADIENT})


@quick
@given(seed=SEEDS, variant=VARIANTS)
def test_any_relative_without_a_radius_is_plain_to_the_bit(seed, variant):
    model, data = task(seed)
    assert torch.equal(steps(model, data, variant, rho=0.0), steps(model, data, None, rho=0.0))


NEUTRAL = [
    SamVariant(),
    SamVariant(every=1),
    SamVariant(alpha=0.0),
    SamVariant(sigma=0.0, sigma_decay=0.3),
    SamVariant(gamma=0.5),
    SamVariant(ascent_steps=1),
    SamVariant(reuse=0.0),
    SamVariant(noise_eta=3.0, noise_decay=0.1),
    SamVariant(c_first=3.0, c_last=-3.0, c_decay=0.1, c_skip=False),
    SamVariant(sharp_only=True, c_first=-1e9, c_last=-1e9),
]


@quick
@given(seed=SEEDS, rho=RADII, variant=st.sampled_from(NEUTRAL), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_neutral_settings_are_sam_to_the_bit(seed, rho, variant, dtype):
    model, data = task(seed, dtype)
    assert torch.equal(steps(model, data, variant, rho=rho), steps(model, data, None, rho=rho))


@quick
@given(seed=SEEDS, rho=RADII, variant=OF_ONE_GRADIENT)
def test_an_ascent_on_the_whole_batch_of_its_own_is_the_relative_itself_to_the_bit(seed, rho, variant):
    model, data = task(seed)
    ours, same = (steps(model, data, variant, own_ascent=own, rho=rho) for own in (True, False))
    assert torch.equal(ours, same)


@quick
@given(seed=SEEDS, rho=RADII)
def test_gamma_zero_is_plain_and_the_steps_between_are_too(seed, rho):
    model, data = task(seed)
    plain = steps(model, data, None, rho=0.0)
    torch.testing.assert_close(steps(model, data, SamVariant(gamma=0.0), rho=rho), plain, rtol=1e-12, atol=1e-14)
    first_alone = steps(model, data, SamVariant(every=STEPS), rho=rho)
    assert torch.equal(first_alone, steps_of_rhos(model, data, [rho, 0.0, 0.0]))


def steps_of_rhos(model: nn.Module, data, rhos: list[float]) -> Tensor:
    model = deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, ((x, y), rho) in enumerate(zip(data, rhos, strict=True)):
        torch.manual_seed(step)
        optimizer.zero_grad()
        sam_backward(lambda model, x=x, y=y: F.cross_entropy(model(x), y), model, rho=rho)
        optimizer.step()
    return flat(model)


@quick
@given(seed=SEEDS, rho=RADII, variant=VARIANTS, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_weights_come_back_to_the_bit(seed, rho, variant, dtype):
    model, data = task(seed, dtype)
    memory, optimizer = SamMemory(STEPS), torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in data:
        before, addresses = flat(model).clone(), [p.data_ptr() for p in model.parameters()]
        optimizer.zero_grad()
        sam_backward(
            lambda model, x=x, y=y: F.cross_entropy(model(x), y), model, rho=rho, variant=variant, memory=memory,
            optimizer=optimizer,
        )  # fmt: skip
        assert torch.equal(flat(model), before)
        assert [p.data_ptr() for p in model.parameters()] == addresses
        optimizer.step()
        memory.subtract_(optimizer, variant)


def steps_of_adapter(model: nn.Module, data, variant: SamVariant, rho: float) -> Tensor:
    model = deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sam = SAM(optimizer, rho=rho, variant=variant, model=model, num_steps=STEPS)
    for step, (x, y) in enumerate(data):
        torch.manual_seed(step)

        def closure(x=x, y=y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        sam.step(closure)
    return flat(model)


@quick
@given(seed=SEEDS, rho=RADII, variant=VARIANTS)
def test_the_optimizer_takes_the_steps_of_sam_backward_whatever_the_relative(seed, rho, variant):
    model, data = task(seed)
    ours, theirs = steps_of_adapter(model, data, variant, rho), steps(model, data, variant, rho=rho)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)  # sums in another order


CLIMBS = {
    "gradient": SamVariant(),
    "layerwise": SamVariant(layerwise=True),
    "norms only": SamVariant(norms_only=True),
    "momentum": SamVariant(momentum=True),
    "stale": SamVariant(stale=True),
    "friendly": SamVariant(sigma=1.0),
    "layerwise norms": SamVariant(norms_only=True, layerwise=True),
    "two steps": SamVariant(ascent_steps=2),
    "three friendly steps": SamVariant(ascent_steps=3, sigma=0.5),
}


@quick
@given(seed=SEEDS, rho=RADII, name=st.sampled_from(list(CLIMBS)))
def test_a_climb_of_any_kind_is_rho_long_and_one_of_several_steps_at_most(seed, rho, name):
    model, data = task(seed)
    variant, memory = CLIMBS[name], SamMemory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, (x, y) in enumerate(data):
        seen: list[Tensor] = []

        def loss_fn(model, x=x, y=y, seen=seen):
            seen.append(flat(model).clone())
            return F.cross_entropy(model(x), y)

        before = flat(model).clone()
        optimizer.zero_grad()
        sam_backward(loss_fn, model, rho=rho, variant=variant, memory=memory, optimizer=optimizer)
        optimizer.step()
        length = float((seen[-1] - before).norm())
        if variant.one_pass and step == 0:
            assert length == 0
        elif variant.ascent_steps == 1:
            assert length == pytest.approx(rho, rel=1e-8)  # weights round at 1e-16, the shortest rho is 1e-6
        else:
            assert 0 < length <= rho * (1 + 1e-8)
