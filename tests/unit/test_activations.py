"""Active fractions and norms against counts by hand, and against the layers' own inputs."""

import math
from dataclasses import replace

import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from samovar.config import MeasureConfig, ModelConfig
from samovar.data.loader import Batch
from samovar.measure.activations import activation_norms, activations, active_fractions, weight_norm, weight_norms
from samovar.measure.subject import Subject, open_subject
from samovar.models.factory import create
from samovar.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)


def digits(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create(ModelConfig(name=name, init="library"), num_classes=10, image_size=8, channels=1).eval()


def images(n: int = 6, size: int = 8, channels: int = 1) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def pinned(activation: nn.Module) -> nn.Module:
    """x to (x1, x2, x1 - x2) through an activation, to their sum."""
    model = nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))
        model[0].bias.zero_()
    return model


# active: 1, 2; none, none; 1 and 3; 2 alone, for zero is not above zero
POINTS = torch.tensor([[2.0, 3.0], [-1.0, -1.0], [4.0, -1.0], [-1.0, 5.0]])
HAND = [2, 0, 2, 1]


def above_zero(model: nn.Module, names: list[str], x: Tensor) -> int:
    """How many inputs of these modules are above 0, by a hook of our own."""
    count = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda m, args: count.append(int((args[0] > 0).sum())))
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return sum(count)


# --- active fractions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.GELU("tanh"), nn.SiLU()])
def test_the_active_fraction_of_a_tiny_network_is_the_count_by_hand(activation):
    (found,) = active_fractions(pinned(activation), [POINTS])
    assert (found.active, found.total, found.images, found.fraction) == (5, 12, 4, 5 / 12)
    shares = torch.tensor(HAND) / 3
    assert found.stderr == pytest.approx(float(shares.std()) / 2)
    assert (found.block, found.index) == ("1", 0)


def test_batches_of_any_size_and_form_are_pooled_by_their_units():
    model = pinned(nn.ReLU())
    whole = active_fractions(model, [POINTS])
    assert active_fractions(model, [POINTS[:3], POINTS[3:]]) == whole
    labels = torch.zeros(2, dtype=torch.int64)
    assert active_fractions(model, [(POINTS[:2], labels), Batch(POINTS[2:], labels)]) == whole
    assert active_fractions(model, [POINTS[:1]])[0].stderr is None


def test_an_activation_that_a_block_uses_twice_counts_twice():
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5).eval()
    found = active_fractions(model, [images(2, 32, 3)])
    assert [(each.block, each.layer, each.index) for each in found] == [
        (f"layer{stage}.0", "relu", stage - 1) for stage in (1, 2, 3, 4)
    ]
    assert found[0].total == 2 * 2 * 64 * 8 * 8  # twice, images, channels, pixels
    assert found[0].active == above_zero(model, ["layer1.0.relu"], images(2, 32, 3))


def test_the_token_and_channel_mlps_of_a_mixer_are_told_apart():
    model = digits("mixer-digits")
    found = active_fractions(model, [images()])
    assert [(each.block, each.layer, each.index) for each in found] == [
        (f"blocks.{i}", layer, i) for i in range(6) for layer in ("token", "channel")
    ]
    for each in found:
        mlp = model.body.get_submodule(f"{each.block}.mlp_{each.layer}s")
        assert each.total == 6 * mlp.fc1.out_features * (64 if each.layer == "token" else 4)
        assert each.active == above_zero(model, [f"body.{each.block}.mlp_{each.layer}s.act"], images())


def test_every_mlp_of_a_vit_is_counted_before_or_after_its_gelu_alike():
    model = digits("vit-digits")
    found = active_fractions(model, [images()])
    assert [(each.block, each.layer, each.index) for each in found] == [(f"blocks.{i}", "mlp", i) for i in range(4)]
    for each in found:
        assert each.total == 6 * 5 * 256  # images, tokens with the class token's, hidden units
        assert each.active == above_zero(model, [f"body.{each.block}.mlp.act"], images())


def test_the_relus_of_a_residual_block_are_pooled_and_the_stem_left_out():
    model = digits("resnet-digits")
    found = active_fractions(model, [images()])
    assert [(each.block, each.layer) for each in found] == [(f"layer{i}.0", "relu") for i in (1, 2, 3, 4)]
    for each in found:
        assert each.active == above_zero(model, [f"body.{each.block}.act{i}" for i in (1, 2)], images())


def test_a_network_inside_a_sequence_has_the_blocks_it_has_alone():
    body = digits("resnet-digits").body
    alone, inside = (active_fractions(model, [images()]) for model in (body, nn.Sequential(nn.Identity(), body)))
    assert inside == [replace(each, block=f"1.{each.block}") for each in alone]


def test_blocks_of_other_timm_networks_are_found():
    found = active_fractions(ConvNeXt(depths=(1, 2, 1, 1), dims=(4,) * 4), [images(2, 32, 3)])
    assert [(each.block, each.layer, each.index) for each in found] == [
        ("stages.0.blocks.0", "mlp", 0),
        ("stages.1.blocks.0", "mlp", 1),
        ("stages.1.blocks.1", "mlp", 2),
        ("stages.2.blocks.0", "mlp", 3),
        ("stages.3.blocks.0", "mlp", 4),
    ]


def test_a_model_without_activations_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"Linear has no module that is an activation.*nn.ReLU\(\)"):
        active_fractions(nn.Linear(2, 2), [POINTS])


def test_batches_that_are_none_are_refused():
    with pytest.raises(ValueError, match="batches is empty"):
        active_fractions(pinned(nn.ReLU()), [])
    with pytest.raises(ValueError, match="a batch is str"):
        active_fractions(pinned(nn.ReLU()), ["images"])


def test_a_network_that_has_diverged_is_refused():
    model = pinned(nn.ReLU())
    nn.init.constant_(model[0].bias, math.nan)
    with pytest.raises(ValueError, match="logits are not finite"):
        active_fractions(model, [POINTS])


# --- norms -----------------------------------------------------------------------------------------------------------


class Shift(nn.Module):
    """A block that gives x + w."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight, self.act = nn.Parameter(weight), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.weight)


def shifts() -> nn.Module:
    return nn.Sequential(Shift(torch.tensor([3.0, 4.0])), Shift(torch.tensor([0.0, -4.0])))


TOKENS = torch.tensor([[[0.0, 0.0], [2.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]])  # two images, two tokens, two channels


def test_the_activation_norm_is_that_of_the_blocks_output_per_token_or_image():
    # after the first block (3, 4), (5, 12); (3, 4), (3, 4): after the second (3, 0), (5, 8); (3, 0), (3, 0)
    first, second = activation_norms(shifts(), [TOKENS])
    assert (first.block, first.index, first.value) == ("0", 0, (5 + 13 + 5 + 5) / 4)
    assert second.value == pytest.approx((3 + math.sqrt(89) + 3 + 3) / 4)
    assert first.stderr == pytest.approx(abs(9 - 5) / 2)
    first, _ = activation_norms(shifts(), [TOKENS[:1], TOKENS[1:]], per="image")
    assert first.value == pytest.approx((math.sqrt(5**2 + 13**2) + math.sqrt(2 * 5**2)) / 2)


def test_the_activation_norm_of_a_feature_map_is_over_channels_of_each_pixel():
    model = digits("resnet-digits")
    (*_, last) = activation_norms(model, [images()])
    with torch.no_grad():
        maps = model.body.forward_features((images() - model.mean) / model.std)
    assert last.value == pytest.approx(maps.norm(dim=1).mean().item(), rel=1e-6)


def test_the_activation_norm_of_a_vit_is_that_of_its_residual_stream():
    model = digits("vit-digits")
    (*_, last) = activation_norms(model, [images()])
    with torch.no_grad():
        body = model.body
        stream = body.blocks(body._pos_embed(body.patch_embed((images() - model.mean) / model.std)))
    assert last.value == pytest.approx(stream.norm(dim=-1).mean().item(), rel=1e-6)


def test_weight_norms_are_over_all_parameters_of_a_block():
    assert [each.value for each in weight_norms(shifts())] == [5, 4]
    model = digits("mixer-digits")
    found = weight_norms(model)
    assert [(each.block, each.index) for each in found] == [(f"blocks.{i}", i) for i in range(6)]
    flat = torch.cat([p.detach().flatten() for p in model.body.blocks[2].parameters()])
    assert found[2].value == pytest.approx(flat.double().norm().item())
    assert weight_norm(shifts()) == pytest.approx(math.hypot(3, 4, 4))


def test_an_unknown_average_is_refused():
    with pytest.raises(ValueError, match="per='batch' is unknown; pick 'token' or 'image'"):
        activation_norms(shifts(), [TOKENS], per="batch")


def test_models_come_back_as_they_were():
    model = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, drop_rate=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = active_fractions(model, [images(channels=3)])
    assert active_fractions(model, [images(channels=3)]) == first  # in eval mode, without dropout
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# --- the measurement -------------------------------------------------------------------------------------------------


def subject(name: str, config: MeasureConfig) -> Subject:
    found = open_subject(name, config, CPU)
    return replace(found, model=digits(name))  # at a paper's zero initialisation residual branches are off


@pytest.mark.parametrize(
    ("name", "layers", "blocks"),
    [
        ("vit-digits", ["mlp"], [f"blocks.{i}" for i in range(4)]),
        ("mixer-digits", ["token", "channel"], [f"blocks.{i}" for i in range(6)]),
        ("resnet-digits", ["relu"], [f"layer{i}.0" for i in (1, 2, 3, 4)]),
    ],
)
def test_each_family_has_records_of_every_block(name, layers, blocks, tmp_path):
    config = MeasureConfig(split="train", images=40, batch_size=16, workers=0)
    given = subject(name, config)
    records = list(activations(given, config, tmp_path))
    by_name = {n: [r for r in records if r.name == n] for n in dict.fromkeys(r.name for r in records)}
    active, norms, weights, total = by_name.values()
    assert list(by_name) == [
        "inside/active_fraction", "inside/activation_norm", "inside/weight_norm", "inside/total_weight_norm",
    ]  # fmt: skip
    expected = [{"block": b, "layer": layer, "index": i} for i, b in enumerate(blocks) for layer in layers]
    assert [r.where for r in active] == expected
    for found in (norms, weights):
        assert [r.where for r in found] == [{"block": b, "index": i} for i, b in enumerate(blocks)]
    n = given.settings["images"]
    assert all((r.unit, r.n, r.settings["threshold"]) == ("1", n, 0.0) and 0 < r.value < 1 for r in active)
    assert all(r.n == n and r.stderr > 0 for r in norms)
    assert all("tensor" in r.settings and not set(r.settings) & set(given.settings) for r in records)
    assert total[0].value > max(r.value for r in weights)
    assert [each.fraction for each in active_fractions(given.model, given.batches)] == [r.value for r in active]
