"""`samovar corrupt`: a tree of copies, the same for the same image, done once."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samovar.config import CorruptConfig
from samovar.data.corrupt_folder import corrupt_folder
from samovar.data.corruptions import CORRUPTIONS

SMALL = CorruptConfig(corruptions=("fog", "gaussian_noise"), severities=(2,), workers=0)


def write(path: Path, seed: int, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path) -> Path:
    for number in range(3):
        write(tmp_path / "in" / f"class{number % 2}" / f"{number}.png", number)
    return tmp_path / "in"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_every_image_is_there_under_every_corruption_and_severity(data, tmp_path):
    assert corrupt_folder(data, tmp_path / "out", SMALL) == 3
    assert sorted(tree(tmp_path / "out")) == sorted(
        f"{name}/2/class{number % 2}/{number}.png" for name in SMALL.corruptions for number in range(3)
    )
    with Image.open(tmp_path / "out" / "fog" / "2" / "class0" / "0.png") as image:
        assert image.size == (20, 16)


def test_workers_change_nothing_and_another_image_changes_no_other(data, tmp_path):
    corrupt_folder(data, tmp_path / "one", SMALL)
    write(data / "class0" / "00.png", 9)
    corrupt_folder(data, tmp_path / "two", CorruptConfig(corruptions=SMALL.corruptions, severities=(2,), workers=2))
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert len(two) == len(one) + 2
    assert all(two[name] == each for name, each in one.items())


def test_copies_that_are_there_are_not_made_again(data, tmp_path):
    corrupt_folder(data, tmp_path / "out", SMALL)
    done = tmp_path / "out" / "fog" / "2" / "class0" / "0.png"
    done.write_bytes(b"kept")
    (tmp_path / "out" / "fog" / "2" / "class1" / "1.png").unlink()
    corrupt_folder(data, tmp_path / "out", SMALL)
    assert done.read_bytes() == b"kept"
    assert (tmp_path / "out" / "fog" / "2" / "class1" / "1.png").exists()
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_images_are_framed_as_in_evaluation_when_a_size_is_asked_for(data, tmp_path):
    corrupt_folder(data, tmp_path / "out", CorruptConfig(("contrast",), (1,), size=12, workers=0))
    with Image.open(tmp_path / "out" / "contrast" / "1" / "class0" / "0.png") as image:
        assert image.size == (12, 12)


def test_an_unreadable_image_is_named_and_left_out(data, tmp_path, capsys):
    (data / "class0" / "broken.jpg").write_bytes(b"no image")
    assert corrupt_folder(data, tmp_path / "out", SMALL) == 3
    assert "left out class0/broken.jpg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data, out: (data / "nothing", out, SMALL), "is no folder"),
        (lambda data, out: (out, out / "x", SMALL), "no images in"),
        (lambda data, out: (data, data / "out", SMALL), "lies within"),
        (lambda data, out: (data, out, CorruptConfig(("fogg",))), "--corruptions fogg is unknown"),
    ],
)
def test_bad_input_is_refused_in_one_line(data, tmp_path, change, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=words):
        corrupt_folder(*change(data, tmp_path / "empty"))


def test_two_images_that_would_share_a_name_are_refused(data, tmp_path):
    Image.new("RGB", (4, 4)).save(data / "class0" / "0.jpg")
    with pytest.raises(ValueError, match="would both be written"):
        corrupt_folder(data, tmp_path / "out", SMALL)


def test_only_images_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 1 images"):
        corrupt_folder(tmp_path / "in", tmp_path / "out", SMALL)
    assert len(CORRUPTIONS) == 19


def test_copies_of_another_seed_or_size_are_not_mixed_in(data, tmp_path):
    corrupt_folder(data, tmp_path / "out", SMALL)
    for other in (CorruptConfig(("fog",), (2,), seed=1), CorruptConfig(("fog",), (2,), size=12)):
        with pytest.raises(ValueError, match="holds copies made with"):
            corrupt_folder(data, tmp_path / "out", other)
    assert corrupt_folder(data, tmp_path / "out", CorruptConfig(("fog",), (3,), workers=0)) == 3


def test_a_name_that_is_not_utf8_is_an_image_like_any_other(data, tmp_path):
    source = data / "class0" / "0.png"
    source.rename(os.fsdecode(os.fsencode(data / "class0") + b"/caf\xe9.png"))
    assert corrupt_folder(data, tmp_path / "out", SMALL) == 3
    assert len(tree(tmp_path / "out")) == 6
