"""Nearest neighbours and linear probes against direct loops and scikit-learn's own."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from samovar import config as configs
from samovar.config import MeasureConfig, ModelConfig
from samovar.data.loader import Batch
from samovar.data.sources import open_source
from samovar.data.splits import evenly, hold_out
from samovar.measure import command
from samovar.measure import features as module
from samovar.measure.features import features, fit_probe, knn_guess, linear_probe
from samovar.measure.subject import open_subject
from samovar.models.factory import create
from samovar.runs.records import RunDir, from_json, to_json
from tests.conftest import assert_refused
from tests.unit.short_run import CPU, short_run


def clouds(n: int, seed: int, num_classes: int = 5, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping Gaussian clouds about fixed centres, so that neighbours disagree."""
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % num_classes
    return centres[labels] + 1.5 * torch.randn(n, width, generator=generator), labels


def digits() -> tuple[torch.Tensor, ...]:
    found = load_digits()
    rows, labels = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target)
    return rows[:1000], labels[:1000], rows[1000:], labels[1000:]


# --- features --------------------------------------------------------------------------------------------------------


def test_features_are_what_the_head_sees_and_the_model_comes_back_as_it_was():
    model = create(ModelConfig("resnet-digits-bn", init="library"), num_classes=10, image_size=8, channels=1).train()
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, theirs = features(model, Batch(images, labels).split(8))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())  # BatchNorm's as well
    assert torch.equal(theirs, labels)
    assert found.dtype == torch.float32
    with torch.no_grad():
        logits = model.eval().body.get_classifier()(found)
        assert torch.allclose(logits, model(images), atol=1e-5)  # float32, batches of another size


def test_features_that_are_not_finite_are_refused():
    model = create(ModelConfig("vit-digits"), num_classes=10, image_size=8, channels=1)
    batch = Batch(torch.rand(3, 1, 8, 8), torch.arange(3))
    with torch.no_grad():
        model.body.cls_token.fill_(math.nan)
    with pytest.raises(ValueError, match="features of 3 of 3 images are not finite"):
        features(model, [batch])
    with pytest.raises(ValueError, match="there are no images"):
        features(model, [])


# --- nearest neighbours ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (500, 0.3)])
def test_neighbours_vote_as_in_a_direct_loop(k, temperature):
    train, labels = clouds(60, 0)
    test, _ = clouds(40, 1)
    expected = []
    for row in test.double():
        cosines = [float(row @ other / row.norm() / other.norm()) for other in train.double()]
        votes = [0.0] * 5
        for near in sorted(range(60), key=lambda i: -cosines[i])[:k]:
            votes[int(labels[near])] += math.exp(cosines[near] / temperature)
        expected.append(max(range(5), key=votes.__getitem__))
    assert knn_guess(train, labels, test, k=k, temperature=temperature).tolist() == expected


def test_neighbours_are_scikit_learns():
    train, labels, test, _ = digits()
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    theirs.fit(train.double().numpy(), labels.numpy())
    guess = knn_guess(train.double(), labels, test.double())
    assert torch.equal(guess, torch.from_numpy(theirs.predict(test.double().numpy())))


def test_the_pieces_the_work_is_cut_into_do_not_show(monkeypatch):
    train, labels = clouds(60, 0)
    test, _ = clouds(41, 1)
    whole = knn_guess(train, labels, test)
    monkeypatch.setattr(module, "_SIMILARITIES", 60 * 7)
    assert torch.equal(knn_guess(train, labels, test), whole)


def test_a_small_temperature_is_the_nearest_neighbour_and_does_not_overflow():
    train, labels = clouds(60, 0)
    test, _ = clouds(40, 1)
    assert torch.equal(knn_guess(train, labels, test, temperature=1e-6), knn_guess(train, labels, test, k=1))


@pytest.mark.parametrize("bad", [{"k": 0}, {"temperature": 0.0}])
def test_a_vote_that_cannot_be_is_refused(bad):
    train, labels = clouds(10, 0)
    with pytest.raises(ValueError, match="give k of 1 or more"):
        knn_guess(train, labels, train, **bad)
    with pytest.raises(ValueError, match="have shapes"):
        knn_guess(train, labels[:3], train)


# --- the linear probe ------------------------------------------------------------------------------------------------


def test_the_probe_is_scikit_learns_regression_at_the_strength_it_chose():
    train, labels, test, _ = digits()
    probe = fit_probe(train, labels)
    mean, std = train.double().mean(0), train.double().std(0, correction=0)
    std[std == 0] = 1
    theirs = LogisticRegression(C=probe.strength, max_iter=1000).fit((train - mean) / std, labels)
    assert probe.converged
    assert torch.equal(probe.guess(test), torch.from_numpy(theirs.predict((test - mean) / std)))
    assert torch.equal(linear_probe(train, labels, test), probe.guess(test))


def test_the_probe_chooses_the_strength_that_is_best_on_a_held_out_tenth():
    train, labels, _, _ = digits()
    train = train[:, train.std(0) > 0].double()
    kept, held = hold_out(labels.numpy(), 0.1, seed=0)
    rows = ((train - train.mean(0)) / train.std(0, correction=0)).numpy()
    scores = {}
    for strength in (1e-4, 0.01, 1.0, 100.0):
        theirs = LogisticRegression(C=strength, max_iter=1000).fit(rows[kept], labels[kept])
        scores[strength] = theirs.score(rows[held], labels[held])
    assert sorted(scores.values())[-1] > sorted(scores.values())[-2]
    assert fit_probe(train, labels, strengths=list(scores)[::-1]).strength == max(scores, key=scores.__getitem__)


def test_a_probe_cut_short_says_so():
    train, labels, _, _ = digits()
    assert not fit_probe(train, labels, strengths=[10.0], max_steps=2).converged


def test_classes_of_one_image_each_leave_the_middle_strength():
    train, labels = clouds(5, 0)
    assert fit_probe(train, labels, strengths=[10.0, 0.1, 1.0]).strength == 1.0
    with pytest.raises(ValueError, match="two classes or more"):
        fit_probe(train, torch.zeros(5, dtype=torch.int64))


# --- measured --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDir:
    return short_run(tmp_path_factory.mktemp("runs"))


def opened(run: RunDir, **settings):
    config = MeasureConfig(split="val", workers=0, **settings)
    return open_subject(str(run.path), config, CPU), config


def test_the_records_are_what_the_functions_find_on_the_training_images(run, tmp_path):
    subject, config = opened(run, probe_images=200, knn_k=5)
    source = open_source(configs.load(run.config_path).data)
    few = source.train.take(evenly(source.train.labels, 200, 0))
    batches = [
        Batch(torch.from_numpy(split.images) / 255, torch.from_numpy(split.labels)) for split in (few, source.val)
    ]
    (train, labels), (test, truth) = (features(subject.model, [batch]) for batch in batches)
    assert np.bincount(labels).tolist() == [20] * 10
    (near,), (line,) = (list(command.measure(name, subject, config, tmp_path)) for name in ("knn", "linear"))
    # images come in other batches here, so features differ in the last bits, and one image may change sides
    expected = float((knn_guess(train, labels, test, k=5) == truth).double().mean())
    assert near.value == pytest.approx(expected, abs=1 / len(truth))
    assert near.settings["k"] == 5
    assert near.settings["temperature"] == 0.07
    probe = fit_probe(train, labels)
    assert line.value == pytest.approx(float((probe.guess(test) == truth).double().mean()), abs=1 / len(truth))
    assert line.settings["C"] == probe.strength
    assert line.converged
    for record in (near, line):
        low, high = record.interval
        assert low < record.value < high
        assert record.n == record.settings["images"] == len(truth)
        assert record.settings["probe_images"] == 200
        assert record.where == {"split": "val", "step": 60}
        assert from_json(to_json(record)) == record


def test_all_training_images_are_learned_from_when_asked(run, tmp_path):
    for count in (0, 10_000):
        subject, config = opened(run, probe_images=count)
        (record,) = command.measure("knn", subject, config, tmp_path)
        assert record.settings["probe_images"] == len(subject.train.split)


def test_training_images_are_not_told_by_themselves(run, tmp_path, capsys):
    assert_refused(f"measure {run.path} knn --split train", "leave --split out", capsys)
    assert_refused(f"measure {run.path} knn --knn-temperature 0", "give a temperature above 0", capsys)
    assert_refused(f"measure {run.path} linear --probe-images 1", "features of two classes or more", capsys)


def test_at_init_a_run_is_measured_with_the_weights_it_started_from(run, tmp_path):
    config = configs.load(run.config_path)
    child = RunDir.create(tmp_path, "child")
    configs.save(replace(config, init=str(run.path)), child.config_path)
    parent, config = opened(run, probe_images=200)
    started, _ = opened(child, probe_images=200, checkpoint="init")
    found = [next(command.measure("knn", subject, config, tmp_path)) for subject in (parent, started)]
    assert found[0].value == found[1].value
    assert found[1].settings["weights"] == "initialisation"
    assert found[1].settings["init"] == f"starts from step-00000060 of {run.path}; the classifier is new"
    assert found[1].where["step"] == 0
    assert "init" not in found[0].settings
