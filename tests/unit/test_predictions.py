"""Predictions of networks whose logits are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from samovar.config import MeasureConfig
from samovar.data.loader import Batch
from samovar.measure.predictions import predict, predictions, to_rgb
from samovar.measure.subject import Subject, open_subject
from samovar.objectives import LOSSES
from samovar.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)


class Fixed(nn.Module):
    """Logits that are a fixed linear function of the pixels; dropout that must be off."""

    def __init__(self, scale: float = 4.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 10, generator=torch.Generator().manual_seed(3)) * scale)
        self.dropout = nn.Dropout(0.9)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(images.flatten(1) @ self.weight)


def opened(config: MeasureConfig, model: nn.Module) -> Subject:
    return replace(open_subject("vit-digits", config, CPU), model=model)


def config(**changes) -> MeasureConfig:
    return replace(MeasureConfig(split="train", images=60, batch_size=16, workers=0, pictures=5), **changes)


def every(subject: Subject) -> tuple[Tensor, Tensor]:
    batches = list(subject.batches)
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_of_each_example_is_that_of_the_objective_on_it_alone(loss):
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.rand(7, 1, 8, 8, generator=generator), torch.arange(7))
    model = Fixed().train()
    found = predict(model, batch, loss)
    assert model.training
    logits = model.eval()(batch.images).detach()
    expected = [LOSSES[loss](logits[i : i + 1], batch.labels[i : i + 1]).item() for i in range(7)]
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-5)  # float32
    shares = logits.softmax(1) if loss == "softmax" else logits.sigmoid()
    assert torch.equal(found.predicted, logits.argmax(1))
    assert torch.equal(found.probability, shares.amax(1))
    assert torch.equal(found.probability_true, shares[torch.arange(7), batch.labels])


@pytest.mark.parametrize("split", ["train", "val"])
def test_accuracy_and_the_worst_mistakes_are_those_of_the_whole_split(split, tmp_path):
    settings = config(split=split)
    subject = opened(settings, Fixed())
    (record,) = predictions(subject, settings, tmp_path / "arrays")
    images, labels = every(subject)
    logits = subject.model.eval()(images).detach()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    wrong = logits.argmax(1) != labels
    accuracy = 1 - wrong.double().mean().item()
    assert (record.name, record.unit, record.n) == ("predictions/accuracy", "1", len(labels))
    assert record.value == pytest.approx(accuracy)
    assert not set(record.settings) & set(subject.settings)  # they go beside the protocol
    assert record.stderr == pytest.approx((accuracy * (1 - accuracy) / len(labels)) ** 0.5)
    with np.load(tmp_path / record.arrays, allow_pickle=False) as found:
        assert found["worst"].tolist() == [True] * 5 + [False] * 5
        expected = losses[wrong].sort(descending=True).values[:5]
        np.testing.assert_allclose(found["loss"][:5], expected, rtol=1e-6)
        rows = [int((losses == value).nonzero()[0]) for value in expected]
        assert np.array_equal(found["images"][:5], to_rgb(images[rows]))
        assert found["labels"][:5].tolist() == labels[rows].tolist()
        assert (found["predicted"][:5] != found["labels"][:5]).all()
        assert len(set(found["labels"][5:].tolist())) == 5  # evenly: five images of ten classes, all different
        assert found["images"].shape == (10, 8, 8, 3)
        assert found["classes"].tolist() == [str(i) for i in range(10)]


def test_a_network_with_few_mistakes_shows_all_it_made(tmp_path):
    settings = config(pictures=100)
    subject = opened(settings, Fixed())
    images, labels = every(subject)
    known = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    first = images[0]

    class Oracle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            right = torch.tensor([known[image.numpy().tobytes()] for image in x])
            wrong = (x == first).flatten(1).all(1)
            return nn.functional.one_hot((right + wrong) % 10, 10).float()

    (record,) = predictions(replace(subject, model=Oracle()), settings, tmp_path / "arrays")
    assert record.value == 1 - 1 / len(labels)
    with np.load(tmp_path / record.arrays) as found:
        assert found["worst"].sum() == 1
        assert len(found["worst"]) == 1 + len(labels)


def test_a_loss_that_is_not_finite_is_among_the_worst(tmp_path):
    settings = config(pictures=3)

    class Broken(Fixed):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * torch.nan

    (record,) = predictions(opened(settings, Broken()), settings, tmp_path / "arrays")
    with np.load(tmp_path / record.arrays) as found:
        assert np.isnan(found["loss"][:3]).all()


def test_another_protocol_is_another_file(tmp_path):
    names = set()
    for changes in ({}, {"split": "val"}, {"seed": 1}, {"pictures": 4}, {"loss": "sigmoid"}, {"images": 40}):
        settings = config(**changes)
        (record,) = predictions(opened(settings, Fixed()), settings, tmp_path / "arrays")
        names.add(record.arrays)
    assert len(names) == 6 == len(list((tmp_path / "arrays").glob("predictions-step0-*.npz")))
    settings = config()
    (again,) = predictions(opened(settings, Fixed()), settings, tmp_path / "arrays")
    assert again.arrays in names


def test_ranks_other_than_the_main_one_write_nothing(tmp_path):
    settings = config()
    subject = replace(opened(settings, Fixed()), runtime=replace(CPU, rank=1, world_size=2))
    list(predictions(subject, settings, tmp_path / "arrays"))
    assert not (tmp_path / "arrays").exists()


def test_labels_beyond_the_logits_are_refused():
    batch = Batch(torch.rand(2, 1, 8, 8), torch.tensor([1, 10]))
    with pytest.raises(ValueError, match=r"a label is 10 and the model gives logits of shape \[2, 10\]"):
        predict(Fixed(), batch)


def test_pictures_are_bytes_and_grey_is_repeated():
    colours = torch.tensor([0.0, 0.5, 1.2]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert to_rgb(colours)[0, 0, 0].tolist() == [0, 128, 255]
    grey = torch.tensor([[[[0.2, 1.0]]]])
    assert to_rgb(grey).tolist() == [[[[51, 51, 51], [255, 255, 255]]]]
    assert to_rgb(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)).tolist() == [[[[128, 128, 128]]]]
