"""Claims about the losses, against torch's and against closed forms in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from samovar.config import Config, ModelConfig
from samovar.data.loader import Batch
from samovar.models.factory import create
from samovar.objectives import make_objective, sigmoid_cross_entropy, softmax_cross_entropy


@pytest.fixture
def logits():
    return 3 * torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    return torch.tensor([0, 6, 3, 3, 1])


def shares(seed=1):
    return torch.rand(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(1)


def smoothed(labels, smoothing):
    return F.one_hot(labels, 7).double() * (1 - smoothing) + smoothing / 7


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_loss_is_its_closed_form(logits, labels, smoothing):
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    expected = -(smoothed(labels, smoothing) * log_p).sum() / 5
    assert softmax_cross_entropy(logits, labels, smoothing).item() == pytest.approx(expected.item(), rel=1e-12)
    assert softmax_cross_entropy(logits, labels).item() == F.cross_entropy(logits, labels).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sigmoid_loss_is_its_closed_form(logits, labels, smoothing):
    t, p = smoothed(labels, smoothing), 1 / (1 + (-logits).exp())
    expected = -(t * p.log() + (1 - t) * (1 - p).log()).sum() / 5
    assert sigmoid_cross_entropy(logits, labels, smoothing).item() == pytest.approx(expected.item(), rel=1e-12)


def test_sigmoid_loss_sums_over_classes(logits, labels):
    mean = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 7).double())
    assert sigmoid_cross_entropy(logits, labels).item() == pytest.approx(7 * mean.item(), rel=1e-12)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_are_shares_of_one(logits, labels, loss, smoothing):
    one_hot = F.one_hot(labels, 7).double()
    assert loss(logits, labels, smoothing).item() == pytest.approx(loss(logits, one_hot, smoothing).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_the_loss_of_mixed_targets_is_the_mix_of_losses(logits, loss):
    mixed = loss(logits, 0.3 * shares(1) + 0.7 * shares(2))
    assert mixed.item() == pytest.approx((0.3 * loss(logits, shares(1)) + 0.7 * loss(logits, shares(2))).item())


def test_at_initialisation_the_papers_sigmoid_loss_is_about_ten():
    config = ModelConfig(name="vit-digits", head_bias=-10.0)
    model = create(config, num_classes=1000, image_size=8, channels=1)
    batch = Batch(torch.rand(4, 1, 8, 8), torch.arange(4))
    value = make_objective(Config(loss="sigmoid"), 1000)(model, batch).value.item()
    expected = 999 * math.log1p(math.exp(-10)) + math.log1p(math.exp(10))
    assert value == pytest.approx(expected, rel=1e-6)  # float32
    assert value == pytest.approx(10.05, abs=0.01)


def test_at_initialisation_the_softmax_loss_is_log_k():
    model = create(ModelConfig(name="mixer-digits"), num_classes=10, image_size=8, channels=1)
    value = make_objective(Config(), 10)(model, Batch(torch.rand(4, 1, 8, 8), torch.arange(4))).value
    assert value.item() == pytest.approx(math.log(10), rel=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_objective_takes_shares_before_labels_and_smooths(logits, labels, loss):
    config = Config(loss=loss, label_smoothing=0.2)
    criterion = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}[loss]
    model = nn.Identity()
    hard = make_objective(config, 7)(model, Batch(logits, labels))
    soft = make_objective(config, 7)(model, Batch(logits, labels, shares()))
    assert torch.equal(hard.logits, logits)
    assert torch.equal(hard.value, criterion(logits, labels, 0.2))
    assert torch.equal(soft.value, criterion(logits, shares(), 0.2))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("soft", [False, True])
def test_under_autocast_the_loss_is_of_float32(loss, soft):
    model = nn.Linear(7, 7)
    targets = shares().float() if soft else None
    batch = Batch(torch.randn(5, 7), torch.tensor([0, 1, 2, 3, 4]), targets)
    with torch.autocast("cpu", torch.bfloat16):
        value, logits = make_objective(Config(loss=loss), 7)(model, batch)
    assert (value.dtype, logits.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(value, make_objective(Config(loss=loss), 7)(lambda images: logits.float(), batch).value)


def test_logits_that_are_not_of_the_datas_classes_are_refused(labels):
    with pytest.raises(ValueError, match=r"logits of shape \[5, 7\] and the data has 9 classes; .*\[batch, 9\]"):
        make_objective(Config(), 9)(nn.Identity(), Batch(torch.zeros(5, 7), labels))
