"""Folders as people bring them: which are splits, which are classes, what is left out, what is refused."""

import io
import itertools
import json
import logging
import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samovar import recipes
from samovar.config import DataConfig
from samovar.data.catalog import count_images
from samovar.data.folders import LeftOut, images_in, list_classes
from samovar.data.sources import class_notes, open_source
from samovar.data.splitnames import best_for_validation, role_of
from samovar.data.splits import Arrays, Source
from samovar.runs.records import RunDir
from samovar.runtime import Runtime
from samovar.train.fit import fit, prepare
from samovar.train.view import start_lines


def picture(kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, kind)
    return file.getvalue()


PNG = picture()


def tree(path: Path, *folders: str, count: int = 2) -> Path:
    """Make folders of images; `{a,b}` in a name stands for several."""
    for folder in folders:
        head, brace, tail = folder.partition("{")
        for name in tail.rstrip("}").split(",") if brace else [""]:
            (path / (head + name)).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                (path / (head + name) / f"{i}.png").write_bytes(PNG)
    return path


def opened(path: Path, **settings) -> Source:
    return open_source(DataConfig(source=f"folder:{path}", **settings))


def top(path: Path, split) -> set[str]:
    """The folders below `path` that a split's images are in."""
    return {Path(split.name(i)).relative_to(path).parts[0] for i in range(len(split))}


def refused(path: Path, *parts: str) -> str:
    with pytest.raises(ValueError, match="--data.source") as error:
        opened(path)
    text = str(error.value)
    assert "\n" not in text
    assert not [part for part in parts if part not in text], text
    with pytest.raises(ValueError, match="--data.source"):  # `photos` counts with the same reader
        count_images(f"folder:{path}", 0.1)
    return text


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "rest", "names"),
    [
        ("train", "", "train Train TRAIN Training training_set train-images trainset TrainData train2017 01_train trn"),
        ("val", "", "val VAL valid Validation validation_data dev devset eval Evaluation val_images holdout"),
        ("test", "", "test Testing test_set testImages TEST1 images.test"),
        ("train", "seg", "seg_train train_seg SegTrain"),
        ("test", "asl alphabet", "asl_alphabet_test"),
        ("unlabelled", "seg", "seg_pred"),
        ("train", "", "trainval train_val"),
    ],
)
def test_a_name_states_its_role_in_any_spelling(kind, rest, names):
    found = [role_of(name) for name in names.split()]
    assert [(role.kind, role.rest) for role in found if role] == [(kind, rest)] * len(found)


@pytest.mark.parametrize("name", ["cat", "trains", "valley", "contest", "strain", "devil", "n01440764", "train_test"])
def test_a_word_that_only_contains_a_split_states_none(name):
    assert role_of(name) is None


def test_the_best_split_validates():
    assert best_for_validation(["test", "eval", "train", "val"]) == ["val", "eval", "test"]


# --- splits ----------------------------------------------------------------------------------------------------------

SPELLINGS = [
    *(("Train", "Test"), ("TRAIN", "VAL"), ("Training", "Testing"), ("training_set", "test_set"), ("train", "dev")),
    *(("seg_train", "seg_test"), ("training", "validation"), ("train", "eval"), ("train_images", "val_images")),
    *(("TrainSet", "ValSet"), ("train-2019", "valid-2019"), ("flowers train", "flowers test"), ("trn", "tst")),
]


@pytest.mark.parametrize(("train", "val"), SPELLINGS)
@pytest.mark.parametrize("repeated", [False, True])
def test_splits_are_recognized_in_any_spelling(tmp_path, train, val, repeated):
    for split in (train, val):
        tree(tmp_path, f"{split}/{split}/{{cat,dog}}" if repeated else f"{split}/{{cat,dog}}")
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert (top(tmp_path, source.train), top(tmp_path, source.val)) == ({train}, {val})
    assert f"trains on {train}" in source.notes[0]
    assert f"validates on {val}" in source.notes[0]
    assert count_images(f"folder:{tmp_path}", 0.1) == len(source.train) == 4


def test_with_three_splits_the_test_split_is_left_alone_and_named(tmp_path):
    source = opened(tree(tmp_path, "Train/{a,b}", "Val/{a,b}", "Test/{a,b}", "pred"))
    assert top(tmp_path, source.val) == {"Val"}
    assert source.notes == (f"{tmp_path}: trains on Train, validates on Val; left alone: Test, pred",)


def test_a_lone_test_split_validates_and_the_line_says_so(tmp_path):
    (note,) = opened(tree(tmp_path, "train/{a,b}", "test/{a,b}")).notes
    assert "validates on test (there is no other validation folder)" in note


def test_a_test_split_without_classes_is_left_alone(tmp_path):
    # as in the archives of competitions, whose test images have no labels
    source = opened(tree(tmp_path, "train/{a,b}", "test1", count=10))
    assert (len(source.train), len(source.val)) == (18, 2)
    assert source.notes[0].endswith("trains on train, holds out a share of each class to validate; left alone: test1")


def test_folders_without_images_beside_splits_are_named(tmp_path):
    tree(tmp_path, "train/{a,b}", "val/{a,b}")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/all.txt").write_text("a b")
    assert "left alone: lists" in opened(tmp_path).notes[0]


@pytest.mark.parametrize("between", ["images", "animals"])
def test_one_folder_between_the_split_and_its_classes_is_passed_through(tmp_path, between):
    source = opened(tree(tmp_path, f"train/{between}/{{a,b}}", f"val/{between}/{{a,b}}"))
    assert source.classes == ("a", "b")
    assert f"trains on train/{between}" in source.notes[0]


def test_a_class_may_be_called_like_a_split_inside_of_a_split(tmp_path):
    assert opened(tree(tmp_path, "train/{bus,train,test}", "val/{bus,train,test}")).classes == ("bus", "test", "train")


def test_the_line_is_logged_once(tmp_path, caplog):
    tree(tmp_path, "train/{a,b}", "val/{a,b}")
    with caplog.at_level(logging.INFO, logger="samovar"):
        opened(tmp_path)
        opened(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}: trains on train, validates on val"]


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    ["bus,car,train", "test tube,train station", "bullet_train,steam_train", "valid,invalid", "dev,ops", "train 1,car"],
)
def test_classes_whose_names_sound_like_splits_are_all_taken(tmp_path, names):
    assert set(opened(tree(tmp_path, f"{{{names}}}")).classes) == set(names.split(","))


@pytest.mark.parametrize(
    "folders",
    [
        ("bus", "car", "train/{steam,diesel}"),
        ("bus/{red,blue}", "train/{steam,diesel}"),
        ("bus", "train/{a,b}", "test/{a,b}"),
        ("train/{a,b}", "training/{a,b}", "test/{a,b}"),
        ("train/{a,b}", "train_more/{a,b}", "test/{a,b}"),
        ("train/{a,b}", "train/val/{a,b}"),
        ("train/{a,b}", "train/train/{a,b}", "val/{a,b}"),
        ("car", "val/{a,b}"),
        ("car", "bus", "test"),
        ("valid/{a,b}", "car"),
        ("val/{a,b}",),
    ],
)
def test_what_may_be_splits_or_classes_is_refused_and_never_dropped(tmp_path, folders):
    refused(tree(tmp_path, *folders), str(tmp_path), "split")


@pytest.mark.parametrize("names", ["train,test", "Train,Val,Test", "train_images,test_images", "cat_train,cat_test"])
def test_splits_that_hold_images_without_classes_are_refused(tmp_path, names):
    refused(tree(tmp_path, f"{{{names}}}"), "look like splits", "without class folders")


def test_splits_of_unknown_names_are_refused_in_words(tmp_path):
    refused(
        tree(tmp_path, "Lernen/{a,b,c}", "Probe/{a,b}"), "Lernen, Probe", "the same folders a, b", "name them train"
    )
    refused(tree(tmp_path / "typo", "trian/{a,b}", "tets/{a,b}", "pred"), "look like splits of unknown names")


def test_splits_within_classes_are_refused(tmp_path):
    refused(tree(tmp_path, "cat/{train,val}", "dog/{train,val}"), "sorted by class first", f"{tmp_path}/train/cat")


def test_subfolders_of_classes_stay_allowed(tmp_path):
    tree(tmp_path, "cat/images", "dog/images", "eel/{2019,2020}", "fox")
    assert opened(tmp_path).classes == ("cat", "dog", "eel", "fox")


def test_subfolders_of_classes_of_known_splits_may_be_the_same(tmp_path):
    source = opened(tree(tmp_path, "train/cat/{day,night}", "train/dog/{day,night}", "val/{cat,dog}"))
    assert (source.classes, len(source.train)) == (("cat", "dog"), 8)


# --- misplaced -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "place"),
    [
        (("data/{a,b}",), "data"),
        (("data/train/{a,b}", "data/val/{a,b}"), "data"),
        (("one/two/Train/{a,b}", "one/two/Test/{a,b}", "__MACOSX"), "one/two"),
        (("data/train/{a,b}",), "data"),
        (("data/train/{a,b}", "data/test/{a,b}", "samples"), "data"),
        (("first/train/{a,b}", "first/val/{a,b}", "second/train/{a,b}", "second/val/{a,b}"), "first"),
        (("Images/{a,b}", "Annotation/{x,y}"), "Images"),
        (("images/train/{a,b}", "images/val/{a,b}", "labels"), "images"),
    ],
)
def test_a_path_too_high_is_met_with_the_path_to_give(tmp_path, folders, place):
    assert refused(tree(tmp_path, *folders)).endswith(f"{tmp_path / place}")
    if place not in ("Images", "images"):
        assert opened(tmp_path / place).classes == ("a", "b")


@pytest.mark.parametrize(
    "folders",
    [
        ("{images,labels}",),
        ("{JPEGImages,Annotations}",),
        ("images/{train,val}", "labels/{train,val}"),
        ("train/{images,labels}", "valid/{images,labels}"),
        ("{images,masks}",),
    ],
)
def test_a_set_for_detection_is_refused_in_words(tmp_path, folders):
    refused(tree(tmp_path, *folders), "detection or segmentation", "one folder per class")


# --- left out --------------------------------------------------------------------------------------------------------

JUNK = ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "Thumbs", ".git", "System Volume Information"]


@pytest.mark.parametrize("where", [".", "train", "train/a"])
@pytest.mark.parametrize("junk", JUNK)
def test_junk_is_left_out_and_named_at_any_depth(tmp_path, junk, where):
    tree(tmp_path, "train/{a,b}", "val/{a,b}", f"{where}/{junk}/{{a,b}}")
    source = opened(tmp_path)
    assert (source.classes, len(source.train), len(source.val)) == (("a", "b"), 4, 4)
    assert source.notes[1] == f"left out: folders {junk}"


def test_junk_beside_classes_is_no_class(tmp_path):
    tree(tmp_path, "{a,b,__MACOSX,@eaDir,.cache}")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert opened(tmp_path).classes == ("a", "b")


def formats() -> dict[str, bytes]:
    made = {}
    for name, kind in {
        "x.jfif": "JPEG", "x.JPEG": "JPEG", "x": "JPEG", "photo": "PNG", "x.jpg": "WEBP", "x.img": "GIF",
        "x.dat": "BMP", "x.jp2": "JPEG2000", "x.avif": "AVIF", "IMG.0001": "TIFF", "x.txt": "PNG",
    }.items():  # fmt: skip
        made[name] = picture(kind)
    return made


def test_what_the_decoders_read_is_taken_whatever_its_name(tmp_path):
    from samovar.data.decode import decode

    tree(tmp_path, "{a,b}")
    for name, data in formats().items():
        (tmp_path / "a" / name).write_bytes(data)
    source = opened(tmp_path, val_share=0.01)
    taken = {Path(split.name(i)).name for split in (source.train, source.val) for i in range(len(split))}
    assert set(formats()) <= taken
    assert all(decode(source.train.read(i)).shape == (3, 2, 3) for i in range(len(source.train)))
    assert len(source.notes) == 1


def test_what_no_decoder_reads_is_counted_by_ending(tmp_path):
    tree(tmp_path, "train/{a,b}", "val/{a,b}")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50)
    for split, names in {"train": ("1.heic", "2.HEIC", "BMW.txt", "Python", "empty"), "val": ("3.heic",)}.items():
        for name in names:
            data = {"txt": b"BMW and other cars", "Python": b"Python and snakes"}.get(
                name[-6:].rpartition(".")[2], heic
            )
            (tmp_path / split / "a" / name).write_bytes(b"" if name == "empty" else data)
    (tmp_path / "train/stray.png").write_bytes(PNG)
    os.mkfifo(tmp_path / "train/b/pipe")
    source = opened(tmp_path)
    assert (len(source.train), len(source.val)) == (4, 4)
    assert source.notes[1] == (
        "left out: 3 .heic, 3 without an ending, 1 .txt (files that no decoder reads); "
        "1 image outside of the class folders"
    )


def test_a_class_of_unreadable_formats_is_refused_and_the_endings_are_named(tmp_path):
    (tree(tmp_path, "a") / "b").mkdir()
    (tmp_path / "b/1.heic").write_bytes(bytes(50))
    refused(tmp_path, f"{tmp_path}/b holds no images; add some", "1 .heic")


def test_files_with_known_endings_are_not_opened(tmp_path, monkeypatch):
    tree(tmp_path, "{a,b}", count=5)
    monkeypatch.setattr("samovar.data.folders.is_readable_format", lambda path: pytest.fail(f"opened {path}"))
    assert len(opened(tmp_path).train) == 8


def test_counting_takes_the_same_files_as_opening(tmp_path):
    tree(tmp_path, "Training/{a,b}", "Testing/{a,b}", "Training/a/@eaDir")
    for name, data in formats().items():
        (tmp_path / "Training/a" / name).write_bytes(data)
    assert count_images(f"folder:{tmp_path}", 0.1) == len(opened(tmp_path).train) == 4 + len(formats())


# --- names and links -------------------------------------------------------------------------------------------------


def test_two_spellings_of_one_name_are_one_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    tree(tmp_path, f"train/{{{composed},dog}}", f"val/{{{apart},dog}}", f"train/{apart}")
    source = opened(tmp_path)
    assert source.classes == (composed, "dog")
    assert np.bincount(source.train.labels).tolist() == [4, 2]
    assert [source.val.read(i) for i in range(4)] == [PNG] * 4


def test_a_class_that_only_validates_is_named(tmp_path):
    refused_text = "class 'c' is in"
    with pytest.raises(ValueError, match=refused_text):
        opened(tree(tmp_path, "train/{a,b}", "val/{a,c}"))


def test_links_in_a_circle_are_read_once(tmp_path):
    tree(tmp_path, "{cat,dog}", "cat/deep")
    for link, target in {
        "cat/self": ".", "cat/root": "..", "cat/deep/up": "..", "dog/deep": "../cat/deep", "all": ".",
        "dog/loop": "loop", "outside": "..",
    }.items():  # fmt: skip
        (tmp_path / link).symlink_to(target)
    left = LeftOut()
    classes = list_classes("", tmp_path, left)
    assert {name: len(files) for name, files in classes.items()} == {"cat": 4, "dog": 6}
    assert max(path.count("/") for files in classes.values() for path in files) == 3
    assert {"cat/self", "cat/root", "cat/deep/up", "all", "outside"} <= left.loops
    assert opened(tmp_path).classes == ("cat", "dog")


def test_many_links_between_folders_do_not_multiply(tmp_path):
    names = "abcdefghij"
    tree(tmp_path, f"{{{','.join(names)}}}", count=1)
    for one, other in itertools.permutations(names, 2):
        (tmp_path / one / f"to_{other}").symlink_to(tmp_path / other)
    assert len(list(images_in(tmp_path / "a", "a"))) == 10


# --- classes and counts ----------------------------------------------------------------------------------------------


def made(*counts: int) -> Source:
    labels = np.repeat(np.arange(len(counts)), counts)
    split = Arrays(labels, np.zeros((len(labels), 1, 1, 1), np.uint8))
    return Source("made", tuple("abcdefg"[: len(counts)]), split, split, 1, 1)


def test_classes_and_counts_are_said_with_the_smallest_and_the_largest():
    assert class_notes(made(20, 1000, 30)) == ("3 classes of 20 (a) to 1,000 (b) training images",)
    assert class_notes(made(20, 20)) == ("2 classes of 20 training images",)


def test_a_small_class_and_a_lopsided_set_are_warned_of():
    _, small = class_notes(made(10, 9, 12))
    assert small.startswith("warning: 1 of 3 classes have fewer than 10 training images, b has 9")
    assert len(class_notes(made(10, 500))) == 1
    _, lopsided = class_notes(made(10, 501))
    assert lopsided.startswith("warning: b has 50 times as many training images as a")


def test_a_run_says_and_records_how_its_data_was_read(tmp_path):
    photos = tree(tmp_path / "photos", "Training/{a,b}", "Testing/{a,b}", "Training/@eaDir", count=10)
    (photos / "Training/a/notes.txt").write_text("these are not pixels")
    (photos / "Testing/b/3.png").write_bytes(PNG[:40])
    base = recipes.get("vit-digits").config()
    data = replace(base.data, source=f"folder:{photos}", batch_size=4, workers=0)
    config = replace(base, steps=1, optim=replace(base.optim, warmup_steps=0), data=data)
    run = RunDir.create(tmp_path / "runs", "r")
    runtime = Runtime(torch.device("cpu"), torch.float32)
    first, *_, last = list(fit(config, run, runtime, *prepare(config, runtime)))
    counts = "2 classes of 10 training images"
    assert counts in start_lines(config, first)
    assert json.loads((run.path / "provenance.json").read_text())["data"] == [
        f"{photos}: trains on Training, validates on Testing (there is no other validation folder)",
        "left out: 1 .txt (files that no decoder reads); folders @eaDir",
        counts,
    ]
    assert last.notes == (f"left out 1 val image that cannot be read, listed in {run.bad_files}",)
