"""Claims about the supervised contrastive loss, against its formula written as two loops, and about what it trains."""

import math

import pytest
import timm.optim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from samovar.config import Config, ContrastiveConfig, ModelConfig
from samovar.data.loader import Batch
from samovar.models.factory import Classifier, create
from samovar.objectives import make_objective
from samovar.objectives.contrastive import Projected, num_features, supcon_loss
from samovar.sam import sam_backward


def by_loops(embeddings, labels, temperature) -> float:
    """Equation 2 of arXiv:2004.11362, read aloud."""
    z = [row / row.norm() for row in embeddings]
    losses = []
    for i, anchor in enumerate(z):
        positives = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        if not positives:
            continue
        denominator = sum(math.exp(anchor @ z[a] / temperature) for a in range(len(z)) if a != i)
        logs = [math.log(math.exp(anchor @ z[p] / temperature) / denominator) for p in positives]
        losses.append(-sum(logs) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


def rows(n, seed=0, size=6):
    return torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


labels_of = st.lists(st.integers(0, 4), min_size=1, max_size=14)


@settings(max_examples=40, deadline=None)
@given(labels_of, st.integers(0, 100), st.sampled_from([0.07, 0.1, 0.5, 2.0]))
def test_the_loss_is_its_formula(labels, seed, temperature):
    # classes with a single row come up often among five classes
    labels, embeddings = torch.tensor(labels), rows(len(labels), seed)
    value = supcon_loss(embeddings, labels, temperature).item()
    assert value == pytest.approx(by_loops(embeddings, labels, temperature), rel=1e-12, abs=1e-10)


@given(labels_of, st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_the_loss_of_all_is_the_mean_over_equal_parts_of_the_anchors(labels, parts):
    labels = torch.tensor(labels * parts)
    embeddings, size = rows(len(labels)), len(labels) // parts
    shares = [supcon_loss(embeddings, labels, 0.1, slice(k * size, (k + 1) * size)) for k in range(parts)]
    assert sum(shares).item() / parts == pytest.approx(supcon_loss(embeddings, labels, 0.1).item(), rel=1e-12)


def test_the_gradient_is_that_of_finite_differences():
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    embeddings = rows(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: supcon_loss(z, labels, 0.5), embeddings)
    assert torch.autograd.gradgradcheck(lambda z: supcon_loss(z, labels, 0.5), embeddings)


def test_lengths_and_the_order_of_rows_do_not_matter():
    labels, order = torch.tensor([0, 1, 0, 2, 1, 0]), torch.tensor([3, 1, 5, 0, 2, 4])
    value = supcon_loss(rows(6), labels, 0.1).item()
    assert supcon_loss(rows(6) * torch.arange(1, 7)[:, None], labels, 0.1).item() == pytest.approx(value, rel=1e-12)
    assert supcon_loss(rows(6)[order], labels[order], 0.1).item() == pytest.approx(value, rel=1e-12)


def test_of_rows_that_are_all_alike_it_is_the_logarithm_of_their_number():
    # no row is nearer than another, whatever the classes
    embeddings = torch.ones(8, 3, requires_grad=True)
    loss = supcon_loss(embeddings, torch.arange(8) % 2, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)
    assert torch.isfinite(embeddings.grad).all()


def test_at_a_tiny_temperature_loss_and_gradient_are_finite():
    embeddings = rows(8).float().requires_grad_()
    loss = supcon_loss(embeddings, torch.arange(8) % 3, 1e-6)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_without_a_positive_the_loss_is_0_and_so_is_its_gradient(labels):
    embeddings = rows(len(labels)).requires_grad_()
    loss = supcon_loss(embeddings, torch.tensor(labels), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_under_autocast_the_cosines_are_of_float32():
    embeddings, labels = rows(32).bfloat16(), torch.arange(32) % 4
    with torch.autocast("cpu", torch.bfloat16):
        loss = supcon_loss(embeddings, labels, 0.01)
    assert loss.dtype == torch.float32
    assert loss.item() == supcon_loss(embeddings.float(), labels, 0.01).item()


# --- the network -----------------------------------------------------------------------------------------------------


def encoder(name="vit-digits", **changes) -> Classifier:
    torch.manual_seed(0)
    return create(ModelConfig(name=name, **changes), num_classes=10, image_size=32, channels=1)


def test_the_objective_compares_the_projected_features_of_a_batch():
    network = Projected(encoder(), 64, 32, 16)
    batch = Batch(torch.rand(6, 1, 32, 32), torch.tensor([0, 0, 1, 1, 2, 2]))
    config = Config(loss="supcon", contrastive=ContrastiveConfig(temperature=0.3))
    value, embeddings = make_objective(config, 10)(network, batch)
    first, _, last = network.projection
    features = network.encoder.features(batch.images)
    expected = (features @ first.weight.T + first.bias).relu() @ last.weight.T + last.bias
    torch.testing.assert_close(embeddings, expected)
    assert value.item() == pytest.approx(by_loops(expected.detach().double(), batch.labels, 0.3), rel=1e-5)  # float32


@pytest.mark.parametrize(("name", "width"), [("vit-digits", 64), ("mixer-digits", 64), ("test_resnet", 96)])
def test_the_number_of_features_is_found_without_a_trace(name, width):
    model = encoder(name, dropout=0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    assert num_features(model, torch.rand(1, 1, 32, 32, generator=torch.Generator())) == width
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_batch_norm_frozen_in_eval_stays_frozen_when_features_are_counted():
    model = encoder("test_resnet")
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    num_features(model, torch.rand(1, 1, 32, 32))
    assert [module for module in model.modules() if not module.training] == [frozen]


class Plain(nn.Module):
    def forward(self, images):
        return images.flatten(1)


def test_a_network_without_features_is_refused_in_a_line():
    with pytest.raises(ValueError, match=r"^Plain has no forward_features and forward_head[^\n]*$"):
        num_features(Classifier(Plain(), (0.5,), (0.5,)), torch.rand(1, 1, 4, 4))


class Maps(Plain):
    def forward_features(self, images):
        return images

    def forward_head(self, images, pre_logits=False):
        return images


def test_features_that_are_no_vector_are_refused_in_a_line():
    with pytest.raises(ValueError, match=r"^Maps has features of shape \[1, 1, 4, 4\] before its classifier; a vector"):
        num_features(Classifier(Maps(), (0.5,), (0.5,)), torch.rand(1, 1, 4, 4))


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_a_step_of_lamb_passes_over_a_classifier_without_a_gradient(rho):
    network = Projected(encoder(), 64, 32, 16)
    optimizer = timm.optim.create_optimizer_v2(network.parameters(), "lamb", lr=0.01, max_grad_norm=None)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    batch = Batch(torch.rand(6, 1, 32, 32), torch.tensor([0, 0, 1, 1, 2, 2]))
    objective = make_objective(Config(loss="supcon"), 10)
    sam_backward(lambda model: objective(model, batch).value, network, rho=rho)
    optimizer.step()
    moved = {name for name, value in network.named_parameters() if not torch.equal(before[name], value)}
    assert before.keys() - moved == {"encoder.body.head.weight", "encoder.body.head.bias"}
