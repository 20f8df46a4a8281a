"""Every entry of MODELS builds, counts, starts and runs as the table says."""

import pytest
import torch

from samovar.config import ModelConfig
from samovar.models import table
from samovar.models.factory import create, describe, family
from samovar.models.table import MODELS

SMALL = [name for name, row in MODELS.items() if row.image_size < 64]

# paper.md 3.8, column "Exact": Table 7 of arXiv:2106.01548 at 1000 classes and 224 px
EXACT = {
    "vit-s32": 22_878_952,
    "vit-s16": 22_050_664,
    "vit-s14": 22_004_584,
    "vit-s8": 22_055_272,
    "vit-b32": 88_224_232,
    "vit-b16": 86_567_656,
    "mixer-s32": 19_104_624,
    "mixer-s16": 18_528_264,
    "mixer-s8": 20_646_504,
    "mixer-b32": 60_293_428,
    "mixer-b16": 59_880_472,
    "mixer-b8": 64_864_168,
}
MILLIONS = {
    "resnet50": 25,
    "resnet101": 44,
    "resnet152": 60,
    "resnet50x2": 98,
    "resnet101x2": 173,
    "resnet152x2": 236,
}


def at_its_size(name, **settings):
    row = MODELS[name]
    config = ModelConfig(name=name, **settings)
    return create(config, num_classes=row.classes, image_size=row.image_size, channels=row.channels)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_row_counts_its_parameters_and_maps_its_images_to_its_classes(name):
    row = MODELS[name]
    with torch.device("meta"):
        model = at_its_size(name).eval()
        logits = model(torch.rand(2, row.channels, row.image_size, row.image_size))
    assert count(model) == row.params
    assert logits.shape == (2, row.classes)
    assert family(model) == family(name) == row.family == describe(name).family


@pytest.mark.parametrize("name", EXACT)
def test_the_papers_vit_and_mixer_have_the_published_number_of_parameters(name):
    assert MODELS[name].params == EXACT[name]


@pytest.mark.parametrize("name", MILLIONS)
def test_the_papers_resnets_have_the_published_number_of_parameters(name):
    assert MODELS[name].params // 1_000_000 == MODELS[f"{name}-bn"].params // 1_000_000 == MILLIONS[name]


def test_there_are_twelve_vits_and_mixers_and_six_resnets_of_the_paper():
    assert set(EXACT) | set(MILLIONS) <= set(MODELS)
    assert (len(EXACT), len(MILLIONS)) == (12, 6)


@pytest.mark.parametrize("name", SMALL)
def test_a_fresh_network_answers_its_head_bias_whatever_it_sees(name):
    row = MODELS[name]
    images = torch.rand(3, row.channels, row.image_size, row.image_size)
    logits = at_its_size(name, head_bias=-10.0)(images)
    assert torch.equal(logits, torch.full((3, row.classes), -10.0))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_takes_part(name):
    row = MODELS[name]
    model = at_its_size(name, init="library")
    model(torch.rand(2, row.channels, row.image_size, row.image_size)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("init", ["paper", "library"])
@pytest.mark.parametrize("name", [name for name in SMALL if MODELS[name].params < 2_000_000])
def test_the_initial_weights_are_a_function_of_the_seed(name, init):
    def weights(seed):
        torch.manual_seed(seed)
        return at_its_size(name, init=init).state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["vit-cifar-s", "mixer-cifar-s", "resnet-cifar-s", "resnet-cifar-s-bn"])
def test_other_sizes_channels_and_classes_can_be_asked_for(name):
    model = create(ModelConfig(name=name, init="library"), num_classes=7, image_size=20, channels=5)
    assert model(torch.rand(2, 5, 20, 20)).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_describes_itself_in_one_line(name):
    text = table.line(name)
    assert "\n" not in text
    assert len(text) < 100
    assert f"{MODELS[name].params:,}" in table.summary(name)
