import hashlib
import io
import itertools
import pickle
import subprocess
import sys
import tarfile
import urllib.error
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samovar import plugins
from samovar.cli import main
from samovar.config import DataConfig
from samovar.data import openers
from samovar.data.badfiles import BadImages
from samovar.data.catalog import SOURCES, count_images, listed
from samovar.data.draws import Purpose
from samovar.data.shards import expand
from samovar.data.sources import has_one_size, open_source
from samovar.data.splits import Arrays, Source, hold_out, in_proportion, keep_fraction
from tests.conftest import SHARED


def png(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def make_folder(path: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            (path / name / f"{i:03}.png").write_bytes(png(i))
    return path


def folder(path: Path, **settings) -> DataConfig:
    return DataConfig(source=f"folder:{path}", **settings)


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_and_its_torch_free_listing_name_the_same_sources():
    assert [name.partition(":")[0] for name in listed()] == list(SOURCES)
    assert all(callable(getattr(openers, entry.opener)) for entry in SOURCES.values())


def test_only_sources_of_arrays_have_one_size():
    assert [name for name, entry in SOURCES.items() if entry.one_size] == [
        "digits", "cifar10", "cifar100", "fashion-mnist",
    ]  # fmt: skip
    assert has_one_size(DataConfig())
    assert not has_one_size(DataConfig(source="folder:somewhere"))


# --- sources of other packages ---------------------------------------------------------------------------------------


def open_mine(config: DataConfig) -> Source:
    """A source as another package would bring it; --data.source mine:3 has three classes."""
    count = int(config.source.partition(":")[2] or "2")
    labels = np.arange(10 * count) % count
    images = np.zeros((len(labels), 1, 8, 8), np.uint8)
    train, val = (Arrays(labels, images, part) for part in ("train", "val"))
    return Source(config.source, tuple(map(str, range(count))), train, val, channels=1, image_size=8)


def open_nothing(config: DataConfig) -> list[str]:
    return []


@pytest.fixture
def other_package(monkeypatch):
    """An installed package that adds the sources `mine`, `broken` and `wrong`."""
    here = "tests.unit.test_sources"
    points = [
        EntryPoint(name, value, "samovar.sources")
        for name, value in (
            ("mine", f"{here}:open_mine"),
            ("broken", f"{here}:gone"),
            ("wrong", f"{here}:open_nothing"),
        )
    ]

    def installed(group: str, **params: str) -> list[EntryPoint]:
        return [point for point in points if point.matches(group=group, **params)]

    monkeypatch.setattr(plugins, "entry_points", installed)
    plugins.names.cache_clear()
    yield
    plugins.names.cache_clear()


@pytest.mark.usefixtures("other_package")
@pytest.mark.parametrize(("name", "classes"), [("mine", 2), ("mine:3", 3)])
def test_a_source_of_another_package_opens_by_its_name(name, classes):
    source = open_source(DataConfig(source=name, fraction=0.5))
    assert len(source.classes) == classes
    assert len(source.train) == 5 * classes
    assert has_one_size(DataConfig(source=name))


@pytest.mark.usefixtures("other_package")
def test_a_source_of_another_package_is_listed_and_suggested(capsys):
    main(["list", "sources"])
    printed = capsys.readouterr().out
    assert "  mine " in printed
    assert "  folder:PATH " in printed
    with pytest.raises(ValueError, match=r"--data.source mime is unknown; did you mean mine\?"):
        open_source(DataConfig(source="mime"))
    with pytest.raises(ValueError, match="mine is not a folder of images"):
        count_images("mine", 0.1)


@pytest.mark.usefixtures("other_package")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "'broken' of samovar.sources does not import"),
        ("wrong", "opens as list, not as a samovar.data.splits"),
    ],
)
def test_a_package_that_adds_no_source_is_refused_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as error:
        open_source(DataConfig(source=name))
    assert "\n" not in str(error.value)


# --- listing ---------------------------------------------------------------------------------------------------------


def test_listing_and_counting_import_no_torch():
    code = "import sys, samovar.data.sources, samovar.data.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar", "--data.source cifar is unknown; did you mean cifar10"),
        ("folder", "did you mean folder:PATH?"),
        ("folder:", "did you mean folder:PATH?"),
        ("Digits", "did you mean digits?"),
        ("digits:x", "did you mean digits?"),
        ("zzz", "is unknown; known: digits, cifar10"),
    ],
)
def test_an_unknown_source_is_met_with_the_nearest(source, message):
    with pytest.raises(ValueError, match="unknown") as error:
        open_source(DataConfig(source=source))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bare_path_is_met_with_the_source_that_takes_it(tmp_path):
    with pytest.raises(ValueError, match=f"did you mean folder:{tmp_path}?"):
        open_source(DataConfig(source=str(tmp_path)))


# --- digits and splits -----------------------------------------------------------------------------------------------


def test_digits_are_split_by_class_into_all_of_them_once():
    source = open_source(DataConfig())
    assert (source.channels, source.image_size, len(source.classes)) == (1, 8, 10)
    assert len(source.train) + len(source.val) == 1797
    assert source.train.images.dtype == np.uint8
    assert (source.train.images.min(), source.train.images.max()) == (0, 255)
    held = np.bincount(source.val.labels) / (np.bincount(source.val.labels) + np.bincount(source.train.labels))
    assert abs(held - 0.1).max() < 0.5 / 174  # half an image of the smallest class


def test_the_split_is_a_function_of_split_seed_alone():
    labels = np.random.default_rng(0).integers(0, 5, 300)
    first, again, other = hold_out(labels, 0.2, 0), hold_out(labels, 0.2, 0), hold_out(labels, 0.2, 1)
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])
    assert sorted(np.concatenate(first)) == list(range(300))


def test_a_smaller_fraction_lies_within_a_larger_one_and_keeps_every_class():
    labels = np.repeat(np.arange(4), [1, 5, 40, 100])
    kept = [keep_fraction(labels, fraction, 0) for fraction in (0.1, 0.25, 0.5, 1.0)]
    for small, large in itertools.pairwise(kept):
        assert set(small) <= set(large)
    assert np.bincount(labels[kept[0]]).tolist() == [1, 1, 4, 10]
    assert np.array_equal(kept[-1], np.arange(len(labels)))


@pytest.mark.parametrize("count", [1, 7, 128, 200, 999, 1500, 5000])
def test_a_number_of_images_is_exact_and_its_classes_in_proportion(count):
    labels = np.repeat(np.arange(10), [300, 17, 1, 160, 150, 150, 150, 190, 179, 203])
    rows = in_proportion(labels, count, seed=3)
    assert len(rows) == min(count, 1500)
    assert (np.diff(rows) > 0).all()
    taken = np.bincount(labels[rows], minlength=10)
    np.testing.assert_allclose(taken, np.bincount(labels) * len(rows) / 1500, atol=1)


def test_a_whole_share_of_each_class_takes_the_rows_of_that_fraction():
    labels = np.tile(np.arange(10), 150)
    np.testing.assert_array_equal(in_proportion(labels, 300, 1), keep_fraction(labels, 0.2, 1))


def test_the_fraction_leaves_validation_alone():
    whole, part = open_source(DataConfig()), open_source(DataConfig(fraction=0.25))
    assert np.array_equal(whole.val.images, part.val.images)
    assert len(part.train) == pytest.approx(len(whole.train) / 4, abs=5)  # half an image a class


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_a_folder_with_its_own_split_is_taken_as_it_is(tmp_path, val):
    make_folder(tmp_path / "train", {"b": 2, "a": 3})
    make_folder(tmp_path / val, {"a": 1, "b": 1})
    source = open_source(folder(tmp_path))
    assert source.classes == ("a", "b")
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.val.labels.tolist() == [0, 1]
    assert source.train.name(3) == str(tmp_path / "train/b/000.png")
    assert source.train.read(4) == png(1)


def names(split) -> list[str]:
    return [split.name(index) for index in range(len(split))]


def test_tuning_validates_on_training_images_and_never_opens_the_rest(tmp_path):
    for part, count in (("train", 20), ("val", 5)):
        make_folder(tmp_path / part, {"a": count, "b": 2 * count})
    plain, tuned = (open_source(folder(tmp_path, tune_share=share)) for share in (0.0, 0.25))
    assert sorted(names(tuned.train) + names(tuned.val)) == sorted(names(plain.train))
    assert np.bincount(tuned.val.labels).tolist() == [5, 10]  # a quarter of each class
    assert len(plain.val) == 15
    assert not set(names(plain.val)) & set(names(tuned.train) + names(tuned.val))


def test_the_tuning_share_is_a_function_of_split_seed_alone_and_apart_from_the_other_splits(tmp_path):
    for part in ("train", "val"):
        make_folder(tmp_path / part, {"a": 40, "b": 20})

    def held(**settings) -> list[str]:
        return names(open_source(folder(tmp_path, tune_share=0.2, **settings)).val)

    assert held() == held(batch_size=7, crop="affine")
    assert held(split_seed=1) != held()
    labels = np.arange(100) % 4
    drawn = [hold_out(labels, 0.2, 0, purpose)[1].tolist() for purpose in (Purpose.TUNE, Purpose.HOLD_OUT)]
    assert drawn[0] != drawn[1]


def test_the_tuning_share_is_of_the_fraction_that_trains():
    part = open_source(DataConfig(fraction=0.25))
    tuned = open_source(DataConfig(fraction=0.25, tune_share=0.2))
    both = np.concatenate([tuned.train.images, tuned.val.images])
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in part.train.images)
    counts = np.bincount(part.train.labels)
    assert np.bincount(tuned.val.labels).tolist() == [round(0.2 * count) for count in counts]


def test_without_a_tuning_share_the_splits_are_what_they_were():
    source = open_source(DataConfig(fraction=0.25))
    found = hashlib.sha256(source.train.images.tobytes() + source.val.images.tobytes()).hexdigest()
    assert found == "f4adbc6e1b08891ae9146e69fde843a8e3f05c0636889dea00db9025cc3a1288"  # from before there was one


def test_a_small_tuning_share_holds_one_of_each_class_and_a_class_of_one_is_refused(tmp_path):
    tuned = open_source(folder(make_folder(tmp_path / "two", {"a": 6, "b": 3}), tune_share=0.001))
    assert np.bincount(tuned.val.labels).tolist() == [1, 1]
    make_folder(tmp_path / "one" / "train", {"a": 6, "b": 1})
    make_folder(tmp_path / "one" / "val", {"a": 1, "b": 1})
    with pytest.raises(ValueError, match=r"--data.tune-share 0.1 holds out .* class 'b' of .* has one training image"):
        open_source(folder(tmp_path / "one", tune_share=0.1))


def test_a_folder_of_class_folders_holds_a_share_out(tmp_path):
    source = open_source(folder(make_folder(tmp_path, {"a": 10, "b": 20, "c": 1}), val_share=0.2))
    assert np.bincount(source.train.labels).tolist() == [8, 16, 1]
    assert np.bincount(source.val.labels, minlength=3).tolist() == [2, 4, 0]
    names = {split.name(i) for split in (source.train, source.val) for i in range(len(split))}
    assert len(names) == 31


@pytest.mark.parametrize("settings", [{}, {"val_share": 0.35}, {"fraction": 0.3}])
def test_counting_agrees_with_opening(tmp_path, settings):
    one = folder(make_folder(tmp_path / "one", {"a": 11, "b": 3, "c": 1}), **settings)
    make_folder(tmp_path / "two/train", {"a": 4, "b": 7})
    make_folder(tmp_path / "two/val", {"a": 2})
    for config in (one, folder(tmp_path / "two", **settings)):
        counted = count_images(config.source, config.val_share, config.fraction)
        assert counted == len(open_source(config).train)


def test_nested_folders_count_and_hidden_files_do_not(tmp_path):
    make_folder(tmp_path, {"a/deep": 2, "b": 3, ".cache": 4})
    (tmp_path / "b/._000.png").write_bytes(b"left by macOS")
    (tmp_path / "b/notes.txt").write_text("no image")
    (tmp_path / "b/LOUD.JPG").write_bytes(png())
    source = open_source(folder(tmp_path, val_share=0.3))
    assert source.classes == ("a", "b")
    assert len(source.train) + len(source.val) == 6


def test_a_class_named_train_is_no_split(tmp_path):
    source = open_source(folder(make_folder(tmp_path, {"train": 4, "bus": 4})))
    assert source.classes == ("bus", "train")


def test_class_order_and_files_are_those_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    make_folder(tmp_path / "train", {"b": 2, "a10": 3, "A": 1, "a9": 2})
    make_folder(tmp_path / "val", {"A": 1})
    theirs = ImageFolder(str(tmp_path / "train"))
    ours = open_source(folder(tmp_path))
    assert list(ours.classes) == theirs.classes
    assert [(ours.train.name(i), int(ours.train.labels[i])) for i in range(len(ours.train))] == theirs.samples


def test_splits_survive_the_trip_to_a_worker(tmp_path):
    train = open_source(folder(make_folder(tmp_path, {"a": 3, "ü": 3}))).train
    there = pickle.loads(pickle.dumps(train))  # noqa: S301 (our own bytes)
    assert [there.read(i) for i in range(len(train))] == [train.read(i) for i in range(len(train))]
    assert [there.name(i) for i in range(len(train))] == [train.name(i) for i in range(len(train))]


BAD_FOLDERS = {
    "there is no folder": lambda path: None,
    "is a file": lambda path: path.write_text("x"),
    "holds no class folders": lambda path: path.mkdir(),
    "no images in": lambda path: make_folder(path, {"a": 0, "b": 0}),
    "holds no images; add some or remove the folder": lambda path: make_folder(path, {"a": 2, "b": 0}),
    "has only the class 'a'": lambda path: make_folder(path, {"a": 3}),
    "class 'c' is in": lambda path: [
        make_folder(path / part, dict.fromkeys(names, 1)) for part, names in (("train", "ab"), ("val", "abc"))
    ],
    "holds out no image": lambda path: make_folder(path, {"a": 1, "b": 1}),
}


@pytest.mark.parametrize("message", BAD_FOLDERS)
def test_a_bad_folder_is_refused_in_one_line(tmp_path, message):
    BAD_FOLDERS[message](tmp_path / "photos")
    with pytest.raises(ValueError, match=message) as error:
        open_source(folder(tmp_path / "photos"))
    assert "--data." in str(error.value)
    assert "\n" not in str(error.value)


def test_counting_refuses_what_is_no_folder():
    assert count_images("cifar10", 0.1, 0.5) == 25_000  # its number is known
    with pytest.raises(ValueError, match="hf:name is not a folder of images; give folder:PATH"):
        count_images("hf:name", 0.1)
    with pytest.raises(ValueError, match="there is no folder /nowhere"):
        count_images("folder:/nowhere", 0.1)


def test_imagenet_wants_both_splits_by_class(tmp_path):
    make_folder(tmp_path / "train", {"n01440764": 2, "n01443537": 2})
    (tmp_path / "val").mkdir()
    (tmp_path / "val/ILSVRC2012_val_00000001.JPEG").write_bytes(png())
    config = DataConfig(source=f"imagenet:{tmp_path}")
    with pytest.raises(ValueError, match="val with one folder per class is missing"):
        open_source(config)
    make_folder(tmp_path / "val", {"n01443537": 2})
    source = open_source(config)
    assert source.val.labels.tolist() == [1, 1]


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_real_photos_open():
    source = open_source(folder(SHARED / "data/flowers5"))
    assert source.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert (len(source.train), len(source.val)) == (600, 200)


# --- downloaded ------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist", "flowers102", "pets"])
@pytest.mark.usefixtures("offline")
def test_offline_one_line_says_what_is_missing_and_where(tmp_path, name):
    with pytest.raises(ValueError, match=f"--data.source {name} is not in --data.root .*cannot be downloaded") as error:
        open_source(DataConfig(source=name, root=tmp_path / "data"))
    assert "\n" not in str(error.value)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.usefixtures("offline")
def test_a_damaged_cifar_is_refused_before_anything_is_unpickled(tmp_path):
    files = tmp_path / "cifar-10-batches-py"
    files.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (files / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="cifar10 is not in"):
        open_source(DataConfig(source="cifar10", root=tmp_path))


def test_cifar_comes_as_channels_first_bytes(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
    contents = {
        "data_batch_1": {"data": pixels, "labels": [i % 10 for i in range(20)]},
        "test_batch": {"data": pixels[:10], "labels": list(range(10))},
        "batches.meta": {"label_names": list("abcdefghij")},
    }
    (tmp_path / "cifar-10-batches-py").mkdir()
    sums = {}
    for name, content in contents.items():
        data = pickle.dumps(content)
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    )
    source = open_source(DataConfig(source="cifar10", root=tmp_path))
    assert np.array_equal(source.train.images, pixels.reshape(20, 3, 32, 32))
    assert source.classes == tuple("abcdefghij")
    assert source.train.name(3) == "cifar10[3]"
    assert isinstance(source.train, Arrays) == SOURCES["cifar10"].one_size


def test_fashion_mnist_comes_as_grey_bytes(tmp_path):
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            np.array([2051, 20, 28, 28], ">i4").tobytes() + pixels.tobytes()
        )
        labels = bytes(i % 10 for i in range(20))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([2049, 20], ">i4").tobytes() + labels)
    source = open_source(DataConfig(source="fashion-mnist", root=tmp_path))
    assert np.array_equal(source.train.images[:, 0], pixels)
    assert (source.channels, source.image_size) == (1, 28)
    assert isinstance(source.train, Arrays) == SOURCES["fashion-mnist"].one_size


def test_pets_train_on_trainval_and_validate_on_test(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations").mkdir()
    (base / "annotations/trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_2 2 2 1\n")
    (base / "annotations/test.txt").write_text("beagle_3 2 2 1\n")
    source = open_source(DataConfig(source="pets", root=tmp_path))
    assert source.classes == ("Abyssinian", "Beagle")
    assert source.train.name(1) == str(base / "images/beagle_2.jpg")
    assert isinstance(source.train, Arrays) == SOURCES["pets"].one_size
    assert source.val.labels.tolist() == [1]


def test_flowers_train_on_train_and_val_together(tmp_path, monkeypatch):
    class Flowers:
        def __init__(self, root, split, download):
            first = {"train": 0, "val": 102, "test": 204}[split]
            self._image_files = [Path(root) / f"{first + i}.jpg" for i in range(102)]
            self._labels = list(range(102))

    monkeypatch.setattr("torchvision.datasets.Flowers102", Flowers)
    source = open_source(DataConfig(source="flowers102", root=tmp_path))
    assert (len(source.train), len(source.val), len(source.classes)) == (204, 102, 102)
    assert source.train.name(102) == str(tmp_path / "102.jpg")
    assert isinstance(source.train, Arrays) == SOURCES["flowers102"].one_size


# --- shards and the hub ----------------------------------------------------------------------------------------------


def make_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_patterns_expand_like_the_shell():
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]
    assert expand("plain.tar") == ["plain.tar"]


def test_shards_give_the_bytes_that_were_packed(tmp_path):
    for shard in range(2):
        members = {}
        for i in range(6):
            members |= {f"d/{shard}{i}.png": png(10 * shard + i), f"d/{shard}{i}.cls": f"{i % 3}\n".encode()}
            members |= {f"d/{shard}{i}.json": b"{}"}
        make_shard(tmp_path / f"s-{shard}.tar", members)
    source = open_source(DataConfig(source=f"shards:{tmp_path}/s-{{0..1}}.tar", val_share=0.25))
    assert source.classes == ("0", "1", "2")
    assert (len(source.train), len(source.val)) == (9, 3)
    for split in (source.train, source.val):
        for i in range(len(split)):
            shard, number = split.name(i)[-2:]
            assert split.read(i) == png(10 * int(shard) + int(number))
            assert split.labels[i] == int(number) % 3


def test_shards_may_bring_their_own_validation(tmp_path):
    for name in ("train", "val"):
        make_shard(tmp_path / f"{name}.tar", {"a.png": png(), "a.cls": b"0", "b.png": png(), "b.cls": b"1"})
    source = open_source(DataConfig(source=f"shards:{tmp_path}/train.tar::{tmp_path}/val.tar"))
    assert (len(source.train), len(source.val)) == (2, 2)


BAD_SHARDS = {
    "there is no shard": lambda path: None,
    "is not an uncompressed tar": lambda path: path.write_bytes(b"\x1f\x8b" + bytes(2000)),
    "no images in": lambda path: make_shard(path, {"a.txt": b""}),
    "holds a without": lambda path: make_shard(path, {"a.png": png(), "b.png": png(), "b.cls": b"1"}),
    "a class index from 0 is needed": lambda path: make_shard(path, {"a.png": png(), "a.cls": b"cat"}),
    "class '0' has no training images": lambda path: make_shard(path, {"a.png": png(), "a.cls": b"1"}),
}


def numbered(folder: Path, count: int = 40) -> bytes:
    """The bytes of a shard of so many images in two classes."""
    members = {}
    for i in range(count):
        members |= {f"{i:03}.png": png(i), f"{i:03}.cls": f"{i % 2}".encode()}
    return make_shard(folder / "whole.tar", members).read_bytes()


def header(data: bytes, name: str) -> int:
    """Where the header of a member begins."""
    return data.index(name.encode() + b"\0")


def opened(folder: Path, data: bytes, pattern: str = "s.tar", **settings):
    (folder / "s.tar").write_bytes(data)
    return open_source(DataConfig(source=f"shards:{folder}/{pattern}", val_share=0.25, **settings))


def test_images_behind_a_damaged_header_are_found_again_and_the_damage_is_said(tmp_path) -> None:
    data = bytearray(numbered(tmp_path))
    place = header(data, "017.png")
    data[place + 100] ^= 1  # of the mode: the checksum no longer fits
    source = opened(tmp_path, bytes(data))
    assert len(source.train) + len(source.val) == 39
    line = f"{tmp_path}/s.tar is damaged at byte {place:,}: about 1 of 40 images are lost"
    assert source.notes[0] == line
    assert not {"017"} & {source.train.name(i)[-3:] for i in range(len(source.train))}


def test_any_flipped_bit_of_a_header_loses_two_images_at_most_and_is_said(tmp_path) -> None:
    whole = numbered(tmp_path)
    draws = np.random.default_rng(0)
    for name in ("000.cls", "017.png", "020.cls", "039.cls"):
        place = header(whole, name)
        for bit in draws.integers(0, 512 * 8, 8).tolist():
            data = bytearray(whole)
            data[place + bit // 8] ^= 1 << bit % 8
            source = opened(tmp_path, bytes(data))
            assert len(source.train) + len(source.val) >= 38
            assert "is damaged at byte" in source.notes[0]


def test_many_damaged_headers_are_more_than_the_share(tmp_path) -> None:
    data = bytearray(numbered(tmp_path))
    for i in range(6, 12):
        data[header(data, f"{i:03}.png") + 100] ^= 1
    with pytest.raises(BadImages, match=r"about 6 of 40 images are lost, more than --data.max-bad-share 0.001; fetch"):
        opened(tmp_path, bytes(data))
    assert len(opened(tmp_path, bytes(data), max_bad_share=0.2).train) == 26


@pytest.mark.parametrize("share", [0.0, 0.001])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
def test_a_cut_shard_is_refused_by_name_and_offset(part, share, tmp_path) -> None:
    whole = numbered(tmp_path)
    line = r"s.tar is damaged at byte [\d,]+, where it is cut: .* about \d+ of \d+ images are lost"
    with pytest.raises(BadImages, match=line):
        opened(tmp_path, whole[: int(part * len(whole))], max_bad_share=share)


def test_a_shard_cut_between_two_members_is_cut_too(tmp_path) -> None:
    whole = numbered(tmp_path)
    with pytest.raises(BadImages, match="where it is cut"):
        opened(tmp_path, whole[: header(whole, "020.png")])


def test_a_shard_whose_end_is_missing_is_measured_by_the_others(tmp_path) -> None:
    whole = numbered(tmp_path)
    cut = whole[: header(whole, "038.png")]
    source = opened(tmp_path, cut, "{s,whole}.tar")
    assert len(source.train) + len(source.val) == 78
    assert "about 2 of 80 images are lost" in source.notes[0]


def test_zeros_in_the_middle_are_no_end(tmp_path) -> None:
    data = bytearray(numbered(tmp_path))
    first, last = header(data, "010.png"), header(data, "012.png")
    data[first:last] = bytes(last - first)
    source = opened(tmp_path, bytes(data))
    assert len(source.train) + len(source.val) == 38
    assert f"is damaged at byte {first:,}: about 2 of 40 images are lost" in source.notes[0]


def test_two_shards_in_one_file_are_read_both(tmp_path) -> None:
    members = {"x.png": png(), "x.cls": b"0", "y.png": png(1), "y.cls": b"1"}
    more = make_shard(tmp_path / "more.tar", members).read_bytes()
    source = opened(tmp_path, numbered(tmp_path) + more)
    assert len(source.train) + len(source.val) == 42
    assert source.notes == ()


def test_a_shard_that_shrinks_while_it_is_read_has_bad_images(tmp_path) -> None:
    source = opened(tmp_path, numbered(tmp_path))
    (tmp_path / "s.tar").write_bytes(b"")
    with pytest.raises(OSError, match="the shard ends within it"):
        source.train.read(0)


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("s-{0..99999999999}.tar", "stands for 100,000,000,000 shards; give a pattern of 1,000,000 at most"),
        ("{0..999}{0..999}{0..9}.tar", "stands for 10,000,000 shards"),
        ("s-{0..9999999999999999999999}.tar", "there is no shard"),
    ],
)
def test_patterns_of_far_too_many_shards_are_refused(pattern, line, tmp_path) -> None:
    with pytest.raises(ValueError, match=line):
        open_source(DataConfig(source=f"shards:{tmp_path}/{pattern}"))


def test_a_class_index_of_billions_is_refused(tmp_path) -> None:
    make_shard(tmp_path / "s.tar", {"a.png": png(), "a.cls": b"99999999999"})
    with pytest.raises(ValueError, match=r"a.cls = b'99999999999'; a class index from 0 is needed, below 1,000,000"):
        open_source(DataConfig(source=f"shards:{tmp_path}/s.tar"))


@pytest.mark.parametrize("message", BAD_SHARDS)
def test_bad_shards_are_refused_in_one_line(tmp_path, message):
    BAD_SHARDS[message](tmp_path / "s.tar")
    with pytest.raises(ValueError, match=message) as error:
        open_source(DataConfig(source=f"shards:{tmp_path}/s.tar"))
    assert "\n" not in str(error.value)


def test_the_hub_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs an extra; pip install 'samovar\[hf\]'"):
        open_source(DataConfig(source="hf:mnist"))


def save_hub(path: Path, labels: list[int], kind=None) -> DataConfig:
    datasets = pytest.importorskip("datasets")
    features = {"img": datasets.Image(), "label": kind or datasets.ClassLabel(names=["cat", "dog"])}
    rows = {"img": [{"bytes": png(i), "path": None} for i in range(len(labels))], "label": labels}
    part = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    datasets.DatasetDict({"train": part}).save_to_disk(str(path))
    return DataConfig(source=f"hf:{path}", val_share=0.25)


def test_a_saved_hub_data_set_opens_and_reaches_workers(tmp_path):
    source = open_source(save_hub(tmp_path / "set", [0, 1] * 4))
    assert source.classes == ("cat", "dog")
    assert (len(source.train), len(source.val)) == (6, 2)
    there = pickle.loads(pickle.dumps(source.val))  # noqa: S301 (our own bytes)
    assert there.read(0).startswith(b"\x89PNG")


def test_labels_out_of_range_are_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=r"training label -1 is outside 0 to 1; images without a label"):
        open_source(save_hub(tmp_path / "set", [0, 1, -1, 1], datasets.Value("int64")))


def test_a_hub_data_set_that_is_not_there_is_one_line(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=r"cannot be loaded \(") as error:
        open_source(replace(DataConfig(), source=f"hf:{tmp_path}/nothing"))
    assert "\n" not in str(error.value)
