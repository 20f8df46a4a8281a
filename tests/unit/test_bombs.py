"""Files that ask for far more memory or time than they are, and files that are none, cost one line."""

import io
import json
import os
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samovar import config as configs
from samovar.config import Config, DataConfig
from samovar.data.decode import UnreadableImage, decode
from samovar.data.sources import open_source
from samovar.export.predict import find_images, open_predictor, predict
from samovar.models.open import open_model
from samovar.models.read import read
from samovar.models.tensor_files import read_tensors
from samovar.runs.json_files import Damaged, read_json
from tests.conftest import assert_refused
from tests.unit.made_run import made_run

SHAPE = (10**7, 10**6)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, "PNG")
    return file.getvalue()


# --- what is no file -------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """A folder of images in which pipes and a socket have the names of images."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}.png").write_bytes(png())
    os.mkfifo(tmp_path / "a" / "pipe.png")
    os.mkfifo(tmp_path / "b" / "pipe")
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "a" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket is short
        server.bind("b/socket.jpg")
        os.chdir(here)
    return tmp_path


def test_pipes_and_sockets_among_images_are_never_opened_and_are_counted(photos) -> None:
    source = open_source(DataConfig(source=f"folder:{photos}", val_share=0.34))
    assert len(source.train) + len(source.val) == 6
    line = "left out: 1 without an ending (files that no decoder reads); 3 pipes, sockets or devices named as images"
    assert line in source.notes


def test_an_image_that_becomes_a_pipe_is_a_bad_file(photos) -> None:
    source = open_source(DataConfig(source=f"folder:{photos}", val_share=0.34))
    name = Path(source.train.name(0))
    name.unlink()
    os.mkfifo(name)
    with pytest.raises(OSError, match="it is no regular file"):
        source.train.read(0)


def test_predict_names_a_pipe_and_goes_on(photos, tmp_path) -> None:
    run = made_run(tmp_path / "runs", Config(), classes=10, channels=1)
    predictor = open_predictor(str(run.path), device="cpu")
    bad: list[tuple[str, str]] = []
    images = [photos / "a" / "pipe.png", photos / "a" / "0.png"]
    found = list(predict(predictor, images, on_bad=lambda path, why: bad.append((path.name, why))))
    assert bad == [("pipe.png", "it is no regular file")]
    assert [each.image.name for each in found] == ["0.png"]
    assert len(find_images([str(photos)])) == 6


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.npz", "weights"])
def test_weights_that_are_a_pipe_are_refused(name, tmp_path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="is no regular file; give a file of weights"):
        read_tensors(tmp_path / name)


def test_settings_that_are_a_pipe_are_refused(tmp_path, capsys) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(Damaged, match="it is no regular file"):
        read_json(tmp_path / "config.json")
    assert_refused(f"train --config {tmp_path}/config.json", "it is no regular file", capsys)
    assert_refused(f"report {tmp_path}", "", capsys)


# --- what claims to be large -----------------------------------------------------------------------------------------


def test_a_jpeg_of_400_megapixels_is_unreadable_before_it_is_decoded() -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 20_000, 20_000)
    with pytest.raises(UnreadableImage, match="400000000 pixels"):
        decode(bytes(data))


def npz_of_shape(path: Path, shape: tuple[int, ...], name: str = "cls") -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", header.getvalue() + bytes(16))
    return path


def test_an_npz_that_claims_ten_million_million_numbers_is_refused(tmp_path) -> None:
    path = npz_of_shape(tmp_path / "x.npz", SHAPE)
    with pytest.raises(ValueError, match=r"x.npz cannot be read as .npz: it is damaged"):
        read(str(path))


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**27))
    with pytest.raises(ValueError, match=r"x.npz cannot be read \(its [\d,]+ bytes unpack to 134,217,728\)"):
        read(str(tmp_path / "x.npz"))


class Call:
    """Pickles as a call of a function of the file's choice."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def itself() -> dict:
    content: dict = {"weight": torch.zeros(2)}
    content["again"] = content
    return content


def laughs() -> dict:
    content: dict = {"weight": torch.zeros(2)}
    for _ in range(12):
        content = {str(number): content for number in range(10)}
    return content


def deep() -> dict:
    content: dict = {"weight": torch.zeros(2)}
    for _ in range(300):
        content = {"a": content}
    return content


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (itself, "nests its values too deeply, in itself"),
        (deep, "nests its values too deeply"),
        (laughs, "or far too many times"),
        (lambda: {"w": torch.zeros(1).expand(*SHAPE)}, "w claims 10,000,000,000,000 numbers that it does not hold"),
        (lambda: {"w": Call(list, Call(range, 10**12))}, "a range of 1,000,000,000,000 numbers"),
        (lambda: {"w": Call(np.ndarray, SHAPE)}, "cannot be read"),
    ],
)  # fmt: skip
def test_a_pth_that_never_ends_is_one_line(content, line, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("samovar.models.nests._MOST_VALUES", 20_000)
    torch.save(content(), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=line) as caught:
        open_model(str(tmp_path / "x.pth"), name="vit-digits")
    assert str(caught.value).startswith(f"{tmp_path}/x.pth")
    assert "\n" not in str(caught.value)


# --- what is deep ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "config.yaml", "config.toml"])
@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_settings_are_one_line(name, depth, tmp_path, capsys) -> None:
    text = {"json": f'{{"seed": {"[" * depth}{"]" * depth}}}', "yaml": f"seed: {'[' * depth}{']' * depth}\n"}
    suffix = name.rpartition(".")[2]
    (tmp_path / name).write_text(text.get(suffix, f"seed = {'[' * depth}{']' * depth}\n"))
    assert_refused(f"train --config {tmp_path}/{name}", f"{tmp_path}/{name}", capsys)


def test_a_yaml_whose_parts_stand_for_billions_is_one_short_line(tmp_path, capsys) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    text = "seed: &s " + "[" + "1" + "]\n"
    (tmp_path / "c.yaml").write_text("\n".join(lines) + "\n" + text)
    assert_refused(f"train --config {tmp_path}/c.yaml", "unknown setting 'a0'", capsys)
    nested = "\n".join(f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 'x'}]" for i in range(12))
    (tmp_path / "d.yaml").write_text(f"seed:\n{nested}\n")
    assert_refused(f"train --config {tmp_path}/d.yaml", "setting 'seed' is [", capsys)


def test_deep_json_of_a_run_is_refused_by_every_verb_in_one_line(tmp_path, capsys) -> None:
    run = made_run(tmp_path, Config(), classes=10, channels=1)
    deep = "[" * 100_000
    for name in ("classes.json", "provenance.json", "progress.json", "config.json"):
        (run.path / name).write_text(deep)
    for command in (f"show {run.path}", f"predict {run.path} {run.config_path}", f"train --resume {run.path}"):
        assert_refused(command, "config.json", capsys)
    configs.save(Config(), run.config_path)
    (run.checkpoints / "best.json").write_text(deep)
    assert_refused(f"predict {run.path} {run.config_path}", "best.json is damaged: it is nested too deeply", capsys)
    values = json.loads(run.config_path.read_text())
    assert values["recipe"] == Config().recipe
