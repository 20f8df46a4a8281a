"""The blocks of networks, and activation checkpointing: the same numbers from less memory."""

import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from samovar import recipes
from samovar.config import Config, ModelConfig, RunConfig, SamConfig, validate, validate_layout
from samovar.data.loader import Batch
from samovar.models.factory import create
from samovar.objectives import make_objective
from samovar.runtime import Runtime
from samovar.train import dry_run
from samovar.train.blocks import blocks, checkpoint_
from samovar.train.dry_run import Data, rehearse
from samovar.train.loop import build, steps

CPU = Runtime(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("name", "size", "count", "kinds"),
    [
        ("vit-s16", 32, 12, {"Block"}),
        ("mixer-s16", 32, 8, {"MixerBlock"}),
        ("resnet50", 32, 16, {"Bottleneck"}),
        ("resnet18", 32, 8, {"BasicBlock"}),
        ("convnext_atto", 32, 12, {"ConvNeXtBlock"}),
        ("swin_tiny_patch4_window7_224", 224, 12, {"SwinTransformerBlock"}),
    ],
)
def test_blocks_are_the_repeated_units_of_a_network(name, size, count, kinds):
    with torch.device("meta"):
        model = create(ModelConfig(name=name), num_classes=10, image_size=size, channels=3)
    found = blocks(model)
    assert len(found) == count
    assert {type(block).__name__ for block in found} == kinds


def trained(model: ModelConfig, checkpointing: bool) -> dict[str, torch.Tensor]:
    run = RunConfig(checkpointing=checkpointing)
    config = Config(model=model, sam=SamConfig(rho=0.1, m=4), data=replace(Config().data, batch_size=8), run=run)
    state = build(config, CPU, num_classes=10, channels=1)
    generator = torch.Generator().manual_seed(0)
    batches = [Batch(torch.rand(8, 1, 8, 8, generator=generator), torch.arange(8)) for _ in range(2)]
    for _ in steps(state, batches, make_objective(config, 10), config, CPU, 2):
        pass
    return state.model.state_dict()


@pytest.mark.costly
@pytest.mark.parametrize("recipe", ["vit-digits", "mixer-digits", "resnet-digits"])
def test_checkpointing_changes_no_bit_of_weights_and_buffers_after_sam_steps(recipe):
    model = replace(recipes.get(recipe).config().model, dropout=0.2)
    plain, checkpointed = (trained(model, each) for each in (False, True))
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        assert torch.equal(value, checkpointed[name]), name


def test_batchnorms_statistics_are_counted_once():
    block = lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))  # noqa: E731

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    torch.manual_seed(0)
    plain = nn.Sequential(Unit(), Unit())
    model, x = deepcopy(plain), torch.randn(8, 4)
    assert checkpoint_(model) == 2
    copied = deepcopy(model)
    for each in (plain, model, copied):
        each(x).square().sum().backward()
    for each in (model, copied):  # a deep copy runs its own blocks
        for a, b in zip(plain.buffers(), each.buffers(), strict=True):
            assert torch.equal(a, b)
        for a, b in zip(plain.parameters(), each.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)


def test_a_checkpointed_forward_pass_keeps_less():
    config = recipes.get("vit-digits").config()
    kept = [
        rehearse(
            replace(config, run=RunConfig(checkpointing=each)), CPU, Data(64, 10, 1), num_steps=1, images=4
        ).kept_bytes
        for each in (False, True)
    ]
    assert kept[1] < 0.4 * kept[0]


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="finds no blocks in Linear"):
        checkpoint_(nn.Linear(2, 2))


def checked(config: Config, ranks: int) -> None:
    validate(config)
    validate_layout(config, ranks)


@pytest.mark.parametrize(
    ("choice", "ranks", "sam", "message"),
    [
        ("half", 4, SamConfig(), "--run.shard half is unknown; give none, full or hybrid:N"),
        ("hybrid:1", 4, SamConfig(), "with N of 2 or more"),
        ("hybrid:3", 4, SamConfig(), "does not divide 4 ranks into sets of 3"),
        ("full", 4, SamConfig(rho=0.1, m=6), "--sam.m 6 does not divide over the 4 ranks of --run.shard full"),
        ("full", 4, SamConfig(rho=0.1, noise=True), "--sam.noise with --run.shard full: each rank would draw noise"),
        ("full", 4, SamConfig(teacher="average"), "--sam.teacher average with --run.shard full"),
    ],
)
def test_shards_that_cannot_be_right_are_refused(choice, ranks, sam, message):
    config = Config(run=RunConfig(shard=choice), sam=sam, data=replace(Config().data, batch_size=64))
    with pytest.raises(ValueError, match=re.escape(message)):
        checked(config, ranks)


def test_groups_of_m_are_of_all_ranks_that_share_the_weights():
    config = Config(run=RunConfig(shard="hybrid:2"), sam=SamConfig(rho=0.1, m=32))
    validate_layout(replace(config, data=replace(config.data, batch_size=64)), 4)  # two replicas, a group each
    with pytest.raises(ValueError, match="does not divide the 16 images of 2 ranks; pick a divisor such as 16"):
        validate_layout(replace(config, data=replace(config.data, batch_size=32)), 4)


def test_a_dry_run_says_what_each_choice_leaves_on_a_rank():
    config = recipes.get("vit-digits-sam").config()
    found = rehearse(config, CPU, Data(64, 10, 1), num_steps=1, images=2)
    lines = dry_run.lines(config, Data(64, 10, 1), found, 4)
    (line,) = (each for each in lines if each.startswith("shards"))
    whole = (found.weight_bytes + found.state_bytes) / 2**20
    for share, choice in ((1, "none"), (4, "full"), (2, "hybrid:2")):
        said = float(re.search(rf"([\d.]+) MiB under {choice}", line)[1])
        assert said == pytest.approx(whole / share, rel=0.02, abs=0.06), choice
    assert not [each for each in dry_run.lines(config, Data(64, 10, 1), found, 1) if each.startswith("shards")]
