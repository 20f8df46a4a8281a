import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from samovar.config import DataConfig, MeasureConfig
from samovar.data.splits import Arrays
from samovar.data.testsets import EXTRA, MAIN, corrupted, imagenet
from samovar.measure import testset as published
from samovar.measure.accuracy import wilson
from samovar.measure.subject import Batches, Subject
from samovar.runs.records import from_json, to_json
from samovar.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)
FOUR = {f"n{i:08}": "" for i in range(4)}
STEP = 8
"""Levels of colour from a class to the next."""


def picture(guess: int, kind: str = "PNG", size: int = 8) -> bytes:
    """An image that `Seer` takes for class `guess`."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (guess // 32 * STEP, guess % 32 * STEP, 0)).save(file, kind)
    return file.getvalue()


class Seer(nn.Module):
    """Reads a class in the mean colour; its second guess is the class after."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.seen = num_classes, 0

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        self.seen += len(images)
        levels = (images.mean((2, 3)) * 255 / STEP).round().long()
        guess = levels[:, 0] * 32 + levels[:, 1]
        logits = torch.zeros(len(images), self.num_classes)
        logits.scatter_(1, ((guess + 1) % self.num_classes)[:, None], 1.0)
        return logits.scatter_(1, guess[:, None], 2.0)


def subject(classes, *, size: int = 8, channels: int = 3, max_bad_share: float = 0.0) -> Subject:
    split = Arrays(np.zeros(1, np.int64), np.zeros((1, channels, size, size), np.uint8))
    batches = Batches(split, DataConfig(image_size=size, workers=0, max_bad_share=max_bad_share), 64, CPU.device)
    return Subject("seer", Seer(len(classes)), batches, {}, {"split": "val", "step": 7}, tuple(classes), CPU)


def score(of: Subject, text: str, **settings):
    records = list(published.testset(of, MeasureConfig(testset=text, **settings), Path()))
    assert all(from_json(to_json(record)) == record for record in records)
    return records


def put(folder: Path, guesses, kind: str = "PNG") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, guess in enumerate(guesses):
        (folder / f"{i}.{kind}").write_bytes(picture(guess, kind))


# --- sets of two hundred classes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def art(tmp_path_factory) -> Path:
    """An ImageNet-R: the first 50 classes are read rightly, the next 30 as the class before, the others as one of R."""
    path = tmp_path_factory.mktemp("r")
    places = [index for index, sets in enumerate(imagenet.wnids().values()) if "R" in sets]
    wnids = list(imagenet.wnids())
    outside = [place for place in places[50:] if place - 1 not in places][:30]
    for place in places:
        guess = place if place in places[:50] else place - 1 if place in outside else places[0]
        put(path / wnids[place], [guess])
    return path


def test_r_is_scored_plain_and_masked_in_records_that_cannot_be_mixed_up(art):
    of = subject(imagenet.wnids())
    plain, masked = score(of, f"imagenet-r:{art}")
    assert plain.name == masked.name == "testset/accuracy"
    assert (plain.settings["testset"], plain.settings["scoring"]) == ("ImageNet-R", "1000 classes")
    assert (masked.settings["testset"], masked.settings["scoring"]) == ("ImageNet-R", "200 classes")
    assert plain.where == {"split": "ImageNet-R", "scoring": "1000 classes"}
    assert masked.where == {"split": "ImageNet-R", "scoring": "200 classes"}
    assert plain.value == 50 / 200
    assert masked.value == 80 / 200  # of 30 the first guess is no class of R, and the second is right
    assert masked.interval == wilson(80, 200)
    assert masked.stderr == pytest.approx(math.sqrt(0.4 * 0.6 / 200))
    assert (masked.n, masked.settings["testset_images"], masked.settings["published_images"]) == (200, 200, 30_000)
    assert of.model.seen == 200  # once for both


def test_masking_is_the_largest_of_the_columns_that_are_kept():
    generator = torch.Generator().manual_seed(0)
    logits, allowed = torch.randn(500, 20, generator=generator), torch.tensor([1, 4, 5, 11, 19])
    labels = allowed[torch.arange(500) % 5]
    hidden = torch.full_like(logits, -math.inf)
    hidden[:, allowed] = logits[:, allowed]
    assert torch.equal(published.masked(allowed, logits, labels), hidden.argmax(1) == labels)


# --- sets of all classes ---------------------------------------------------------------------------------------------


@pytest.fixture
def four_classes(monkeypatch):
    monkeypatch.setattr(imagenet, "wnids", lambda: FOUR)


def test_v2_is_scored_by_the_number_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "wnids", lambda: {f"n{i:08}": "" for i in range(12)})
    for k in range(12):
        put(tmp_path / str(k), [k, k, 0])
    (record,) = score(subject(imagenet.wnids()), f"imagenet-v2:{tmp_path}")
    assert record.value == 25 / 36
    assert record.where == {"split": "ImageNet-V2"}
    assert record.settings["scoring"] == "12 classes"


def test_photos_are_framed_as_in_every_evaluation(tmp_path, four_classes):
    for k, wnid in enumerate(FOUR):
        (tmp_path / wnid).mkdir()
        (tmp_path / wnid / "large.png").write_bytes(picture(k, size=40))
    (record,) = score(subject(FOUR), f"imagenet-sketch:{tmp_path}")
    assert (record.value, record.n) == (1.0, 4)


def test_real_is_scored_by_the_number_of_the_image_and_without_those_that_have_no_label(tmp_path, four_classes):
    guesses = {1: 0, 2: 3, 3: 2, 4: 1, 5: 1}
    for number, guess in guesses.items():
        folder = tmp_path / "val" / list(FOUR)[-number % 4]  # sorted by folder they come in another order
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(picture(guess, "JPEG"))
    (tmp_path / "real.json").write_text(json.dumps([[0], [1, 3], [], [2], [1]]))
    of = subject(FOUR)
    (record,) = score(of, f"imagenet-real:{tmp_path}/val::{tmp_path}/real.json")
    assert (record.value, record.n) == (3 / 4, 4)
    assert record.settings["scoring"] == "any of the labels; 1 images without labels left out"
    assert record.where == {"split": "ImageNet ReaL"}
    assert of.model.seen == 4


def test_an_unreadable_image_does_not_shift_the_labels_of_real(tmp_path, four_classes):
    for number in range(1, 21):
        (tmp_path / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(picture(number % 4, "JPEG"))
    (tmp_path / "ILSVRC2012_val_00000003.JPEG").write_bytes(b"")
    (tmp_path / "real.json").write_text(json.dumps([[number % 4] for number in range(1, 21)]))
    text = f"imagenet-real:{tmp_path}::{tmp_path}/real.json"
    with pytest.raises(ValueError, match="1 of 20 val images cannot be read"):
        score(subject(FOUR), text)
    (record,) = score(subject(FOUR, max_bad_share=0.1), text)
    assert (record.value, record.n, record.settings["testset_images"]) == (1.0, 19, 20)


# --- corruption sets -------------------------------------------------------------------------------------------------


def imagenet_c(path: Path, corruptions) -> str:
    """Severity s reads s - 1 of the four classes wrongly, but in fog all are read rightly."""
    for level in range(1, 6):
        for k, wnid in enumerate(FOUR):
            put(path / f"trees/{level}" / wnid, [(k + 1) % 4 if k < level - 1 else k], "JPEG")
    for name in corruptions:
        (path / "c" / name).mkdir(parents=True)
        for level in range(1, 6):
            (path / "c" / name / str(level)).symlink_to(path / "trees" / ("1" if name == "fog" else str(level)))
    return f"imagenet-c:{path}/c"


def test_imagenet_c_is_counted_by_hand(tmp_path, four_classes):
    records = score(subject(FOUR), imagenet_c(tmp_path, MAIN))
    by_name = {name: [r for r in records if r.name == f"testset/{name}"] for name in
               ("corruption_accuracy", "mean_corruption_accuracy", "mce")}  # fmt: skip
    values = {tuple(r.where.values())[1:]: r.value for r in by_name["corruption_accuracy"]}
    assert len(values) == len(records) - 2 == 75
    assert [values["snow", level] for level in range(1, 6)] == [1, 0.75, 0.5, 0.25, 0]
    assert values["fog", 5] == 1
    (mean,) = by_name["mean_corruption_accuracy"]
    assert mean.value == pytest.approx((14 * 0.5 + 1) / 15)
    assert mean.settings["average"] == "15 corruptions x 5 severities"
    assert mean.settings["missing"] == list(EXTRA)
    assert (mean.n, mean.where) == (4, {"split": "ImageNet-C"})
    (mce,) = by_name["mce"]
    inverses = sum(1 / error for name, error in published.ALEXNET.items() if name != "fog")
    assert mce.value == pytest.approx(0.5 * inverses / 15)


def test_the_mean_is_over_nineteen_where_they_are_there_and_the_mce_over_fifteen(tmp_path, four_classes):
    *_, mean, mce = score(subject(FOUR), imagenet_c(tmp_path, MAIN + EXTRA))
    assert mean.value == pytest.approx((18 * 0.5 + 1) / 19)
    assert mean.settings["average"] == "19 corruptions x 5 severities"
    assert (mce.name, mce.settings["average"], len(mce.settings["corruption_names"])) == (
        "testset/mce", "15 corruptions", 15,
    )  # fmt: skip


def test_a_part_that_was_asked_for_says_so_and_has_no_mce(tmp_path, four_classes):
    text = imagenet_c(tmp_path, MAIN)
    records = score(subject(FOUR), text, corruptions=("snow", "fog"), severities=(1, 3))
    assert [r.name for r in records] == ["testset/corruption_accuracy"] * 4 + ["testset/mean_corruption_accuracy"]
    assert records[-1].value == (1 + 0.5 + 1 + 1) / 4
    assert records[-1].settings["average"] == "2 corruptions x 2 severities"
    assert {"frost", "severity 2"} <= set(records[-1].settings["missing"])


def test_alexnet_has_an_error_for_each_of_the_fifteen():
    assert tuple(published.ALEXNET) == MAIN
    quoted = "88.6 89.4 92.3 82.0 82.6 78.6 79.8 86.7 82.7 81.9 56.5 85.3 64.6 71.8 60.7"
    assert " ".join(f"{100 * error:.1f}" for error in published.ALEXNET.values()) == quoted


@pytest.mark.parametrize(
    ("name", "top1", "error"),
    [
        ("brightness", 68.02, 56.64),
        ("contrast", 39.06, 71.43),
        ("defocus_blur", 38.75, 74.71),
        ("elastic_transform", 45.25, 84.75),
        ("fog", 45.83, 66.11),
        ("frost", 38.14, 74.84),
        ("gaussian_noise", 29.29, 79.77),
        ("glass_blur", 26.79, 88.61),
        ("impulse_noise", 23.81, 82.58),
    ],
)
def test_corruption_errors_are_those_others_publish_of_torchvisions_resnet50(name, top1, error):
    assert (100 - top1) / published.ALEXNET[name] == pytest.approx(error, abs=0.02)  # accuracies have two decimals


def test_cifar_c_is_counted_by_hand_and_has_no_mce(tmp_path, monkeypatch):
    monkeypatch.setattr(corrupted, "CIFAR_IMAGES", 10)
    labels = np.arange(10)
    np.save(tmp_path / "labels.npy", np.tile(labels, 5))
    images = np.zeros((5, 10, 32, 32, 3), np.uint8)
    for level in range(5):  # the first 2 x level images are read wrongly
        images[level, ..., 1] = (STEP * np.where(labels < 2 * level, (labels + 1) % 10, labels))[:, None, None]
    for name in MAIN:
        np.save(tmp_path / f"{name}.npy", images.reshape(50, 32, 32, 3))
    *single, mean = score(subject(corrupted.CIFAR10, size=32), f"cifar10-c:{tmp_path}")
    assert [r.value for r in single[:5]] == [1, 0.8, 0.6, 0.4, 0.2]
    assert len(single) == 75
    assert mean.name == "testset/mean_corruption_accuracy"
    assert mean.value == pytest.approx(0.6)
    assert mean.stderr == pytest.approx(sum(r.stderr for r in single) / 75)
    assert mean.where == {"split": "CIFAR-10-C"}


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sketch(tmp_path, four_classes) -> str:
    for k, wnid in enumerate(FOUR):
        put(tmp_path / wnid, [k])
    return f"imagenet-sketch:{tmp_path}"


def test_a_head_of_another_size_is_refused(sketch):
    with pytest.raises(ValueError, match="has 4 classes and seer has 3; give a model of the 4 classes"):
        score(subject("abc"), sketch)


@pytest.mark.parametrize("classes", [list(FOUR)[::-1], [*list(FOUR)[:3], "n12345678"]])
def test_ids_in_another_order_or_of_other_classes_are_refused(sketch, classes):
    with pytest.raises(ValueError, match="of seer is n.*, and of the set n.*; give a model of the set's classes"):
        score(subject(classes), sketch)


def test_the_record_says_whether_the_order_of_classes_is_known(sketch):
    assert score(subject(FOUR), sketch)[0].settings["class_order"] == "the set's"
    (record,) = score(subject(["tench", "goldfish", "shark", "ray"]), sketch)
    assert record.settings["class_order"] == "assumed to be the set's, sorted WordNet ids"


def test_a_model_of_grey_images_is_refused(sketch):
    with pytest.raises(ValueError, match="is in colour and seer reads grey images"):
        score(subject("abcd", channels=1), sketch)


def test_the_protocol_of_the_subject_stays(sketch):
    of = subject(FOUR)
    protocol = {"source", "split", "images", "model", "weights", "seed"}
    assert not protocol & set(score(of, sketch)[0].settings)  # else what is measured would not be found again
