"""What is borrowed comes back: modes, flags, gradients, buffers and random numbers, after errors too."""

import contextlib
import random

import numpy as np
import pytest
import torch
from torch import nn

from samovar.anymodel import restore
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


class Net(nn.Module):
    """A model in train mode, with a BatchNorm that is frozen in eval mode and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.norm.eval()
        self.last.requires_grad_(False)
        self.first.weight.grad = torch.ones(4, 3)

    def eval(self) -> "Net":
        raise AssertionError("a model's own eval() has effects that no call undoes")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def state(model: nn.Module) -> dict[str, object]:
    return {
        "modes": [module.training for module in model.modules()],
        "flags": [param.requires_grad for param in model.parameters()],
        "grads": [None if param.grad is None else param.grad.tolist() for param in model.parameters()],
        "tensors": {name: (tensor.data_ptr(), tensor.tolist()) for name, tensor in model.state_dict().items()},
        "random": (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),
    }  # fmt: skip


def test_a_model_lent_for_evaluation_comes_back_as_it_was() -> None:
    model = Net()
    before = state(model)

    def borrow() -> None:
        with restore.evaluating(model):
            assert not any(module.training for module in model.modules())
            assert all(param.grad is None for param in model.parameters())
            for module in model.modules():
                module.training = True
            model(torch.randn(8, 3)).sum().backward()
            model.last.requires_grad_(True)
            model.norm.running_mean = torch.zeros(4)
            random.random(), np.random.rand()
            raise KeyError

    with pytest.raises(KeyError):
        borrow()
    assert state(model) == before


@pytest.mark.parametrize("recording", [True, False])
def test_autograd_records_inside_as_it_did_outside(recording: bool) -> None:
    model = Net()
    with torch.set_grad_enabled(recording), restore.evaluating(model):
        assert torch.is_grad_enabled() is recording
    with torch.inference_mode(), restore.evaluating(model):
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()


def test_shifted_weights_come_back_to_the_bit_in_the_same_storage() -> None:
    model = Net()
    before = state(model)
    with restore.shiftable(model) as weights:
        assert weights.names == ["first.weight", "first.bias", "norm.weight", "norm.bias"]
        weights.shift(torch.full_like(w, 0.1) for w in weights.clean)
        assert torch.equal(model.first.weight, weights.clean[0] + 0.1)
        weights.shift(None)
        assert torch.equal(model.first.weight, weights.clean[0])
        weights.shift(torch.full_like(w, 1e9) for w in weights.clean)
    assert state(model) == before


def test_a_frozen_model_cannot_be_shifted() -> None:
    shiftable = restore.shiftable(Net().requires_grad_(False))
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        shiftable.__enter__()
