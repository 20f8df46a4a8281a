"""One engine serves both front ends: every setting of a relative acts in both, and alike."""

from dataclasses import dataclass, fields

import pytest
import torch
from torch import nn

from samovar.sam import SAM, SamMemory, engine, sam_backward
from samovar.sam.variant import SamVariant, changed
from tests.unit.test_sam import ROUNDING, batch, loss_on, net
from tests.unit.test_sam_family import (
    RELATIVES,
    RHO,
    STEPS,
    Data,
    Sgd,
    adapter_of,
    flat,
    steps_by_adapter,
    steps_by_backward,
    trained,
)

FIELDS = [field.name for field in fields(SamVariant)]


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("field", FIELDS)
def test_a_setting_off_neutral_acts_alike_in_both_front_ends_and_as_its_formula_says(field):
    names = [name for name, (variant, _) in RELATIVES.items() if field in changed(variant)]
    assert names, f"no formula in RELATIVES has {field} off neutral; write one before the setting is used"
    for name in names:
        start, data = net(dropout=0.5), Data(*batch())
        by_backward, by_adapter, as_sam = (net(dropout=0.5) for _ in range(3))
        for model in (by_backward, by_adapter, as_sam):
            model.load_state_dict(start.state_dict())
        optimizer = Sgd.theirs(by_backward.parameters())
        steps_by_backward(name, by_backward, optimizer, data, SamMemory(), range(STEPS))
        steps_by_adapter(name, by_adapter, adapter_of(name, by_adapter, Sgd), data, range(STEPS))
        steps_by_adapter("sam", as_sam, adapter_of("sam", as_sam, Sgd), data, range(STEPS))
        formula = trained(name, start, Sgd, data.seeded)
        torch.testing.assert_close(flat(by_backward.parameters()), formula, **ROUNDING)
        torch.testing.assert_close(flat(by_adapter.parameters()), formula, **ROUNDING)
        assert (flat(by_adapter.parameters()) - flat(as_sam.parameters())).norm() > 1e-6


@dataclass(frozen=True)
class Overshooting(SamVariant):
    """A relative that does not exist: it applies g_s + overshoot x (g_s - g)."""

    overshoot: float = 0.3
    uses_both = True


def test_a_relative_is_added_in_one_place_and_both_front_ends_obey(monkeypatch):
    """The walk-through of CONTRIBUTING: a setting, and the line in the engine's use of both gradients."""
    combined = engine.combined

    def with_overshoot(variant, clean, robust, shards):
        if getattr(variant, "overshoot", 0):
            pairs = zip(clean, robust, strict=True)
            return [g_s + variant.overshoot * (g_s - g) for g, g_s in pairs]
        return combined(variant, clean, robust, shards)

    monkeypatch.setattr(engine, "combined", with_overshoot)
    model, (x, y) = net(), batch()
    loss_fn = loss_on(x, y)
    params = list(model.parameters())
    g = torch.autograd.grad(loss_fn(model), params)
    length = torch.sqrt(sum(each.square().sum() for each in g))
    kept = [param.detach().clone() for param in params]
    with torch.no_grad():
        for param, each in zip(params, g, strict=True):
            param += RHO * each / length
    g_s = torch.autograd.grad(loss_fn(model), params)
    with torch.no_grad():
        for param, before in zip(params, kept, strict=True):
            param.copy_(before)
    expected = flat(b + 0.3 * (b - a) for a, b in zip(g, g_s, strict=True))

    sam_backward(loss_fn, model, rho=RHO, variant=Overshooting())
    torch.testing.assert_close(flat(p.grad for p in params), expected, **ROUNDING)

    model.zero_grad()
    sam = SAM(torch.optim.SGD(model.parameters(), lr=1.0), rho=RHO, variant=Overshooting())
    before = flat(params)

    def closure():
        loss = loss_fn(model)
        loss.backward()
        return loss

    sam.step(closure)
    torch.testing.assert_close(before - flat(params), expected, **ROUNDING)
    assert not torch.allclose(expected, flat(g_s))


def test_without_parameters_that_climb_both_front_ends_take_one_plain_pass():
    model, (x, y) = net(), batch()
    calls = []

    def loss_fn(model: nn.Module):
        calls.append(1)
        return loss_on(x, y)(model)

    sam_backward(loss_fn, model, rho=0.0)
    assert len(calls) == 1
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.0)
    model.zero_grad()

    def closure():
        loss = loss_fn(model)
        loss.backward()
        return loss

    sam.step(closure)
    assert len(calls) == 2
