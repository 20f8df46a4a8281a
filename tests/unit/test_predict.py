"""Predictions on image files are those of the run's own evaluation; what is no image is named and costs no other."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samovar import cli
from samovar.config import Config, DataConfig, ModelConfig
from samovar.data.loader import eval_batches
from samovar.data.sources import open_source
from samovar.export import by_class, export
from samovar.export.predict import Predictor, find_images, open_predictor, predict
from tests.conftest import assert_refused
from tests.unit.made_run import made_run

CPU = torch.device("cpu")
ROUNDING = 1e-5  # float32, other batches: logits of some 1
CLASSES = ("cat", "dog [big]", "owl")


def refuse(path, reason):
    raise AssertionError(f"{path}: {reason}")


def save_photo(path, seed: int, mode: str = "RGB", **options) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 6 + seed, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize((60 + 7 * seed, 90)).convert(mode).save(path, **options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of photos of three classes in train and val, in the colour modes and turns that cameras write."""
    folder = tmp_path_factory.mktemp("photos")
    turned = Image.Exif()
    turned[0x0112] = 6
    for seed, label in enumerate(CLASSES):
        save_photo(folder / "train" / label / "0.png", seed)
        save_photo(folder / "val" / label / "turned.jpg", seed, exif=turned)
        save_photo(folder / "val" / label / "print.jpg", seed, mode="CMYK")
        save_photo(folder / "val" / label / "clear.png", seed, mode="RGBA")
        save_photo(folder / "val" / label / "grey.png", seed, mode="L")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run on the photos."""
    data = DataConfig(source=f"folder:{photos}", image_size=32, workers=0)
    config = Config(model=ModelConfig("vit-cifar-s8", mean=(0.3, 0.4, 0.5), std=(0.2,)), data=data)
    return made_run(tmp_path_factory.mktemp("runs"), config, classes=3, channels=3)


@pytest.fixture(scope="module")
def sigmoid_run(tmp_path_factory):
    """A run on digits under the sigmoid loss."""
    return made_run(tmp_path_factory.mktemp("runs"), Config(loss="sigmoid"), classes=10, channels=1)


def out(args: str, capsys) -> str:
    cli.main(["predict", *args.split()])
    return capsys.readouterr().out


# --- the same as evaluation ------------------------------------------------------------------------------------------


def test_files_of_the_validation_split_give_the_logits_of_evaluation(run, photos):
    data = DataConfig(source=f"folder:{photos}", image_size=32, workers=0)
    source = open_source(data)
    predictor = open_predictor(str(run.path), device="cpu")
    seen = torch.cat([predictor.logits(b.images) for b in eval_batches(source.val, data, batch_size=5, device=CPU)])
    taken: list[torch.Tensor] = []

    def logits(images):
        taken.append(predictor.logits(images))
        return taken[-1]

    watched = Predictor("", predictor.interface, logits)
    files = find_images([str(photos / "val")])
    assert [os.fspath(path) for path in files] == [source.val.name(index) for index in range(len(source.val))]
    found = list(predict(watched, files, batch_size=7, on_bad=refuse))
    assert torch.allclose(torch.cat(taken), seen, atol=ROUNDING)
    assert len(dict.fromkeys(files)) == len(found) == 12
    assert seen.std() > 0.1


def test_a_digit_saved_as_a_file_gives_what_it_gave_as_an_array(sigmoid_run, tmp_path):
    val = open_source(DataConfig()).val
    image, _ = val.images[5], val.labels[5]
    Image.fromarray(image[0]).save(tmp_path / "digit.png")
    predictor = open_predictor(str(sigmoid_run.path), device="cpu")
    [found] = predict(predictor, [tmp_path / "digit.png"], top_k=10, on_bad=refuse)
    logits = predictor.logits(torch.from_numpy(image)[None] / 255)[0].double()
    assert found.indices == tuple(logits.argsort(descending=True).tolist())
    wanted = logits.sigmoid().sort(descending=True).values  # each class's own under the loss it was trained by
    assert torch.allclose(torch.tensor(found.probabilities, dtype=torch.float64), wanted, atol=ROUNDING)
    assert abs(sum(found.probabilities) - 1) > 0.01


def test_softmax_probabilities_of_all_classes_add_up_to_one(run, photos):
    predictor = open_predictor(str(run.path), device="cpu")
    [found] = predict(predictor, [photos / "val" / "cat" / "grey.png"], top_k=99, on_bad=refuse)
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-12)  # float64
    assert list(found.probabilities) == sorted(found.probabilities, reverse=True)
    assert found.classes == tuple(CLASSES[index] for index in found.indices)


def test_a_folder_exported_to_timm_predicts_as_the_run(run, photos, tmp_path):
    copy = export(str(run.path), "timm", output=tmp_path / "copy")
    files = find_images([str(photos / "val" / "owl")])
    mine, theirs = (
        list(predict(open_predictor(str(each), device="cpu"), files, on_bad=refuse)) for each in (run.path, copy)
    )
    assert [each.classes for each in mine] == [each.classes for each in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=ROUNDING)


# --- what is written -------------------------------------------------------------------------------------------------


def test_json_is_an_object_a_line(run, photos, capsys):
    lines = out(f"{run.path} {photos}/val/owl --json --top-k 2 --device cpu", capsys).splitlines()
    found = [json.loads(line) for line in lines]
    assert [each["image"] for each in found] == sorted(map(str, (photos / "val" / "owl").iterdir()))
    best = found[0]["predictions"]
    assert len(best) == 2
    assert best[0]["probability"] >= best[1]["probability"] > 0
    assert CLASSES[best[0]["index"]] == best[0]["class"]


def test_csv_has_a_row_an_image_in_a_file_or_on_stdout(run, photos, tmp_path, capsys):
    printed = out(f"{run.path} {photos}/val/cat --csv - --top-k 3 --device cpu", capsys)
    rows = list(csv.reader(printed.splitlines()))
    assert rows[0] == ["image", "class1", "probability1", "class2", "probability2", "class3", "probability3"]
    assert len(rows) == 5
    assert sum(float(cell) for cell in rows[1][2::2]) == pytest.approx(1, abs=1e-5)  # six digits
    said = out(f"{run.path} {photos}/val/cat --csv {tmp_path}/p.csv --top_k=3 --device cpu", capsys)
    assert said == f"predictions: {tmp_path}/p.csv\n"
    assert (tmp_path / "p.csv").read_text() == printed


def test_the_table_shows_names_as_they_are(run, photos, capsys):
    table = out(f"{run.path} {photos}/val/owl/grey.png --device cpu", capsys)
    assert "dog [big]" in table
    assert "probabilities by softmax" in table


def test_a_folder_with_classes_as_subfolders_gives_the_accuracy_and_its_path_is_said_once(run, photos, capsys):
    lines = out(f"{run.path} {photos}/val --csv - --top-k 1 --device cpu", capsys).splitlines()[1:]
    rows = list(csv.reader(lines))
    right = sum(f"/{label}/" in image for image, label, _ in rows)
    table = out(f"{run.path} {photos}/val --device cpu", capsys)
    expected = f"accuracy: {100 * right / 12:.2f} % (95 % interval"
    assert expected in table
    assert f"{right} of 12 images in subfolders of their class" in table
    assert " owl/grey.png " in table
    cli.main(["predict", str(run.path), f"{photos}/val", "--json", "--device", "cpu"])
    said = capsys.readouterr()
    assert all(json.loads(line) for line in said.out.splitlines())
    assert expected in said.err
    assert "accuracy" not in out(f"{run.path} {photos}/val/owl --device cpu", capsys), "no subfolders"


def test_images_are_copied_by_class_and_nothing_is_replaced(run, photos, tmp_path, capsys):
    args = f"{run.path} {photos}/val --csv - --top-k 1 --device cpu --copy-to {tmp_path}/sorted"
    rows = list(csv.reader(out(args, capsys).splitlines()))[1:]
    files = sorted(path for path in (tmp_path / "sorted").rglob("*") if path.is_file())
    assert len(files) == 12
    for image, label, _ in rows:
        content = Path(image).read_bytes()
        assert content in [file.read_bytes() for file in files if file.parent.name == label]
    before = {file: file.read_bytes() for file in files}
    cli.main(["predict", *args.split()])
    assert "copied: 0 images" in (said := capsys.readouterr().err)
    assert "; 12 were there already" in said
    assert {path: path.read_bytes() for path in (tmp_path / "sorted").rglob("*") if path.is_file()} == before


def test_the_normalization_of_a_model_that_is_no_run_is_said_with_its_origin(run, photos, tmp_path, capsys):
    export(str(run.path), "timm", output=tmp_path / "copy")
    cli.main(["predict", str(tmp_path / "copy"), f"{photos}/val/owl/grey.png", "--device", "cpu"])
    line = f"images are normalized with mean 0.3 0.4 0.5, std 0.2 0.2 0.2: as {tmp_path}/copy/config.json says"
    assert f"samovar: {line}\n" in capsys.readouterr().err
    cli.main(["export", str(tmp_path / "copy"), "--format", "torch", "--output", str(tmp_path / "again")])
    assert f"samovar: {line}\n" in capsys.readouterr().err


def test_names_of_classes_are_safe_as_folders():
    names = ("a/b", "..", ".git", "dog [big]", "")
    assert [by_class.folder_name(each) for each in names] == ["a_b", "_", "_git", "dog [big]", "_"]


def test_folders_are_searched_and_patterns_opened_and_each_file_is_taken_once(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert len(find_images(["val"])) == 12
    assert len(find_images(["val/**/grey.png"])) == 3
    owl = find_images(["val/owl/*.jpg", "val/owl"])
    assert [str(path) for path in owl] == [
        f"val/owl/{name}" for name in ("print.jpg", "turned.jpg", "clear.png", "grey.png")
    ]


# --- bad input -------------------------------------------------------------------------------------------------------


def test_what_is_no_image_is_named_and_the_others_are_predicted(run, photos, tmp_path, capsys):
    (tmp_path / "a.jpg").write_text("no image")
    whole = (photos / "val" / "owl" / "clear.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.png").write_bytes(whole)
    with pytest.raises(SystemExit) as caught:
        cli.main(["predict", str(run.path), str(tmp_path), "--json", "--device", "cpu", "--batch-size", "1"])
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert [json.loads(line)["image"] for line in said.out.splitlines()] == [str(tmp_path / "c.png")]
    first, second = said.err.splitlines()
    assert first == f"samovar: {tmp_path}/a.jpg cannot be read: no image format that Pillow knows"
    assert second.startswith(f"samovar: {tmp_path}/b.png cannot be read: ")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("predict", "predict needs a run folder or a model, and images; see `samovar predict --help`"),
        ("predict RUN", "predict needs images"),
        ("predict RUN nowhere.jpg", "there is no image nowhere.jpg; give files, folders, or patterns"),
        ("predict RUN empty", "empty holds no images; known endings: .jpg"),
        ("predict RUN PHOTOS --top-k 0", "--top-k 0 is out of range; give a whole number, 1 or more"),
        ("predict RUN PHOTOS --topk 2", "unknown flag --topk; did you mean --top-k?"),
        ("predict RUN PHOTOS --json --csv -", "--json and --csv exclude each other"),
        ("predict RUN PHOTOS --csv empty", "cannot write to --csv empty: Is a directory; give another file"),
        ("predict RUN PHOTOS --device cuda:99", "--device cuda:99 asks for GPU 99"),
        ("predict RUN PHOTOS --copy-to b.txt", "--copy-to b.txt is a file; give a folder"),
        ("predict RUN PHOTOS --checkpoint 9", "--checkpoint 9 is not there; give best, last or one of step-3"),
        ("predict nowhere PHOTOS", "nowhere is no run folder, no file and no timm model"),
        ("predict x.pt2 PHOTOS", "x.pt2 is a program of torch.export, which is not opened here"),
        ("predict x.onnx PHOTOS", "x.onnx cannot be run by onnxruntime"),
    ],
)
def test_bad_input_is_one_line(args, line, run, photos, capsys, tmp_path, monkeypatch):
    if "onnx" in args:
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "b.txt").touch()
    (tmp_path / "x.onnx").write_text("no network")
    assert_refused(args.replace("RUN", str(run.path)).replace("PHOTOS", f"{photos}/val/owl"), line, capsys)
