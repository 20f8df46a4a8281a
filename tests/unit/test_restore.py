"""What is borrowed comes back: modes, flags, gradients, buffers and random numbers, after errors too."""

import contextlib
import random

import numpy as np
import pytest
import torch
from torch import nn

from samovar import restore
from samovar.attacks import fgsm
from samovar.train.evaluation import evaluate


class Stubborn(nn.Identity):
    """A module that counts the calls of its train(), as those of some models cannot be undone."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def train(self, mode=True):
        self.calls += 1
        return super().train(mode)


def frozen_in_eval() -> nn.Sequential:
    """A model in train mode whose BatchNorm is frozen in eval mode, as fine-tuning often has it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2), Stubborn()
    )
    model.train()
    model[2].eval()
    model[5].calls = 0
    model[1].weight.requires_grad_(False)
    return model


def modes_of(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_each_module_gets_its_own_mode_back(training, fails):
    model = frozen_in_eval()
    before = modes_of(model)
    with contextlib.suppress(RuntimeError), restore.modes(model, training=training):
        assert set(modes_of(model)) == {training}
        if fails:
            raise RuntimeError
    assert modes_of(model) == before
    assert model[5].calls == 0


@pytest.mark.parametrize("value", [None, False, True])
def test_flags_and_gradients_come_back_as_the_same_tensors(value):
    model = frozen_in_eval()
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    grads, flags = ([getattr(p, name) for p in model.parameters()] for name in ("grad", "requires_grad"))
    with contextlib.suppress(RuntimeError), restore.requires_grad(model, value), restore.grads(model):
        assert all(param.grad is None for param in model.parameters())
        assert value is None or {param.requires_grad for param in model.parameters()} == {value}
        raise RuntimeError
    assert all(param.grad is grad for param, grad in zip(model.parameters(), grads, strict=True))
    assert [param.requires_grad for param in model.parameters()] == flags


def test_buffers_come_back_in_the_same_tensors_even_when_rebound():
    model = nn.BatchNorm1d(3)
    buffer, bits = model.running_mean, model.running_mean.clone()
    with contextlib.suppress(RuntimeError), restore.buffers(model.modules()):
        model(torch.randn(8, 3))
        assert not torch.equal(model.running_mean, bits)
        model.running_mean = torch.full((3,), 7.0)
        raise RuntimeError
    assert model.running_mean is buffer
    assert torch.equal(buffer, bits)


def test_random_numbers_of_all_generators_start_again():
    def draws():
        return random.random(), np.random.rand(), torch.rand(()).item()

    restart = restore.remember_rng()
    first = draws()
    restart()
    assert draws() == first
    restart()
    with restore.rng():
        draws(), draws()
    assert draws() == first


def test_wrappers_are_looked_through():
    model = nn.Linear(2, 2)
    assert restore.bare(torch.compile(nn.DataParallel(model))) is model


class _Runtime:
    world_size, device = 1, torch.device("cpu")

    @staticmethod
    def autocast():
        return torch.autocast("cpu", enabled=False)


class _Batch(tuple):
    images, labels = property(lambda self: self[0]), property(lambda self: self[1])

    def __len__(self) -> int:
        return len(self.labels)


class _Loss:
    def __init__(self, model, batch):
        self.logits = model(batch.images)
        self.value = nn.functional.cross_entropy(self.logits, batch.labels)


def test_evaluation_leaves_a_batchnorm_that_was_frozen_in_eval_mode_there():
    model = frozen_in_eval()
    before = modes_of(model)
    found = evaluate(model, [_Batch((torch.rand(6, 4), torch.randint(0, 2, (6,))))], _Loss, _Runtime())
    assert found.n == 6
    assert modes_of(model) == before


def test_an_attack_leaves_modes_and_flags_as_they_were():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    model[2].eval()
    model[1].bias.requires_grad_(False)
    before, flags = modes_of(model), [p.requires_grad for p in model.parameters()]
    fgsm(model, torch.rand(5, 1, 2, 2), torch.randint(0, 2, (5,)))
    assert modes_of(model) == before
    assert [p.requires_grad for p in model.parameters()] == flags
