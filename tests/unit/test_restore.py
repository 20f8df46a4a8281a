"""`samovar.restore`: what a lent model and the random states were before, they are again to the bit."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from samovar import restore


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
