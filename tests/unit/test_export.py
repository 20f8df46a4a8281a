"""Exported copies predict as the original does, in programs that know nothing of samovar; else none is kept."""

import json
import math
import os
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import samovar
from samovar import config as configs
from samovar.config import Config, DataConfig, ModelConfig, SamConfig
from samovar.export import export, folder, timm_copy
from samovar.export.onnx_file import open_session, run
from samovar.export.original import Original, compare
from samovar.export.preprocessing import Interface, interface_of, read_image, resize_side, to_dict
from samovar.export.program import traced
from samovar.models.open import Opened, open_model
from samovar.runs.records import Record
from tests.conftest import assert_refused
from tests.unit.made_run import drawn, made_run

DIGITS = Config(model=ModelConfig("vit-digits", mean=(0.3,), std=(0.2,)))
EQUAL = 1e-5  # the same operations in the same library, in float32 with logits of some 1


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of digits with two checkpoints."""
    return made_run(tmp_path_factory.mktemp("runs"), DIGITS, classes=10, channels=1, steps=(3, 5))


def original(name: str, size: int, channels: int, mean=(0.3,), std=(0.2,)) -> Original:
    config = Config(model=ModelConfig(name, "library", mean=mean, std=std), data=DataConfig(image_size=size))
    model = drawn(config, classes=7, channels=channels)
    classes = tuple("abcdefg")
    opened = Opened(name, model, config.model, size, channels, 7, classes, None, ())
    return Original(name, opened, interface_of(opened), None, 0, name)


def logits_of(copy, images, mean=(0.3,), std=(0.2,)):
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    with torch.no_grad():
        return copy.eval()((images - mean) / std)


# --- timm ------------------------------------------------------------------------------------------------------------

PER_CHANNEL = (0.1, 0.4, 0.7), (0.2, 0.3, 0.4)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "size", "channels", "architecture"),
    [("vit-digits", 8, 1, "vit_base_patch16_224"), ("vit-cifar-s8", 32, 3, "vit_base_patch16_224"),
     ("vit-s32-gap", 32, 3, "vit_small_patch32_224"),
     ("resnet50-bn", 32, 3, "resnet50"), ("convnext_atto", 32, 3, "convnext_atto")],
)  # fmt: skip
def test_timm_opens_the_folder_and_gives_the_same_logits(name, size, channels, architecture, tmp_path):
    mean, std = PER_CHANNEL if channels == 3 else ((0.3,), (0.2,))
    made = original(name, size, channels, mean, std)
    path = folder.write(made, "timm", tmp_path / "copy")
    copy = timm.create_model(f"local-dir:{path}", pretrained=True)
    images = torch.rand(3, channels, size, size)
    with torch.no_grad():
        expected = made.opened.model(images)
    assert torch.allclose(logits_of(copy, images, mean, std), expected, atol=EQUAL * float(expected.abs().max()))
    assert expected.std() > 0.01
    told = timm.data.resolve_model_data_config(copy)
    assert (told["input_size"], told["mean"], told["std"]) == ((channels, size, size), list(mean), list(std))
    assert copy.pretrained_cfg["label_names"] == list("abcdefg")
    assert copy.num_classes == 7
    assert json.loads((path / "config.json").read_text())["architecture"] == architecture


def test_timm_takes_the_weights_by_pretrained_cfg_overlay_as_well(tmp_path):
    made = original("vit-cifar-s8", 32, 3)
    path = folder.write(made, "timm", tmp_path / "copy")
    config = json.loads((path / "config.json").read_text())
    overlay = {"file": str(path / "model.safetensors"), **config["pretrained_cfg"]}
    copy = timm.create_model(
        config["architecture"], pretrained=True, pretrained_cfg_overlay=overlay, **config["model_args"]
    )
    assert compare(made, lambda images: logits_of(copy, images)) <= EQUAL


def test_an_exported_folder_opens_here_as_what_it_was(digits, tmp_path):
    path = export(str(digits.path), "timm", output=tmp_path / "copy")
    again, before = open_model(str(path)), open_model(str(digits.path))
    images = torch.rand(2, 1, 8, 8)
    assert torch.allclose(again.model(images), before.model(images), atol=EQUAL)
    assert interface_of(again) == interface_of(before)
    assert export(str(path), "timm", output=tmp_path / "copy of the copy").is_dir()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("mixer-digits", "its Mixers take no tanh GELU there"), ("resnet-digits", "no standardized kernels"),
     ("resnet-digits-bn", "a plain stem only for 64 channels"), ("tests.unit.test_export:own_network", "")],
)  # fmt: skip
def test_what_timm_cannot_build_from_json_is_refused_and_the_other_formats_named(name, reason, tmp_path):
    with pytest.raises(ValueError, match="is no architecture of timm") as caught:
        folder.write(original(name, 8, 1), "timm", tmp_path / "copy")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("give --format torch or --format onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def own_network(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))


def test_a_copy_whose_logits_differ_is_not_kept_and_an_earlier_one_stays(digits, tmp_path, monkeypatch):
    path = export(str(digits.path), "timm", output=tmp_path / "copy")
    before = {each.name: each.read_bytes() for each in path.iterdir()}
    monkeypatch.setattr(timm_copy, "_activation", lambda layer: "relu")
    with pytest.raises(ValueError, match="its logits differ by"):
        export(str(digits.path), "timm", output=path)
    assert {each.name: each.read_bytes() for each in path.iterdir()} == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [8, 32, 64, 100, 224])
def test_timm_prepares_a_photo_as_evaluation_does(size, tmp_path):
    waves = (torch.linspace(0, 80, 400).sin() * 127 + 128).to(torch.uint8)  # a pixel off is 20 levels at any size
    down, across = waves[:, None].expand(400, 300), waves[None, :300].expand(400, 300)
    # 3:4, so that no side and no margin ends in a half, which timm rounds another way: a crop is then a pixel off
    Image.fromarray(torch.stack([down, across, 255 - down], -1).numpy()).save(tmp_path / "photo.png")
    for whole in (False, True):
        interface = Interface(("a", "b"), size, 3, whole, "softmax")
        share, mode = timm_copy.crop_pct(interface), "squash" if whole else "center"
        assert math.floor(size / share) == resize_side(interface)
        transform = timm.data.create_transform(
            (3, size, size), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear", crop_pct=share, crop_mode=mode
        )
        theirs = transform(Image.open(tmp_path / "photo.png")) * 255
        difference = theirs - read_image(tmp_path / "photo.png", interface)
        assert difference.abs().max() <= 2  # Pillow and torch round to whole levels after each axis


# --- torch, ONNX -----------------------------------------------------------------------------------------------------


@pytest.mark.costly
@pytest.mark.parametrize("name", ["mixer-digits", "resnet-digits", "tests.unit.test_export:own_network"])
def test_a_traced_program_gives_the_same_logits_for_batches_of_any_size(name):
    made = original(name, 8, 1)
    module = traced(made).module()
    assert compare(made, module) <= EQUAL
    with pytest.raises(ValueError, match="its logits differ by"):
        compare(made, lambda images: module(images) + 0.01)
    with pytest.raises(ValueError, match="its logits differ by nan"):
        compare(made, lambda images: module(images) * math.nan)


def test_a_network_that_cannot_be_traced_is_refused_in_a_line(tmp_path):
    made = original("vit-digits", 8, 1)
    made.opened.model.body.register_forward_pre_hook(lambda body, images: None if images[0].sum() > 0 else images)
    with pytest.raises(ValueError, match="cannot be traced for batches of any size") as caught:
        folder.write(made, "torch", tmp_path / "copy")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["resnet-digits", "mixer-digits"])  # a ViT is in tests/e2e/test_export.py
def test_onnxruntime_gives_the_same_logits_and_the_file_says_what_it_takes(name, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    made = original(name, 8, 1)
    path = folder.write(made, "onnx", tmp_path / "copy")
    session = open_session(path / "model.onnx")
    assert [each.shape[0] for each in (*session.get_inputs(), *session.get_outputs())] == ["batch", "batch"]
    assert compare(made, lambda images: run(session, images)) <= 1e-4
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == list("abcdefg")
    assert said["input_range"] == "[0, 1]"
    assert json.loads(said["samovar"]) == to_dict(made.interface) | {"classes": list("abcdefg")}
    assert sorted(each.name for each in path.iterdir()) == ["README.md", "model.onnx"]


def test_absent_packages_are_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"ONNX needs the package onnx; install it by `pip install samovar\[onnx\]`"):
        folder.write(original("vit-digits", 8, 1), "onnx", tmp_path / "copy")


# --- the run it is of ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("which", "step"), [("best", 5), ("last", 5), ("step-3", 3), ("3", 3), ("step-00000003", 3)])
def test_the_checkpoint_that_is_asked_for_is_exported(which, step, digits, tmp_path):
    path = export(str(digits.path), "timm", output=tmp_path / "copy", checkpoint=which)
    copy = timm.create_model(f"local-dir:{path}", pretrained=True)
    wanted = drawn(DIGITS, classes=10, channels=1, seed=step)
    assert torch.equal(copy.pos_embed, wanted.body.pos_embed)


def test_the_card_says_how_good_how_flat_and_how_trained_but_not_where_files_are(tmp_path):
    data = DataConfig(source="folder:/home/somebody/private/photos", root=tmp_path, image_size=8)
    config = replace(DIGITS, data=data, sam=SamConfig(rho=0.07), output=tmp_path, init="/home/somebody/weights.npz")
    made = made_run(tmp_path, config, classes=2, channels=3)
    where = {"split": "val", "step": 3}
    protocol = {"loss": "softmax", "images": 100}
    made.append(
        Record("val/accuracy", 0.9, "1", n=50, where=where),
        Record("val/accuracy", 0.1, "1", n=50, where=where | {"step": 2}),
        Record("hessian/lambda_max", 12.34, residual=0.01, where=where | {"split": "train"}, settings=protocol),
        Record("hessian/lambda_max", 99.0, where=where | {"block": "blocks.0"}),
    )
    card = (export(str(made.path), "timm", title="My birds") / "README.md").read_text()
    assert card.startswith(
        "---\nlicense: unknown\ntags:\n- image-classification\n- samovar\n"
        "- timm\nlibrary_name: timm\n---\n\n# My birds\n"
    )
    assert "accuracy: 90.00% (95 % interval 78.64% to 95.65%) on 50 val images" in card  # Wilson's, of 45 in 50
    assert "12.34 (residual 0.01); softmax loss on 100 train images" in card
    assert "--sam.rho 0.07" in card
    assert "folder:photos" in card
    assert "somebody" not in card
    assert str(tmp_path) not in card


def test_a_card_without_records_says_what_was_not_measured(digits, tmp_path):
    card = (export(str(digits.path), "timm", output=tmp_path / "copy") / "README.md").read_text()
    assert "accuracy: not measured" in card
    assert "not measured (`samovar measure RUN hessian`)" in card


@pytest.mark.parametrize("kind", ["timm", "torch"])
def test_files_have_the_mode_of_the_umask_and_the_card_says_pixels_once(kind, digits, tmp_path, capsys):
    before = os.umask(0o027)
    try:
        path = export(str(digits.path), kind, output=tmp_path / "copy", license="mit")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o640}
    card = (path / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert card.count("[0, 1]") == 1
    assert ("mean 0.3, std 0.2" in card) == (kind == "timm")
    assert "normalized with" not in capsys.readouterr().err, "a run knows its normalization"


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("export", "export needs one run folder or model; see `samovar export --help`"),
        ("export RUN other --format timm", "export needs one run folder or model; 2 were given"),
        ("export RUN", "export needs --format; give one of: timm, onnx, torch"),
        ("export RUN --format jax", "--format jax is unknown; give one of: timm, onnx, torch"),
        ("export RUN --fromat timm", "unknown flag --fromat; did you mean --format?"),
        ("export RUN --format", "--format needs one of: timm, onnx, torch"),
        ("export RUN --format timm --checkpoint 4", "4 is not there; give best, last or one of step-3, step-5"),
        ("export RUN --format timm --checkpoint init", "--checkpoint init is not there; give best, last or one of"),
        ("export RUN --format timm --output RUN", "holds arrays, which no earlier export wrote; give another folder"),
        ("export RUN --format timm --output RUN/config.json", "config.json is a file; give a folder"),
        ("export RUN --format timm --output /proc/no/where", "cannot write to --output /proc/no/where"),
        ("export nowhere --format timm", "nowhere is no run folder, no file and no timm model"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(args, line, digits, capsys):
    before = sorted(digits.path.rglob("*"))
    assert_refused(args.replace("RUN", str(digits.path)), line, capsys)
    assert sorted(digits.path.rglob("*")) == before


def test_a_run_without_a_checkpoint_is_refused(tmp_path, capsys):
    made = made_run(tmp_path, DIGITS, classes=10, channels=1, steps=())
    configs.save(DIGITS, made.config_path)
    assert_refused(f"export {made.path} --format timm", "has no checkpoint yet", capsys)


@pytest.mark.costly
@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_what_is_shared_names_no_folder_of_this_machine(kind, tmp_path):
    pytest.importorskip("onnxscript" if kind == "onnx" else "torch")
    pytest.importorskip("onnxruntime" if kind == "onnx" else "torch")
    folder.write(original("vit-digits", 8, 1), kind, tmp_path / "copy")
    contents = []
    for path in (tmp_path / "copy").iterdir():
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        contents.append(path.read_bytes())
    here = [str(Path(timm.__file__).parents[1]).encode(), str(Path(samovar.__file__).parent).encode()]
    assert not [name for name in here for content in contents if name in content]
