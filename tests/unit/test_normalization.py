"""The normalization in front of a network that belongs to no run: who is asked, what is said and recorded."""

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torchvision.transforms import Normalize

from samovar import config as configs
from samovar.cli.measure import parse
from samovar.config import Config, DataConfig, MeasureConfig, ModelConfig
from samovar.measure import command
from samovar.measure.subject import open_subject
from samovar.models.factory import Classifier
from samovar.models.normalization import settle
from samovar.models.open import open_model
from samovar.runtime import Runtime
from samovar.train.fit import prepare
from tests.conftest import assert_refused

CPU = Runtime(torch.device("cpu"), torch.float32)
GRAY = MeasureConfig(images=20, image_size=8, workers=0)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def plain(channels: int = 1, num_classes: int = 10, image_size: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))


def of_timm() -> nn.Module:
    return timm.create_model("lcnet_035", num_classes=10, in_chans=1)


def wrapped() -> Classifier:
    return Classifier(plain(), (0.1,), (0.7,))


class Backbone(nn.Module):
    """A network of timm's under a head of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.backbone = nn.Linear(2, 2), timm.create_model("test_vit", num_classes=2)


class Buffers(nn.Module):
    """Normalizes in its own forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain(3)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("std", torch.ones(1, 3, 1, 1))


class LateLayer(nn.Module):
    """Defines the layer that normalizes after the others."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = plain(3), Normalize(*CIFAR)


class InputNormalization(nn.Module):
    """A layer that keeps its numbers under names of its own."""


class GaussianNoise(nn.Module):
    """A layer with a mean and a std that normalizes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.std = 0.0, 0.1


def with_(model: nn.Module, **attributes: object) -> nn.Module:
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def processor(**changes: object) -> SimpleNamespace:
    return SimpleNamespace(**{"image_mean": list(CIFAR[0]), "image_std": list(CIFAR[1])} | changes)


NONE = (0.0,), (1.0,)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple, str]] = {
    "timm": (lambda: timm.create_model("lcnet_035"), IMAGENET, "timm's pretrained_cfg"),
    "timm-inception": (
        lambda: with_(plain(3), default_cfg={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}),
        ((0.5,) * 3, (0.5,) * 3),
        "timm's default_cfg",
    ),
    "timm-inside": (Backbone, ((0.5,) * 3, (0.5,) * 3), "timm's pretrained_cfg"),
    "normalize-first": (lambda: nn.Sequential(Normalize(*CIFAR), plain(3)), NONE, "none is added"),
    "normalize-before-timm": (lambda: nn.Sequential(Normalize(*CIFAR), of_timm()), NONE, "none is added"),
    "normalize-parallel": (lambda: nn.DataParallel(nn.Sequential(Normalize(*CIFAR), plain(3))), NONE, "none is added"),
    "normalize-by-name": (lambda: nn.Sequential(InputNormalization(), plain(3)), NONE, "none is added"),
    "normalize-late": (LateLayer, NONE, "none is added"),
    "buffers": (Buffers, NONE, "none is added"),
    "noise": (lambda: nn.Sequential(GaussianNoise(), plain(3)), ((0.5,), (0.5,)), "assumed"),
    "hugging-face": (lambda: with_(plain(3), image_processor=processor()), CIFAR, "Hugging Face's"),
    "hugging-face-inside": (
        lambda: nn.Sequential(with_(plain(3), processor=SimpleNamespace(image_processor=processor()))),
        CIFAR,
        "Hugging Face's",
    ),
    "hugging-face-config": (lambda: with_(plain(3), config=processor()), CIFAR, "Hugging Face's"),
    "hugging-face-none": (
        lambda: with_(plain(3), image_processor=processor(do_normalize=False)),
        NONE,
        "Hugging Face's",
    ),
    "hugging-face-scale": (
        lambda: with_(plain(3), image_processor=processor(image_mean=1.0, image_std=1.0, rescale_factor=2 / 255)),
        ((0.5,), (0.5,)),
        "Hugging Face's",
    ),
    "batchnorm": (lambda: nn.Sequential(nn.BatchNorm2d(3), plain(3)), ((0.5,), (0.5,)), "assumed"),
    "silent": (lambda: plain(3), ((0.5,), (0.5,)), "assumed"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_network_is_asked_for_its_normalization(name) -> None:
    make, (mean, std), source = CASES[name]
    model, found = settle(make(), "my_model:trained", 3)
    assert (found.mean, found.std) == (pytest.approx(mean), pytest.approx(std))
    assert source in found.source
    assert "my_model:trained" in found.line
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(mean))
    torch.testing.assert_close(model.std.flatten(), torch.tensor(std))


@pytest.mark.oracle
def test_an_image_processor_beside_the_weights_is_found(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    assert "assumed" in settle(model, "mine", 3)[1].source
    told = {"image_processor_type": "ViTImageProcessor", "image_mean": CIFAR[0], "image_std": CIFAR[1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    found = settle(nn.Sequential(model), "mine", 3)[1]
    assert (found.mean, found.std) == CIFAR
    assert "Hugging Face's ViTImageProcessor" in found.source


def test_gray_images_take_the_mean_over_colors() -> None:
    _, found = settle(of_timm(), "mine", 1)
    assert (found.mean, found.std) == (pytest.approx((0.449,)), pytest.approx((0.226,)))
    assert "averaged over colors" in found.source
    assert "assumed" in settle(with_(plain(4), image_processor=processor()), "mine", 4)[1].source


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--mean imagenet", IMAGENET),
        ("--std imagenet", IMAGENET),
        ("--mean timm --std timm", IMAGENET),
        ("--mean none", NONE),
        ("--mean 0.5 --std 0.25", ((0.5,), (0.25,))),
        ("--mean 0.1 0.2 0.3 --std 0.4", ((0.1, 0.2, 0.3), (0.4,))),
    ],
)
def test_flags_come_first(flags, expected) -> None:
    config = parse(["my:model", *flags.split()]).config
    model = with_(timm.create_model("lcnet_035"), image_processor=processor())
    for network in (model, Classifier(model, (0.3,), (0.3,)), nn.Sequential(Normalize(*CIFAR), model)):
        found = settle(network, "mine", 3, config.mean, config.std)[1]
        assert (found.mean, found.std) == expected
        assert "--mean" in found.source


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--mean imagenet --std none", "--mean imagenet with --std none: one word stands for both"),
        ("--mean imagenet --std 0.2", "--mean imagenet with --std 0.2: one word stands for both"),
        ("--mean 0.2", "--std is missing, and images have 1 channels"),
        ("--mean 0.2 0.3 --std 0.3", "--mean has 2 values, and images have 1 channels; give"),
        ("--mean timm", "has no pretrained_cfg of timm; give numbers, imagenet or none"),
        ("--mean 0.5 --std 0", "--std 0.0 is out of range; give positive numbers"),
        ("--mean nan --std 1", "--mean nan is out of range; give numbers"),
        ("--mean cifar", "Error parsing --mean: no type matching"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, line, capsys) -> None:
    assert_refused(f"measure {__name__}:plain --image-size 8 {flags}", line, capsys)


@pytest.mark.parametrize(
    ("name", "flags", "mean", "source"),
    [
        ("plain", {}, [0.5], f"assumed, since {__name__}:plain does not say"),
        ("plain", {"mean": "none"}, [0.0], "none, given by --mean none"),
        ("plain", {"mean": (0.3,), "std": (0.2,)}, [0.3], "given by --mean and --std"),
        ("of_timm", {}, [0.449], f"timm's pretrained_cfg of {__name__}:of_timm, averaged over colors"),
        ("wrapped", {}, [0.1], f"the Classifier that {__name__}:wrapped returned"),
    ],
)
def test_the_command_says_and_records_what_it_puts_in_front(name, flags, mean, source, tmp_path, capsys) -> None:
    config = replace(GRAY, **flags, output=tmp_path, name="m")
    folder = command.run(f"{__name__}:{name}", ["accuracy"], config)
    out, err = capsys.readouterr()
    assert f"samovar: images are normalized with mean {mean[0]:.4g}, std " in err
    assert source in err
    assert f"as returned by {__name__}:{name}" in " ".join(out.split())
    for record in folder.records():
        assert record.settings["mean"] == pytest.approx(mean)
        assert len(record.settings["std"]) == 1
        assert record.settings["normalization_from"].startswith(source)
        assert record.settings["weights"] == f"as returned by {__name__}:{name}"
    assert configs.load(folder.config_path).model.mean == pytest.approx(mean)


def test_another_normalization_is_another_measurement(tmp_path) -> None:
    name, config = f"{__name__}:plain", replace(GRAY, output=tmp_path, name="m")
    for changes in ({}, {}, {"mean": "none"}):
        folder = command.run(name, ["flatness"], replace(config, **changes))
    assert [record.settings["mean"] for record in folder.records()] == [[0.5], [0.5], [0.0], [0.0]]


def test_the_network_of_a_bare_file_is_asked_too(tmp_path) -> None:
    path, name = tmp_path / "w.pth", f"{__name__}:of_timm"
    torch.save(of_timm().state_dict(), path)
    opened = open_model(str(path), name=name, image_size=8)
    assert opened.config.mean == pytest.approx((0.449,))
    assert opened.model.mean.item() == pytest.approx(0.449)
    config = replace(GRAY, model=name)
    assert "timm's pretrained_cfg" in open_subject(str(path), config, CPU).settings["normalization_from"]
    flagged = open_subject(str(path), replace(config, mean="none"), CPU)
    assert flagged.settings["mean"] == [0.0]
    assert flagged.model.mean.item() == 0.0


def test_networks_by_name_keep_their_normalization_and_say_it() -> None:
    subject = open_subject("vit-digits", GRAY, CPU)
    assert (subject.settings["mean"], subject.settings["weights"]) == ([0.5], "initialisation")
    assert subject.settings["normalization_from"] == "the default for vit-digits"
    assert open_subject("vit-digits", replace(GRAY, mean="none"), CPU).model.mean.item() == 0.0


@pytest.mark.parametrize(
    ("name", "more"), [("plain", ""), ("of_timm", "asks for mean 0.449, std 0.226: timm's pretrained_cfg")]
)
def test_training_says_how_it_normalizes_a_network_of_ones_own(name, more) -> None:
    config = Config(model=ModelConfig(f"{__name__}:{name}"), data=DataConfig(workers=0), steps=1)
    _, state = prepare(config, CPU)
    assert state.notes[-1].startswith("images are normalized with mean 0.5, std 0.5 (--model.mean, --model.std)")
    assert more in state.notes[-1]
    assert state.model.mean.item() == 0.5


def test_a_run_knows_its_normalization(tmp_path) -> None:
    configs.save(Config(), tmp_path / "config.json")
    with pytest.raises(ValueError, match="is a run, which knows its normalization; leave them out"):
        open_subject(str(tmp_path), MeasureConfig(mean="imagenet"), CPU)
