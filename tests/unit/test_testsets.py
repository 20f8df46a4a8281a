import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samovar.data import testsets
from samovar.data.splits import Encoded
from samovar.data.testsets import EXTRA, MAIN, imagenet, open_testset
from samovar.data.testsets import corrupted as corruption_sets
from tests.conftest import SHARED

LABELS = SHARED / "data/labels"
needs_labels = pytest.mark.skipif(not LABELS.is_dir(), reason="the label files are not beside the repository")
FOUR = {"n00000010": "", "n00000020": "R", "n00000030": "A R", "n00000040": ""}


@pytest.fixture
def four_classes(monkeypatch):
    """An ImageNet of four classes."""
    monkeypatch.setattr(imagenet, "wnids", lambda: FOUR)


def picture(value: int = 0, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, kind)
    return file.getvalue()


def tree(path: Path, folders, names=("a.JPEG",)) -> Path:
    for folder in folders:
        (path / folder).mkdir(parents=True)
        for name in names:
            (path / folder / name).write_bytes(picture())
    return path


def corrupted(path: Path, corruptions=MAIN, severities=(1, 2, 3, 4, 5), classes=tuple(FOUR), names=("a.JPEG",)) -> Path:
    """Every condition a link to one tree; replace a link to make one differ."""
    tree(path / "images", classes, names)
    for corruption in corruptions:
        (path / "set" / corruption).mkdir(parents=True)
        for level in severities:
            (path / "set" / corruption / str(level)).symlink_to(path / "images")
    return path / "set"


def own(folder: Path) -> Path:
    """A link replaced by what it points to."""
    images = folder.resolve()
    folder.unlink()
    shutil.copytree(images, folder)
    return folder


def cifar(path: Path, num_classes: int, corruptions=MAIN, n: int = 20) -> Path:
    path.mkdir()
    labels = np.arange(n) % num_classes
    np.save(path / "labels.npy", np.tile(labels, 5))
    images = np.zeros((5 * n, 32, 32, 3), np.uint8)
    images[..., 0] = np.arange(5 * n)[:, None, None]
    for name in corruptions:
        np.save(path / f"{name}.npy", images)
    return path


def labels_of(split: Encoded) -> dict[str, int]:
    """Folder of each image, and the class it got."""
    return {Path(split.name(i)).parent.name: int(split.labels[i]) for i in range(len(split))}


def refused(text: str, *parts: str, **chosen) -> None:
    with pytest.raises(ValueError) as error:
        open_testset(text, **chosen)
    line = str(error.value)
    assert line.startswith(f"--testset {text}")
    assert "\n" not in line
    assert "--data.source" not in line
    for part in parts:
        assert part in line


# --- names and class indices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["imagenet-r", "imagenet-r:", "imagenet-q:x", "imagenet:x"])
def test_an_unknown_set_is_met_with_the_known_ones(text):
    refused(text, "is no published test set", "imagenet-c:PATH", "imagenet-real:VAL::REAL.json")


def test_no_set_at_all_is_met_with_the_known_ones():
    with pytest.raises(ValueError, match="--testset .empty. is no published test set; give one of imagenet-r:PATH"):
        open_testset("")


@pytest.mark.parametrize("name", [name for name in testsets.TESTSETS if name != "imagenet-real:"])
def test_a_folder_that_is_not_there_or_empty_is_named(tmp_path, name):
    refused(f"{name}{tmp_path}/none", f"there is no folder {tmp_path}/none")
    refused(f"{name}{tmp_path}", "missing" if name.endswith("-c:") else "holds no class folders")


def test_the_thousand_ids_are_sorted_and_two_sets_have_two_hundred():
    assert len(imagenet.wnids()) == 1000
    assert list(imagenet.wnids()) == sorted(imagenet.wnids())
    assert [sum(one in sets for sets in imagenet.wnids().values()) for one in "AR"] == [200, 200]


@needs_labels
def test_ids_and_sets_are_those_of_the_label_files():
    lines = (LABELS / "imagenet_classes.tsv").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines] == [[str(i), wnid] for i, wnid in enumerate(imagenet.wnids())]
    for one in "AR":
        listed = (LABELS / f"imagenet_{one.lower()}_wnids.txt").read_text().split()
        assert [wnid for wnid, sets in imagenet.wnids().items() if one in sets] == listed


@pytest.mark.parametrize(
    ("name", "only", "title"), [("imagenet-r", "R", "ImageNet-R"), ("imagenet-a", "A", "ImageNet-A")]
)
def test_two_hundred_folders_get_their_places_among_the_thousand(tmp_path, name, only, title):
    places = {wnid: index for index, (wnid, sets) in enumerate(imagenet.wnids().items()) if only in sets}
    found = open_testset(f"{name}:{tree(tmp_path, places)}")
    assert (found.title, found.num_classes, found.classes) == (title, 1000, tuple(imagenet.wnids()))
    assert found.allowed == tuple(places.values())
    assert labels_of(found.conditions[0].split) == places


def test_r_is_not_taken_for_a_and_neither_when_a_class_is_lost(tmp_path):
    classes = [wnid for wnid, sets in imagenet.wnids().items() if "R" in sets]
    tree(tmp_path, classes)
    refused(f"imagenet-a:{tmp_path}", "n01443537 is no class of ImageNet-A, which has 200 folders")
    shutil.rmtree(tmp_path / classes[7])
    refused(f"imagenet-r:{tmp_path}", f"lacks 1 of the 200 classes of ImageNet-R, among them {classes[7]}")


def test_folders_that_are_no_ids_of_imagenet_are_refused(tmp_path):
    refused(f"imagenet-r:{tree(tmp_path, ['cat', 'dog'])}", f"{tmp_path}/cat is no class of ImageNet-R")


def test_v2_folders_are_numbers_not_words(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "wnids", lambda: {f"n{i:08}": "" for i in range(12)})
    found = open_testset(f"imagenet-v2:{tree(tmp_path, map(str, range(12)))}")
    assert labels_of(found.conditions[0].split) == {str(i): i for i in range(12)}  # "10" sorts before "2"
    assert found.allowed is None
    (tmp_path / "11").rename(tmp_path / "011")
    refused(f"imagenet-v2:{tmp_path}", "011 is no class of ImageNet-V2, which has 12 folders, 0 to 11")


def test_sketch_has_all_classes_or_is_refused(tmp_path, four_classes):
    found = open_testset(f"imagenet-sketch:{tree(tmp_path, FOUR)}")
    assert labels_of(found.conditions[0].split) == {wnid: i for i, wnid in enumerate(FOUR)}
    shutil.rmtree(tmp_path / "n00000030")
    refused(f"imagenet-sketch:{tmp_path}", "lacks 1 of the 4 classes of ImageNet-Sketch, among them n00000030")


def test_a_class_without_images_is_named(tmp_path, four_classes):
    (tree(tmp_path, FOUR) / "n00000020/a.JPEG").unlink()
    refused(f"imagenet-sketch:{tmp_path}", f"{tmp_path}/n00000020 holds no images")


# --- ReaL ------------------------------------------------------------------------------------------------------------


def validation(path: Path, numbers, folders=("",)) -> Path:
    for i, number in enumerate(numbers):
        folder = path / folders[i % len(folders)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(picture(number))
    return path


def real(path: Path, label_sets) -> str:
    (path / "real.json").write_text(json.dumps(label_sets))
    return f"imagenet-real:{path}/val::{path}/real.json"


@pytest.mark.parametrize("folders", [("",), ("n00000030", "n00000010")])
def test_real_labels_go_by_the_number_of_the_image_whatever_its_folder(tmp_path, four_classes, folders):
    validation(tmp_path / "val", [1, 2, 3, 4, 5], folders)
    found = open_testset(real(tmp_path, [[0], [1, 2], [], [3], [0, 3]]))
    split = found.conditions[0].split
    numbers = [int(Path(split.name(i)).stem[-8:]) for i in range(len(split))]
    assert numbers == [1, 2, 4, 5]
    assert [found.label_sets[row] for row in split.labels] == [(0,), (1, 2), (3,), (0, 3)]
    assert found.left_out == 1
    assert found.allowed is None


@needs_labels
def test_the_published_real_labels_fit_and_their_empty_lists_are_left_out(tmp_path):
    validation(tmp_path / "val", [1, 2, 3, 50_000])
    found = open_testset(f"imagenet-real:{tmp_path}/val::{LABELS}/imagenet_real.json")
    assert len(found.label_sets) == 50_000
    assert sum(not each for each in found.label_sets) == 3163
    split = found.conditions[0].split
    assert split.labels.tolist()[:2] == [1, 2]  # the first image has no label
    assert found.label_sets[1:3] == ((970, 795), (230, 231))
    assert found.left_out == 4 - len(split)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "is no JSON"),
        ('{"1": [0]}', "is no list of lists"),
        ("[[0], 1]", "is no list of lists"),
        ("[[0], [4]]", "holds the label 4; labels are classes from 0 to 3"),
        ('[["0"]]', "holds the label '0'"),
        ("[[0]]", "is none of the 1 validation images that have labels"),
        ("[[], []]", "has no label for any of the 2 images"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, four_classes, text, message):
    validation(tmp_path / "val", [1, 2])
    (tmp_path / "real.json").write_text(text)
    refused(f"imagenet-real:{tmp_path}/val::{tmp_path}/real.json", message)


def test_validation_folders_that_are_no_such_thing_are_refused(tmp_path, four_classes):
    (tmp_path / "val").mkdir()
    text = real(tmp_path, [[0], [1]])
    refused(text, "no images in")
    refused(text.partition("::")[0], "the labels are missing; give imagenet-real:VAL::REAL.json")
    refused(text + "x", "cannot read", "No such file")
    validation(tmp_path / "val", [1, 1], ("n00000010", "n00000020"))
    refused(text, "are the same image; remove one of them")
    (tmp_path / "val/n00000020/ILSVRC2012_val_00000001.JPEG").rename(tmp_path / "val/n00000010/dog.JPEG")
    refused(text, "dog.JPEG is none of the 2 validation images")


# --- ImageNet-C ------------------------------------------------------------------------------------------------------


def test_conditions_are_corruptions_by_severities_of_the_same_images(tmp_path, four_classes):
    found = open_testset(f"imagenet-c:{corrupted(tmp_path, MAIN + EXTRA, names=('a.JPEG', 'b.JPEG'))}")
    assert len(found.conditions) == 19 * 5
    assert found.missing == ()
    place = next(i for i, each in enumerate(found.conditions) if each.where == {"corruption": "fog", "severity": 3})
    split = found.conditions[place].split
    assert split.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert split.name(3) == f"{tmp_path}/set/fog/3/n00000020/b.JPEG"


def test_the_main_fifteen_alone_are_taken_and_the_others_said_to_be_missing(tmp_path, four_classes):
    found = open_testset(f"imagenet-c:{corrupted(tmp_path)}")
    assert len(found.conditions) == 15 * 5
    assert found.missing == EXTRA


def test_corruptions_may_lie_in_the_folders_of_their_archives(tmp_path, four_classes):
    path = corrupted(tmp_path)
    (path / "weather").mkdir()
    (path / "fog").rename(path / "weather/fog")
    assert len(open_testset(f"imagenet-c:{path}").conditions) == 75


def test_a_mean_over_fewer_is_not_made_unasked(tmp_path, four_classes):
    path = corrupted(tmp_path, (*MAIN, "spatter"))
    refused(f"imagenet-c:{path}", "the corruptions speckle_noise, gaussian_blur, saturate are missing")
    (path / "spatter").rename(tmp_path / "away")
    (path / "snow/4").unlink()
    (path / "fog/1").unlink()
    refused(f"imagenet-c:{path}", "the severities snow/4, fog/1 are missing", "--severities")
    (path / "frost").rename(tmp_path / "frost")
    refused(f"imagenet-c:{path}", "the corruptions frost are missing", "--corruptions")
    found = open_testset(f"imagenet-c:{path}", corruptions=["fog", "snow"], severities=[2, 3])
    assert [tuple(each.where.values()) for each in found.conditions] == [
        ("fog", 2),
        ("fog", 3),
        ("snow", 2),
        ("snow", 3),
    ]
    assert {"frost", "severity 1", "severity 5"} <= set(found.missing)
    assert not {"fog", "severity 2"} & set(found.missing)
    refused(f"imagenet-c:{path}", "--corruptions mist is unknown", corruptions=["mist"])


def test_a_condition_with_a_class_or_an_image_less_is_named(tmp_path, four_classes):
    path = corrupted(tmp_path, names=("a.JPEG", "b.JPEG"))
    lacking = own(path / "pixelate/5")
    (lacking / "n00000030/b.JPEG").unlink()
    refused(f"imagenet-c:{path}", "pixelate/5/n00000030 and", "do not hold the same images (1 and 2)")
    shutil.rmtree(lacking / "n00000030")
    refused(f"imagenet-c:{path}", "pixelate/5 lacks 1 of the 4 classes of ImageNet-C, among them n00000030")


def test_copies_made_here_are_not_taken_for_imagenet_c(tmp_path, four_classes):
    refused(f"imagenet-c:{corrupted(tmp_path, names=('a.png',))}", "a.png is no JPEG", "`robustness`")


# --- CIFAR-C ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_cifar(monkeypatch):
    monkeypatch.setattr(corruption_sets, "CIFAR_IMAGES", 20)


def test_blocks_of_a_file_are_severities_and_stay_on_disk(tmp_path, small_cifar):
    found = open_testset(f"cifar10-c:{cifar(tmp_path / 'c', 10)}")
    assert (found.title, found.num_classes, found.image_size, found.missing) == ("CIFAR-10-C", 10, 32, EXTRA)
    assert len(found.conditions) == 75
    third = found.conditions[2]
    assert third.where == {"corruption": "gaussian_noise", "severity": 3}
    assert third.split.images.shape == (20, 3, 32, 32)
    assert third.split.images[:, 0, 0, 0].tolist() == list(range(40, 60))
    assert third.split.images[:, 1:].max() == 0
    assert third.split.labels.tolist() == [i % 10 for i in range(20)]
    assert isinstance(third.split.images, np.memmap)


def test_cifar100_c_is_of_a_hundred_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(corruption_sets, "CIFAR_IMAGES", 100)
    path = cifar(tmp_path / "c", 100, ["fog"], 100)
    found = open_testset(f"cifar100-c:{path}", ["fog"])
    assert (found.title, found.num_classes, len(found.conditions)) == ("CIFAR-100-C", 100, 5)
    refused(f"cifar10-c:{path}", "holds the label 10; CIFAR-10-C has classes 0 to 9", corruptions=["fog"])


def test_ten_classes_are_not_taken_for_a_hundred(tmp_path, small_cifar):
    refused(f"cifar100-c:{cifar(tmp_path / 'c', 10)}", "holds no image of class 10; CIFAR-100-C has 100 classes")


def test_files_that_are_not_the_published_ones_are_named(tmp_path, small_cifar):
    path = cifar(tmp_path / "c", 10)
    text = f"cifar10-c:{path}"
    images, labels = np.load(path / "fog.npy"), np.load(path / "labels.npy")
    for wrong in (images[:-1], images.astype(np.int16), images.transpose(0, 3, 1, 2)):
        np.save(path / "fog.npy", wrong)
        refused(text, f"fog.npy is {wrong.dtype} {list(wrong.shape)}; the published one is uint8 [100, 32, 32, 3]")
    np.save(path / "fog.npy", images)
    for wrong, message in (
        (labels[:20], "labels.npy is int64 [20]"),
        (labels * 0.5, "labels.npy is float64"),
        (labels - 1, "holds the label -1"),
        (np.sort(labels), "differs between severities"),
    ):
        np.save(path / "labels.npy", wrong)
        refused(text, message)
    np.save(path / "labels.npy", labels)
    os.truncate(path / "fog.npy", 5000)
    refused(text, "fog.npy cannot be read", "download it again")
    (path / "fog.npy").unlink()
    refused(text, "the corruptions fog are missing")
    (path / "labels.npy").unlink()
    refused(text, "cannot read", "labels.npy: No such file", corruptions=["snow"])


def test_nothing_in_a_file_is_executed(tmp_path, small_cifar):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    path = cifar(tmp_path / "c", 10)
    (path / "fog.npy").write_bytes(pickle.dumps(Trap()))
    refused(f"cifar10-c:{path}", "fog.npy cannot be read")
    np.save(path / "fog.npy", np.array([Trap()], object), allow_pickle=True)
    refused(f"cifar10-c:{path}", "fog.npy")
    assert not (tmp_path / "sprung").exists()
