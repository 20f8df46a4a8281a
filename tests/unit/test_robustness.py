"""Robustness of a run: the same numbers whatever the workers, the right ones against a loop written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from samovar.attacks import pgd
from samovar.config import MeasureConfig
from samovar.data.corruptions import CORRUPTIONS, corrupt, image_seed
from samovar.measure import robustness
from samovar.measure.attack import attack, step_of
from samovar.measure.subject import Subject, open_subject
from tests.unit.short_run import CPU, short_run

CONFIG = MeasureConfig(
    split="val", corruptions=("fog", "contrast"), severities=(1, 4), corruption_images=50, attack_images=60, pictures=4
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    run = short_run(tmp_path_factory.mktemp("runs"))
    return open_subject(str(run.path), CONFIG, CPU)


def test_corruption_accuracy_is_that_of_each_image_corrupted_by_hand(subject, tmp_path):
    records = list(robustness.robustness(subject, CONFIG, tmp_path))
    few = next(iter(subject.batches.few(50, 0)))
    by_hand = {}
    for name in CONFIG.corruptions:
        for severity in CONFIG.severities:
            right = 0
            for number, (image, label) in enumerate(zip(few.images, few.labels, strict=True)):
                pixels = (image[0] * 255).round().to(torch.uint8).numpy()
                made = torch.from_numpy(corrupt(pixels, name, severity=severity, seed=image_seed(0, number)))
                with torch.no_grad():
                    right += int(subject.model(made[None, None].float() / 255).argmax() == label)
            by_hand[name, severity] = right / 50
    found = {
        (r.where["corruption"], r.where["severity"]): r.value for r in records if "severity" in r.where and r.n == 50
    }
    assert found == by_hand
    mean = records[0]
    assert mean.name == "robustness/mean_corruption_accuracy"
    assert mean.value == pytest.approx(np.mean(list(by_hand.values())))
    assert mean.settings["corruption_names"] == ["fog", "contrast"]
    assert not any("ImageNet-C" in str(r) for r in records)
    kept = np.load(tmp_path / mean.arrays.removeprefix("arrays/"))
    places = zip(kept["outcome_corruptions"].tolist(), kept["outcome_severities"].tolist(), strict=True)
    assert dict(zip(places, kept["outcomes"].mean(1).tolist(), strict=True)) == pytest.approx(by_hand)
    assert kept["outcome_labels"].tolist() == few.labels.tolist()
    with torch.no_grad():
        assert kept["outcome_clean"].tolist() == (subject.model(few.images).argmax(1) == few.labels).tolist()


def test_chunks_and_workers_do_not_change_a_bit(subject, tmp_path, monkeypatch):
    wanted = [r.value for r in robustness.robustness(subject, CONFIG, tmp_path)]
    monkeypatch.setattr(robustness, "CHUNK", 16)
    monkeypatch.setattr(robustness, "PER_TASK", 7)
    few = replace(subject, batches=replace(subject.batches, batch_size=10))
    assert [r.value for r in robustness.robustness(few, CONFIG, tmp_path)] == wanted
    two = replace(few, batches=replace(few.batches, config=replace(few.batches.config, workers=2)))
    assert [r.value for r in robustness.robustness(two, CONFIG, tmp_path)] == wanted


def test_all_nineteen_at_five_severities_are_the_default(subject, tmp_path):
    config = MeasureConfig(split="val", corruption_images=10)
    records = list(robustness.robustness(subject, config, tmp_path))
    assert len(records) == 19 * 5 + 1
    assert {r.where["corruption"] for r in records[1:]} == set(CORRUPTIONS)
    strip = np.load(tmp_path / records[0].arrays.removeprefix("arrays/"))
    assert strip["images"].shape == (20, 4, 8, 8, 3)
    assert strip["predicted"].shape == (20, 4)


def test_pgd_accuracy_is_that_of_the_attacked_images_and_falls_with_the_radius(subject, tmp_path):
    config = replace(CONFIG, attack_eps=0.1)
    records = list(attack(subject, config, tmp_path))
    (main,) = (r for r in records if r.name == "robustness/pgd_accuracy")
    batch = next(iter(subject.batches.few(60, 0)))
    moved = pgd(
        subject.model, batch.images, batch.labels, eps=0.1, step_size=0.1 / 8, num_steps=10,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with torch.no_grad():
        right = subject.model(moved).argmax(1) == batch.labels
    assert main.value == right.double().mean().item()
    assert main.n == 60
    assert main.interval[0] < main.value < main.interval[1]
    curve = [r.value for r in sorted(records, key=lambda r: r.where["eps"])]
    assert curve == sorted(curve, reverse=True)
    assert curve[0] > curve[-1]
    strip = np.load(tmp_path / main.arrays.removeprefix("arrays/"))
    changed = np.abs(strip["images"][1].astype(int) - strip["images"][0].astype(int)).max()
    assert 20 <= changed <= 26  # 0.1 of 255, and rounding


def test_the_papers_step_is_an_eighth_of_the_radius_and_few_steps_are_longer():
    assert step_of(2 / 255, 10) == pytest.approx(0.25 / 255)
    assert step_of(1.0, 40) == 1 / 8
    assert step_of(1.0, 2) * 2 >= 1


def test_an_attack_of_radius_zero_is_the_clean_accuracy(subject, tmp_path):
    (only,) = attack(subject, replace(CONFIG, attack_eps=0.0), tmp_path)
    assert only.name == "robustness/pgd_accuracy"
    batch = next(iter(subject.batches.few(60, 0)))
    with torch.no_grad():
        assert only.value == (subject.model(batch.images).argmax(1) == batch.labels).double().mean().item()


def test_asking_twice_does_not_count_twice(subject, tmp_path):
    once = [r.value for r in robustness.robustness(subject, CONFIG, tmp_path)]
    doubled = replace(CONFIG, corruptions=("contrast", "fog", "fog"), severities=(4, 1, 1))
    assert [r.value for r in robustness.robustness(subject, doubled, tmp_path)] == once


def test_logits_that_are_not_finite_are_refused_not_counted(subject, tmp_path):
    broken = replace(subject, model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    with torch.no_grad():
        broken.model[1].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits are not finite"):
        list(robustness.robustness(broken, CONFIG, tmp_path))
    with pytest.raises(ValueError, match="logits are not finite"):
        list(attack(broken, CONFIG, tmp_path))
