"""Models that are used as they are: opened with their classifier, from wherever their weights lie."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import GELUTanh
from timm.models import save_for_hf

from samovar import config as configs
from samovar.config import Config, MeasureConfig, ModelConfig
from samovar.export import export
from samovar.export.predict import open_predictor
from samovar.measure import command
from samovar.measure.subject import open_subject
from samovar.models.factory import Classifier, create
from samovar.models.open import open_model
from samovar.models.read import read_init
from samovar.runs import checkpoint
from samovar.runs.records import RunDir
from tests.conftest import assert_refused
from tests.unit.short_run import CPU, short_run

IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(name: str, size: int, *, channels: int = 3, classes: int = 10) -> Classifier:
    torch.manual_seed(0)
    config = ModelConfig(name, "library")
    return create(config, num_classes=classes, image_size=size, channels=channels).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDir:
    """A run with one checkpoint, which keeps an average."""
    config = Config(model=ModelConfig("vit-digits", dropout=0.1, mean=(0.3,), std=(0.2,)))
    folder = RunDir.create(tmp_path_factory.mktemp("runs"), "averaged")
    configs.save(config, folder.config_path)
    state = network("vit-digits", 8, channels=1).body.state_dict()
    average = {name: value * 0.9 for name, value in state.items()}
    checkpoint.save(folder.checkpoints, checkpoint.Checkpoint(4, state, average, {}), "print")
    return folder


@pytest.fixture
def timm_folder(tmp_path):
    """A tiny ViT in the layout of timm's models on a hub."""
    torch.manual_seed(0)
    body = timm.create_model("test_vit", num_classes=7, img_size=32, act_layer="gelu_tanh").eval()
    facts = {"label_names": list("abcdefg"), "num_classes": 7, "model_args": {"act_layer": "gelu_tanh"}}
    facts["pretrained_cfg"] = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    save_for_hf(body, tmp_path / "out", model_config=facts, safe_serialization=True)
    return tmp_path / "out", body


# --- what can be opened ----------------------------------------------------------------------------------------------


def test_a_run_opens_at_its_best_checkpoint_with_the_names_of_its_classes(run) -> None:
    opened = open_model(str(run.path))
    kept = checkpoint.load(checkpoint.choose(run.checkpoints, "best"))
    assert all(torch.equal(value, kept.ema[name]) for name, value in opened.model.body.state_dict().items())
    assert opened.model.mean.item() == pytest.approx(0.3)
    assert (opened.image_size, opened.channels, opened.num_classes) == (8, 1, 10)
    assert opened.classes == tuple("0123456789")
    assert opened.data == configs.load(run.config_path).data
    assert "average of step-" in opened.notes[0]
    assert not opened.model.training


def test_a_run_whose_data_is_gone_opens_without_names(run, tmp_path) -> None:
    config = configs.load(run.config_path)
    (tmp_path / "checkpoints").symlink_to(run.checkpoints.absolute())
    gone = replace(config, data=replace(config.data, source=f"folder:{tmp_path}/gone"))
    configs.save(gone, tmp_path / "config.json")
    opened = open_model(str(tmp_path))
    assert opened.classes == ()
    assert "the names of its classes are not known" in opened.notes[-1]


@pytest.mark.parametrize(
    ("kept", "classes", "note"),
    [
        ('["tulip \\ud83c\\udf37", "b", "c", "d", "e", "f", "g", "h", "i", "\\udcff"]', "tulip \U0001f337", ""),
        ('["a", "b"]', None, "digits has 2 classes"),
        ("[1, 2]", None, "classes.json is damaged: it holds no list of names"),
        ("[", None, "classes.json is damaged: line 1: "),
    ],
)
def test_the_names_that_a_run_kept_come_before_those_of_its_data(kept, classes, note, run, tmp_path) -> None:
    (tmp_path / "checkpoints").symlink_to(run.checkpoints.absolute())
    (tmp_path / "config.json").symlink_to(run.config_path.absolute())
    (tmp_path / "classes.json").write_text(kept)
    opened = open_model(str(tmp_path))
    assert opened.classes == (tuple(json.loads(kept)) if classes else ())
    if classes:
        assert opened.classes[0] == classes
    else:
        assert note in opened.notes[-1]


def test_training_keeps_the_names_of_its_classes_and_a_resume_leaves_them(tmp_path) -> None:
    kept = short_run(tmp_path)
    assert kept.classes() == tuple("0123456789")
    kept.keep_classes(["others"])
    assert kept.classes() == tuple("0123456789")
    (tmp_path / "r" / "classes.json").unlink()
    assert kept.classes() == ()


def test_a_folder_in_timms_layout_is_the_network_that_timm_builds_of_it(timm_folder) -> None:
    folder, body = timm_folder
    opened = open_model(str(folder))
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    with torch.no_grad():
        assert torch.equal(opened.model(images), body((images - mean) / std))
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(opened.model.body(images), theirs(images))
    assert opened.classes == tuple("abcdefg")
    assert (opened.image_size, opened.config.name, opened.data) == (32, "test_vit", None)


def test_training_starts_from_a_folder_in_timms_layout_too(timm_folder) -> None:
    folder, body = timm_folder
    found = read_init(str(folder))
    assert found.model == ModelConfig("test_vit.r160_in1k", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert found.image_size == 32
    assert torch.equal(found.tensors["head.weight"], body.head.weight)


def test_weights_of_a_timm_name_can_be_put_in_a_network_of_ours(monkeypatch, tmp_path) -> None:
    real = timm.create_model
    small = {"embed_dim": 64, "depth": 4, "num_heads": 4, "img_size": 16, "patch_size": 4}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False: real(name, **small))
    opened = open_model("vit_base_patch16_224.sam_in1k", name="vit-digits", image_size=16)
    assert all(isinstance(block.mlp.act, GELUTanh) for block in opened.model.body.blocks)
    assert opened.model.mean.flatten().tolist() == [0.5] * 3
    assert opened.num_classes == 1000


def test_a_folder_that_timm_cannot_build_is_one_line(timm_folder) -> None:
    folder, _ = timm_folder
    found = json.loads((folder / "config.json").read_text())
    for change, line in (
        ({"architecture": "my_net"}, "timm cannot build the my_net of its config.json"),
        ({"model_args": {"legs": 4}}, "timm cannot build the test_vit"),
        ({"model_args": {"img_size": 32, "depth": 2}}, "blocks.2.attn.proj.bias is not known here"),
    ):
        (folder / "config.json").write_text(json.dumps(found | change))
        with pytest.raises(ValueError, match=line) as caught:
            open_model(str(folder))
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
    (folder / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    with pytest.raises(ValueError, match="names the architecture but no num_classes"):
        open_model(str(folder))


def test_a_timm_name_opens_with_its_classifier_and_imagenets_words(monkeypatch) -> None:
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **rest: real(name, **rest))
    torch.manual_seed(1)
    opened = open_model("test_vit.r160_in1k")
    torch.manual_seed(1)
    with torch.no_grad():
        images = torch.rand(1, 3, 160, 160)
        torch.manual_seed(1)
        assert torch.equal(opened.model(images), real("test_vit").eval()((images - 0.5) / 0.5))
    assert opened.num_classes == len(opened.classes) == 1000
    assert opened.classes[0] == "tench, Tinca tinca"


@pytest.mark.parametrize("name", ["vit-digits", "mixer-digits", "resnet-digits"])
def test_a_file_opens_as_the_network_it_is_said_to_be_of(name, tmp_path) -> None:
    model = network(name, 8, channels=1, classes=7)
    save_file(model.body.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    opened = open_model(str(tmp_path / "w.safetensors"), name=name)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert torch.equal(opened.model(IMAGES), model(IMAGES))
    assert (opened.image_size, opened.channels, opened.num_classes) == (8, 1, 7)


def test_another_image_size_is_met_by_resizing(tmp_path) -> None:
    save_file(network("vit-digits", 8).body.state_dict(), tmp_path / "w.safetensors")
    opened = open_model(str(tmp_path / "w.safetensors"), name="vit-digits", image_size=16)
    assert opened.image_size == 16
    assert opened.notes[-1] == "position embeddings resized from 2 x 2 to 4 x 4"
    assert opened.model(torch.rand(1, 3, 16, 16)).shape == (1, 10)


# --- what cannot -----------------------------------------------------------------------------------------------------


def test_a_bare_file_asks_for_its_network_and_says_what_its_shapes_fit(tmp_path) -> None:
    model = network("vit-digits", 8)
    save_file(model.body.state_dict(), tmp_path / "w.safetensors")
    line = (
        r"w.safetensors: cannot tell which network these weights belong to; give --model NAME "
        r"\(its shapes are those of vit-digits"
    )
    with pytest.raises(ValueError, match=line):
        open_model(str(tmp_path / "w.safetensors"))
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"its 2 names \(a, b\) fit no ViT, Mixer or ResNet under timm's names"):
        open_model(str(tmp_path / "w.pth"))


def test_weights_of_another_network_or_without_a_classifier_are_one_line(tmp_path) -> None:
    model = network("vit-digits", 8)
    save_file(model.body.state_dict(), tmp_path / "w.safetensors")
    line = r"w.safetensors: \d+ weights do not fit vit-cifar \(cls_token is 1 x 1 x 64, here "
    with pytest.raises(ValueError, match=line):
        open_model(str(tmp_path / "w.safetensors"), name="vit-cifar")
    save_file({k: v for k, v in model.body.state_dict().items() if "head" not in k}, tmp_path / "w.safetensors")
    with pytest.raises(
        ValueError, match=r"its classifier layer \(head.weight, head.bias\) is missing among its 5\d names"
    ):
        open_model(str(tmp_path / "w.safetensors"), name="vit-digits")


def test_what_is_nothing_of_these_is_one_line(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"^resnet5O is no run folder, no file and no timm model with pretrained"):
        open_model("resnet5O")
    with pytest.raises(ValueError, match=r"is no run: it has no config.json"):
        open_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"gone.npz: no such file"):
        open_model(str(tmp_path / "gone.npz"))


# --- measured --------------------------------------------------------------------------------------------------------


def test_an_opened_file_is_measured_as_the_run_it_is_of(run, tmp_path) -> None:
    kept = checkpoint.load(checkpoint.choose(run.checkpoints, "best"))
    save_file(kept.ema, tmp_path / "w.safetensors")
    torch.save(kept.ema, tmp_path / "w.pth")
    config = MeasureConfig(model="vit-digits", split="val", batch_size=64)
    for name in ("w.safetensors", "w.pth"):
        subject = open_subject(str(tmp_path / name), config, CPU)
        subject.model.mean.fill_(0.3)  # a bare file does not tell its pixels
        subject.model.std.fill_(0.2)
        first = command.measure_once("accuracy", subject, config, RunDir.create(tmp_path, f"m-{name}"))[0]
        of_run = open_subject(str(run.path), replace(config, model=""), CPU)
        second = command.measure_once("accuracy", of_run, config, run)[0]
        assert (first.name, first.value, first.n) == (second.name, second.value, second.n)
        assert first.settings["weights"] == str(tmp_path / name)


def test_a_timm_name_is_measured_at_its_initialisation_unless_asked(monkeypatch) -> None:
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **rest: real(name, **rest))
    subject = open_subject("test_vit.r160_in1k", MeasureConfig(image_size=16), CPU)
    assert subject.settings["weights"] == "initialisation"
    line = (
        "test_vit.r160_in1k classifies images of 3 channels into 1000 classes, and digits has 1 and 10; give --source"
    )
    with pytest.raises(ValueError, match=line):
        open_subject("test_vit.r160_in1k", MeasureConfig(checkpoint="pretrained"), CPU)


def test_classes_in_another_order_are_refused(timm_folder, tmp_path) -> None:
    from PIL import Image

    folder, _ = timm_folder
    for label in "abcdefg":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "photos" / label / f"{index}.png")
    config = MeasureConfig(source=f"folder:{tmp_path}/photos")
    assert open_subject(str(folder), config, CPU).settings["model"] == "test_vit"
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | {"label_names": list("gfedcba")}))
    with pytest.raises(ValueError, match="have the same classes in another order"):
        open_subject(str(folder), config, CPU)


def test_flags_that_do_not_fit_the_subject_are_one_line(run, timm_folder, capsys) -> None:
    folder, _ = timm_folder
    assert_refused(f"measure {run.path} --model vit-digits", "is a run, which knows its network", capsys)
    assert_refused(f"measure {folder} --checkpoint init", "is no run and has no others", capsys)
    assert_refused("measure vit-digits --model vit-digits", "add --checkpoint pretrained", capsys)
    assert_refused("measure gone.npz", "gone.npz: no such file", capsys)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"architecture": "hf-hub:somebody/net"}, "lies outside of the folder and is not fetched"),
        ({"architecture": "https://host/net"}, "lies outside of the folder and is not fetched"),
        ({"architecture": "local-dir:/tmp/other"}, "lies outside of the folder and is not fetched"),
        ({"architecture": "../other/net"}, "lies outside of the folder and is not fetched"),
        ({"architecture": "os:getcwd"}, "lies outside of the folder and is not fetched"),
        ({"architecture": ["test_vit"]}, "lies outside of the folder and is not fetched"),
        ({"model_args": {"checkpoint_path": "/tmp/x.pth"}}, "gives timm checkpoint_path, which is no argument"),
        ({"model_args": {"pretrained": True}}, "gives timm pretrained, which is no argument"),
        ({"model_args": {"pretrained_cfg_overlay": {"url": "x"}}}, "gives timm pretrained_cfg_overlay"),
        ({"model_args": {"depth": 100_000}}, "depth 100000 in model_args is above 65,536"),
        (
            {"model_args": {"depth": 60_000}},
            r"timm cannot build the test_vit .*\(it would be far larger than its weights",
        ),
        ({"model_args": {"embed_dim": 60_000, "num_heads": 1}}, "it would be far larger than its weights"),
        ({"model_args": {"mlp_ratio": 1e300}}, "mlp_ratio 1e[+]300 in model_args is above"),
        ({"model_args": {"img_size": 10**9}}, "image_size 1000000000 is not within 1 to 4,096"),
        ({"model_args": 3}, "does not describe a network"),
        ({"model_args": {"num_classes": 10**12}}, "num_classes 1000000000000 is not within 1 to 1,000,000"),
        ({"model_args": {"num_classes": -1}}, "num_classes -1 is not within"),
        ({"label_names": ["a"]}, "names 1 of 7 classes"),
        ({"pretrained_cfg": {"mean": [0.1, 0.2], "std": [1.0]}}, "are not 1 or 3 finite numbers"),
        ({"pretrained_cfg": {"mean": [0.1], "std": [0.0]}}, "divides by a number that is not positive"),
        ({"pretrained_cfg": []}, "does not describe a network"),
    ],
)
def test_a_folder_of_somebody_fetches_nothing_and_stays_small(change, line, timm_folder, monkeypatch) -> None:
    folder, _ = timm_folder
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", lambda *args, **rest: 1 / 0)
    monkeypatch.setattr("timm.models._factory.load_model_config_from_path", lambda *args, **rest: 1 / 0)
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | change))
    with pytest.raises(ValueError, match=line) as caught:
        open_model(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_a_folder_can_be_put_in_a_network_that_is_named(timm_folder) -> None:
    folder, body = timm_folder
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | {"architecture": "hf-hub:somebody/net"}))
    with pytest.raises(ValueError, match="give .*/model.safetensors --model NAME"):
        open_model(str(folder))
    opened = open_model(f"{folder}/model.safetensors", name="test_vit", image_size=32)
    assert torch.equal(opened.model.body.head.weight, body.head.weight)


def test_an_interface_of_other_classes_than_the_networks_is_refused(run, tmp_path) -> None:
    export(str(run.path), "timm", output=tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"samovar": found["samovar"] | {"classes": ["one"]}}))
    with pytest.raises(ValueError, match="states 1 classes and 1 channels, its network has 10 and 1"):
        open_predictor(str(tmp_path / "out"))
