"""Test dry runs: they count the cost of a recipe, and describe it as section 3 of the paper does."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from samovar import cli, recipes
from samovar import config as configs
from samovar.config import ModelConfig
from samovar.models import factory
from samovar.recipes.paper import FORWARD_GFLOPS, gpu_hours
from samovar.runtime import Runtime
from samovar.train import optim, schedules
from samovar.train.dry_run import lines, training_flops
from samovar.train.rehearse import data_of, rehearse

CPU = Runtime(torch.device("cpu"), torch.float32)


def on_meta(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return factory.create(ModelConfig(name=name), num_classes=1000, image_size=224).eval()


@pytest.mark.parametrize("name", ["vit-s32", "mixer-s32", "resnet50"])
def test_flops_in_the_recipes_are_those_of_torchs_counter(name: str) -> None:
    model = on_meta(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.body(torch.zeros(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(FORWARD_GFLOPS[name], abs=0.005)  # as printed


def test_flops_of_a_vit_are_those_of_its_matrices() -> None:
    """Compare with a sum written out: patches, q, k, v, out, two token products, MLP, head."""
    tokens, width, depth = 50, 384, 12
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    total = 2 * (49 * 32 * 32 * 3 * width + depth * block + width * 1000)
    assert total / 1e9 == pytest.approx(FORWARD_GFLOPS["vit-s32"], abs=0.005)


def test_hours_are_three_forward_passes_for_each_of_two_gradients() -> None:
    images = 300 * 1_281_167
    hours = 35.13e9 * 3 * 2 * images / 100e12 / 3600
    assert gpu_hours(recipes.get("vit-b16-imagenet-sam").config()) == pytest.approx(hours, rel=1e-4)  # whole steps
    assert "225 GPU hours" in recipes.get("vit-b16-imagenet-sam").expect


def test_a_rehearsal_counts_parameters_decay_memory_and_takes_real_steps() -> None:
    config = recipes.get("vit-digits-sam").config()
    data = data_of(config)
    found = rehearse(config, CPU, data, images=8)
    assert (data.num_train, data.num_classes, data.channels) == (269, 10, 1)
    assert found.params == 202_186
    assert found.weight_bytes == 4 * found.params
    # gradients, Adam's two moments, SAM's copy; a few step counters besides
    assert 0 <= found.state_bytes - 4 * 4 * found.params < 1000
    assert len(found.losses) == 3
    assert found.losses[0] == pytest.approx(torch.log(torch.tensor(10.0)).item(), abs=1e-4)  # the head is 0
    assert found.losses[2] < found.losses[0]
    assert training_flops(config, data, found.flops) == 3 * found.flops * configs.image_gradients(config, 269)
    twice = rehearse(config, CPU, data, images=16, num_steps=1)
    assert twice.kept_bytes == pytest.approx(2 * found.kept_bytes, rel=0.05)  # what does not grow with the batch


@pytest.mark.parametrize(
    ("name", "change", "gradients"),
    [
        ("vit-digits", {}, 1),
        ("vit-digits-sam", {}, 2),
        ("vit-cifar10-adversarial", {}, 2),
        ("vit-cifar10-adversarial-sam", {}, 2),
    ],
)
def test_gradients_of_an_image(name: str, change: dict, gradients: int) -> None:
    config = recipes.get(name).config()
    steps = configs.num_steps(config, 1000)
    assert configs.image_gradients(config, 1000) == gradients * steps * config.data.batch_size


# --- the paper's recipes, section 3 of its facts ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "biases"), [("vit-s32", True), ("mixer-s32", True), ("resnet50", True)])
def test_only_kernels_decay(name: str, biases: bool) -> None:
    config = recipes.get(f"{name}-imagenet-sam").config()
    model = on_meta(name)
    decayed, kept = optim.parameter_groups(model, config.optim)
    assert decayed["weight_decay"] == config.optim.weight_decay
    assert kept["weight_decay"] == 0.0
    assert all(p.ndim >= 2 and key.endswith("weight") for key, p in decayed["params"])
    named = {key for key, _ in kept["params"]}
    assert all(p.ndim == 1 or key.endswith(("pos_embed", "cls_token")) for key, p in kept["params"])
    assert any(key.endswith("bias") for key in named) == biases


@pytest.mark.parametrize(("name", "expected"), [
    ("vit-b16-imagenet-sam", {0: 0.0, 5000: 1.5e-3, 10_000: 3e-3, 51_917: 1.5e-3}),
    ("mixer-b16-imagenet-sam", {5000: 1.5e-3, 10_000: 3e-3, 51_917: 3e-3 * (0.5 + 0.5e-5)}),
    ("resnet152-imagenet-sam", {2500: 0.8, 5000: 1.6, 16_575: 0.8}),
])  # fmt: skip
def test_the_schedule_warms_up_then_falls_to_half_in_the_middle(name: str, expected: dict[int, float]) -> None:
    config = recipes.get(name).config()
    total = configs.num_steps(config, recipes.IMAGENET_TRAIN)
    assert total == {300: 93_835, 90: 28_151}[config.epochs]
    for step, lr in expected.items():
        assert schedules.lr_at(step, config.optim, total) == pytest.approx(lr, rel=1e-3)  # of half a step


@pytest.mark.parametrize("ranks", [1, 8, 128])
def test_ascent_groups_are_of_32_images_whatever_the_number_of_ranks(ranks: int) -> None:
    config = recipes.get("vit-s32-imagenet-sam").config()
    found = rehearse(config, CPU, data_of(config), images=2, num_steps=1)
    said = "\n".join(lines(config, data_of(config), found, ranks))
    assert f"{4096 // ranks} a rank: {128 // ranks} groups of 32 a rank, each from its own gradient" in said
    assert "average over groups and ranks, clip to global norm 1, adamw, decay 0.3 x lr of kernels" in said
    assert "loss sigmoid" in said
    assert found.losses[0] == pytest.approx(10.0454, abs=1e-3)  # K log(1 + e^-10) + 10, of a bias of -10


def test_the_command_line_rehearses_without_data(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["train", "vit-cifar10k-sam", "--dry-run", "--ranks", "4"])
    said = capsys.readouterr().out
    assert "32 images on 4 ranks, 8 a rank: one group a rank" in said
    assert "468,778 parameters" in said
    assert not list(tmp_path.iterdir())


def test_ranks_that_do_not_fit_are_refused(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "vit-b16-imagenet-sam", "--dry-run", "--ranks", "3"])
    assert stop.value.code == 2
    assert "--data.batch-size 4096 does not divide over 3 ranks" in capsys.readouterr().err
