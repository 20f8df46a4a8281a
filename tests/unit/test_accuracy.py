"""Accuracy, intervals and calibration against scikit-learn, scipy and hand counts."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import top_k_accuracy_score

from samovar.config import MeasureConfig
from samovar.measure.accuracy import accuracy, any_of, calibration, logits_of, top_k, wilson
from samovar.measure.subject import open_subject
from samovar.runs.records import RunDir, from_json, to_json
from tests.unit.short_run import CPU, short_run


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 10), (761, 1000), (1, 50_000)])
def test_the_wilson_interval_is_scipys(successes, n):
    theirs = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-7)  # z has seven digits


@pytest.mark.parametrize("z", [1.959964, 1.0, 2.5])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 10), (761, 1000), (1, 50_000)])
def test_the_wilson_interval_is_the_closed_form(successes, n, z):
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    assert wilson(successes, n, z) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert wilson(0, n, z)[0] == 0
    assert wilson(n, n, z)[1] == 1


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_an_impossible_share_has_no_interval(successes, n):
    with pytest.raises(ValueError, match="are no share"):
        wilson(successes, n)


def test_top_k_is_scikit_learns():
    logits = torch.randn(500, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(500) % 12
    for k in (1, 3, 5):
        theirs = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k)
        assert top_k(logits, labels, k).double().mean() == pytest.approx(theirs)


def test_of_equal_logits_the_first_class_wins_as_in_argmax():
    logits = torch.zeros(4, 4)
    labels = torch.arange(4)
    assert top_k(logits, labels).tolist() == (logits.argmax(1) == labels).tolist() == [True, False, False, False]
    assert top_k(logits, labels, 2).tolist() == [True, True, False, False]


def test_real_counts_any_of_its_labels_and_leaves_out_images_without():
    logits = torch.eye(4)
    assert any_of(logits, [[0, 3], [2], [], [3]]).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="3 lists of labels for 4 images"):
        any_of(logits, [[0], [1], [2]])
    with pytest.raises(ValueError, match="every list of labels is empty"):
        any_of(logits, [[], [], [], []])


def test_calibration_equals_a_hand_count():
    # two classes; confidences 0.6 (right), 0.6 (wrong), 0.9 (right), 0.9 (right)
    shares = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    found = calibration(shares.log(), torch.tensor([0, 1, 0, 1]), num_bins=4)
    assert found.counts.tolist() == [0, 0, 2, 2]
    assert found.accuracy[2:].tolist() == [0.5, 1.0]
    assert found.confidence[2:].tolist() == pytest.approx([0.6, 0.9])
    assert found.ece == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert np.isnan(found.accuracy[:2]).all()


def test_confidence_on_an_edge_belongs_to_the_bin_below():
    shares = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=torch.float64)
    assert calibration(shares.log(), torch.tensor([0, 0]), num_bins=4).counts.tolist() == [0, 1, 1, 0]


def test_a_calibrated_classifier_has_no_calibration_error_beyond_sampling():
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(100_000, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    labels = (torch.rand(100_000, generator=generator, dtype=torch.float64) > shares).long()
    found = calibration(torch.stack([shares, 1 - shares], 1).log(), labels)
    assert found.ece < 0.01  # some 15 bins of 7,000 images: 0.006 each at most
    wrong = calibration(torch.stack([shares, 1 - shares], 1).log() * 3, labels)
    assert wrong.ece > 0.05


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDir:
    return short_run(tmp_path_factory.mktemp("runs"))


def test_accuracy_is_what_training_recorded_and_classes_add_up_to_it(run, tmp_path):
    subject = open_subject(str(run.path), MeasureConfig(split="val", checkpoint="last"), CPU)
    records = list(accuracy(subject, MeasureConfig(split="val"), tmp_path))
    by_name = {record.name: record for record in records}
    trained = next(run.records("val/accuracy"))
    top1 = by_name["accuracy/top1"]
    assert top1.value == pytest.approx(trained.value, abs=1e-12)
    assert top1.n == trained.n
    assert by_name["accuracy/loss"].value == pytest.approx(next(run.records("val/loss")).value, rel=1e-5)  # float32
    assert by_name["accuracy/top5"].value > top1.value
    low, high = top1.interval
    assert low < top1.value < high
    of_classes = [record for record in records if record.name == "accuracy/class"]
    assert len(of_classes) == 10
    assert sum(r.value * r.n for r in of_classes) == pytest.approx(top1.value * top1.n)
    assert sum(r.n for r in of_classes) == top1.n
    arrays = np.load(tmp_path / by_name["accuracy/ece"].arrays.removeprefix("arrays/"))
    assert arrays["counts"].sum() == top1.n
    assert all(from_json(to_json(record)) == record for record in records)
    kept = np.load(tmp_path / top1.arrays.removeprefix("arrays/"))
    assert kept["labels"].shape == kept["probability"].shape == (top1.n,)
    assert (kept["labels"] == kept["predicted"]).mean() == pytest.approx(top1.value)
    assert (kept["probability"] >= kept["probability_true"]).all()
    assert kept["classes"].tolist() == list(subject.classes)


def test_the_model_runs_once_over_each_batch_and_comes_back_in_its_mode(run):
    subject = open_subject(str(run.path), MeasureConfig(split="val", batch_size=500), CPU)
    calls = []
    subject.model.train()
    subject.model.register_forward_hook(lambda *args: calls.append(1))
    logits, labels = logits_of(subject.model, subject.batches)
    assert len(calls) == len(subject.batches) == math.ceil(len(labels) / 500)
    assert subject.model.training
    assert not logits.requires_grad


def test_logits_that_are_not_finite_are_refused(run):
    subject = open_subject(str(run.path), MeasureConfig(split="val"), CPU)
    with torch.no_grad():
        next(subject.model.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="logits of 1528 of 1528 images are not finite"):
        logits_of(subject.model, subject.batches)
