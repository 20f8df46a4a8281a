"""Attention maps, rollout and distances against cases counted by hand; a picture for every family."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.layers.mlp import GatedMlp
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.mlp_mixer import MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionVit

from samovar.config import MeasureConfig, ModelConfig
from samovar.measure.attention import attention_distance, attention_maps, rollout
from samovar.measure.attention_pictures import attention
from samovar.measure.capture import capture
from samovar.measure.feature_maps import channel_means, token_mixing
from samovar.measure.predictions import to_rgb
from samovar.measure.subject import Subject, open_subject
from samovar.models.factory import create
from samovar.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)


def vit(kind=VisionTransformer, **changes) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return kind(**sizes | changes).eval()


def swin() -> SwinTransformer:
    return SwinTransformer(
        img_size=32, patch_size=4, embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=4, num_classes=5
    ).eval()


def mixer(**changes) -> MlpMixer:
    return MlpMixer(img_size=16, patch_size=4, num_blocks=2, embed_dim=8, num_classes=5, **changes).eval()


def digits(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create(ModelConfig(name=name, init="library"), num_classes=10, image_size=8, channels=1).eval()


def images(size: int = 16, channels: int = 3, n: int = 3) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


# --- maps ------------------------------------------------------------------------------------------------------------


def test_the_class_tokens_map_is_its_attention_to_the_patches_in_their_places():
    model = digits("vit-digits")
    found = attention_maps(model, images(8, 1))
    with capture(model, attention=True) as seen, torch.no_grad():
        model(images(8, 1))
    assert (found.grid, found.num_prefix_tokens, found.query) == ((2, 2), 1, "class")
    assert found.layers == tuple(f"blocks.{i}.attn" for i in range(4))
    for layer, (_, expected) in zip(found.probabilities, seen.attention, strict=True):
        assert torch.equal(layer, expected)
        maps = found.to_patches(layer)
        assert maps.shape == (3, 4, 2, 2)  # images, heads, rows, columns
        for place in range(4):  # row by row, after the class token
            assert torch.equal(maps[..., place // 2, place % 2], layer[:, :, 0, 1 + place])
        torch.testing.assert_close(maps.sum((-2, -1)) + layer[:, :, 0, 0], torch.ones(3, 4))


@pytest.mark.parametrize(
    ("model", "prefix", "query"),
    [
        (lambda: vit(), 1, "class"),
        (lambda: vit(global_pool="avg"), 1, "mean"),
        (lambda: vit(global_pool="avg", class_token=False), 0, "mean"),
        (lambda: vit(reg_tokens=3), 4, "class"),
        (lambda: vit(global_pool="map", class_token=False, reg_tokens=2), 2, "mean"),
        (lambda: vit(VisionTransformerDistilled), 2, "class"),
        (lambda: vit(qk_norm=True, img_size=16), 1, "class"),
        (lambda: TorchvisionVit(16, 4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=8).eval(), 1, "class"),
    ],
)
def test_prefix_tokens_and_pooling_are_recognized(model, prefix, query):
    found = attention_maps(model(), images())
    assert (found.num_prefix_tokens, found.query, found.grid) == (prefix, query, (4, 4))
    assert [tuple(layer.shape) for layer in found.probabilities] == [(3, 4, 16 + prefix, 16 + prefix)] * 2
    layer = found.probabilities[-1]
    rows = layer[:, :, 0] if query == "class" else layer[:, :, prefix:].mean(2)
    assert torch.equal(found.to_patches(layer).flatten(-2), rows[..., prefix:])


def test_images_need_not_be_square():
    assert attention_maps(vit(img_size=(8, 16)), images()[:, :, :8]).grid == (2, 4)
    assert attention_maps(vit(dynamic_img_size=True), images()[..., :12]).grid == (4, 3)


def test_the_maps_are_the_same_with_and_without_fused_attention():
    model = vit()
    fused = attention_maps(model, images())
    for block in model.blocks:
        block.attn.fused_attn = False
    for one, other in zip(fused.probabilities, attention_maps(model, images()).probabilities, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [vit, swin, lambda: digits("resnet-digits-bn")])
def test_models_come_back_from_pictures_as_they_were(make):
    model = make().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = images(8, 1) if hasattr(model, "body") else images(32 if isinstance(model, SwinTransformer) else 16)
    (attention_maps if isinstance(model, VisionTransformer) else channel_means)(model, x)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# --- rollout ---------------------------------------------------------------------------------------------------------

FIRST = [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]
SECOND = [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]]
# (1 + FIRST) / 2 = [1 0 0; 0 .5 .5; .25 .25 .5], (1 + SECOND) / 2 = [.5 .5 0; 0 1 0; .1 .1 .8]; second times first:
ROLLED = [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [0.3, 0.25, 0.45]]


def layers(*heads: list) -> Tensor:
    return torch.tensor(heads, dtype=torch.float64)[None]


def test_rollout_of_two_layers_is_the_product_by_hand():
    found = rollout([layers(FIRST), layers(SECOND)])
    torch.testing.assert_close(found, torch.tensor(ROLLED, dtype=torch.float64)[None], rtol=0, atol=1e-15)


def test_rollout_averages_heads_first():
    uneven = (2 * layers(FIRST) - layers(SECOND)).tolist()[0][0]  # with SECOND, of mean FIRST
    found = rollout([layers(SECOND, uneven), layers(SECOND)])
    torch.testing.assert_close(found, torch.tensor(ROLLED, dtype=torch.float64)[None], rtol=0, atol=1e-15)


def test_rollout_of_the_largest_head_is_renormalized():
    found = rollout([layers(FIRST, SECOND)], fuse="max")
    # [1 1 0; 0 1 1; .5 .5 .6] and the identity: [2 1 0; 0 2 1; .5 .5 1.6] by their sums
    expected = [[2 / 3, 1 / 3, 0.0], [0.0, 2 / 3, 1 / 3], [0.5 / 2.6, 0.5 / 2.6, 1.6 / 2.6]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64)[None], rtol=0, atol=1e-15)


def test_rollout_of_attention_to_oneself_stays_and_all_its_rows_are_shares():
    eye = torch.eye(5).expand(2, 3, 5, 5)
    assert torch.equal(rollout([eye, eye]), torch.eye(5).expand(2, 5, 5))
    rolled = rollout(attention_maps(vit(), images()).probabilities)
    assert rolled.shape == (3, 17, 17)
    torch.testing.assert_close(rolled.sum(-1), torch.ones(3, 17))
    with pytest.raises(ValueError, match="0 layers"):
        rollout([])
    with pytest.raises(ValueError, match="fuse='sum'"):
        rollout([eye], fuse="sum")


# --- distance --------------------------------------------------------------------------------------------------------


def test_attention_to_oneself_has_no_distance():
    assert attention_distance(torch.eye(6).expand(2, 3, 6, 6), (2, 3), (16, 16)).tolist() == [[0.0] * 3] * 2


def test_the_distance_of_uniform_attention_is_the_mean_over_all_pairs():
    grid, (height, width) = (3, 4), (8.0, 5.0)
    places = [(row * height, column * width) for row in range(3) for column in range(4)]
    expected = sum(math.dist(a, b) for a in places for b in places) / 144
    found = attention_distance(torch.full((1, 1, 12, 12), 1 / 12, dtype=torch.float64), grid, (height, width))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_attention_to_the_neighbour_is_a_patch_away():
    right = torch.zeros(4, 4)
    right[[0, 1, 2, 3], [1, 0, 3, 2]] = 1
    assert attention_distance(right, (2, 2), (7, 3)).item() == 3
    assert attention_distance(right, (4, 1), (7, 3)).item() == 7


def test_attention_to_and_of_prefix_tokens_does_not_count():
    inside = torch.softmax(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), -1)
    outside = torch.zeros(8, 8, dtype=torch.float64)
    outside[2:, 2:] = inside * torch.linspace(0.1, 0.9, 6, dtype=torch.float64)[:, None]
    outside[:, :2] = 0.3
    found = attention_distance(outside, (2, 3), (4, 4), num_prefix_tokens=2)
    assert found.item() == pytest.approx(attention_distance(inside, (2, 3), (4, 4)).item(), rel=1e-12)


def test_a_patch_that_attends_to_prefix_tokens_alone_is_left_out():
    lone = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])  # class token, two patches side by side
    assert attention_distance(lone, (1, 2), (4, 4), num_prefix_tokens=1).item() == 4


# --- the other families ----------------------------------------------------------------------------------------------


def test_the_token_mixing_weights_are_those_of_the_first_token_mlp():
    model = digits("mixer-digits")
    assert torch.equal(token_mixing(model), model.body.blocks[0].mlp_tokens.fc1.weight)
    resmlp = mixer(block_layer=ResBlock, mlp_ratio=4)
    assert torch.equal(token_mixing(resmlp), resmlp.blocks[0].linear_tokens.weight)
    gmlp = mixer(block_layer=SpatialGatingBlock, mlp_ratio=4, mlp_layer=GatedMlp)
    assert torch.equal(token_mixing(gmlp), gmlp.blocks[0].mlp_channels.gate.proj.weight)


def test_the_channel_means_of_a_resnet_are_those_of_its_stages():
    model = digits("resnet-digits")
    found = channel_means(model, images(8, 1))
    with torch.no_grad():
        body = model.body
        x = body.maxpool(body.act1(body.bn1(body.conv1((images(8, 1) - model.mean) / model.std))))
        for stage, mean in zip((body.layer1, body.layer2, body.layer3, body.layer4), found, strict=True):
            x = stage(x)
            assert torch.equal(mean, x.mean(1))


def test_the_channel_means_of_other_networks_are_one_a_resolution():
    convnext = ConvNeXt(depths=(1, 1, 1, 1), dims=(8,) * 4, num_classes=5).eval()
    assert [tuple(m.shape) for m in channel_means(convnext, images(64))] == [
        (3, 16, 16),
        (3, 8, 8),
        (3, 4, 4),
        (3, 2, 2),
    ]
    assert [tuple(m.shape) for m in channel_means(swin(), images(32))] == [(3, 8, 8), (3, 4, 4)]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.Flatten())
    with torch.no_grad():
        expected = [plain[:2](images()).mean(1), plain[:4](images()).mean(1)]
    assert all(torch.equal(a, b) for a, b in zip(channel_means(plain, images()), expected, strict=True))


def test_swin_has_channels_last_and_they_are_what_is_averaged():
    model = swin()
    with capture(model, "layers.1") as seen, torch.no_grad():
        model(images(32))
    assert seen.outputs["layers.1"][0].shape == (3, 4, 4, 16)
    assert torch.equal(channel_means(model, images(32))[-1], seen.outputs["layers.1"][0].mean(-1))


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda: attention_maps(digits("resnet-digits"), images(8, 1)), "ResNet has no attention .* channel_means"),
        (
            lambda: attention_maps(digits("mixer-digits"), images(8, 1)),
            "MlpMixer has no attention .* call token_mixing",
        ),
        (lambda: attention_maps(swin(), images(32)), "SwinTransformer attends within windows .*attention=True"),
        (lambda: token_mixing(vit()), "VisionTransformer has no token-mixing layer .* call attention_maps"),
        (lambda: channel_means(flat(), images(8, 1)), "Sequential has no feature maps .* call attention_maps"),
    ],
)
def test_what_a_model_does_not_have_is_refused_with_what_to_call_instead(ask, line):
    with pytest.raises(ValueError, match=line):
        ask()


# --- the measurement -------------------------------------------------------------------------------------------------

CONFIG = MeasureConfig(split="train", images=60, workers=0, pictures=5)


def subject(name: str, model: nn.Module | None = None) -> Subject:
    return replace(open_subject(name, CONFIG, CPU), model=model or digits(name))


def measured(name: str, tmp_path, model: nn.Module | None = None):
    given = subject(name, model)
    records = list(attention(given, CONFIG, tmp_path / "arrays"))
    (path,) = {record.arrays for record in records}
    with np.load(tmp_path / path, allow_pickle=False) as file:
        columns = dict(file)
    (few,) = given.batches.few(5, CONFIG.seed)
    assert np.array_equal(columns["images"], to_rgb(few.images))
    assert columns["labels"].tolist() == few.labels.tolist()
    with torch.no_grad():
        assert columns["predicted"].tolist() == given.model(few.images).argmax(1).tolist()
    assert all(record.settings["pictures"] == 5 for record in records)
    assert not any(set(record.settings) & set(given.settings) for record in records)  # they go beside the protocol
    return records, columns, given.model, few.images


def test_a_vit_has_maps_heads_rollout_and_distances(tmp_path):
    records, columns, model, x = measured("vit-digits", tmp_path)
    whole = attention_maps(model, x)
    assert columns["kind"] == "attention"
    maps = torch.stack([whole.to_patches(layer).mean(1) for layer in whole.probabilities], 1)
    heads, rolled = whole.to_patches(whole.probabilities[-1]), whole.to_patches(rollout(whole.probabilities))
    distance = torch.stack([attention_distance(p, (2, 2), (4, 4), 1) for p in whole.probabilities])  # [L, n, H]
    expected = {"maps": maps, "heads": heads, "rollout": rolled, "distance": distance.mean(1)}
    for key, value in expected.items():  # in chunks of four there, so to rounding of float32
        assert columns[key].dtype == np.float32
        np.testing.assert_allclose(columns[key], value, rtol=1e-5, atol=1e-6)
    assert [record.where for record in records] == [{"block": f"blocks.{i}", "index": i} for i in range(4)]
    for record, of_layer in zip(records, distance.mean(2), strict=True):
        assert (record.name, record.unit, record.n) == ("attention/distance", "pixels", 5)
        assert record.value == pytest.approx(of_layer.mean().item(), rel=1e-5)
        assert record.stderr == pytest.approx(of_layer.std().item() / math.sqrt(5), rel=1e-2, abs=1e-6)
        assert record.settings["query"] == "class token"


def test_a_mixer_has_its_token_mixing_weights(tmp_path):
    (record,), columns, model, _ = measured("mixer-digits", tmp_path)
    assert columns["kind"] == "token-mixing"
    assert np.array_equal(columns["maps"], token_mixing(model).view(1, -1, 2, 2))
    assert (record.name, record.unit) == ("attention/token_mixing", "pixels")
    weight = model.body.blocks[0].mlp_tokens.fc1.weight.requires_grad_(False)
    weight.sign_()  # every unit sees all patches alike
    (record,), _, _, _ = measured("mixer-digits", tmp_path, model)
    uniform = attention_distance(torch.full((4, 4), 0.25), (2, 2), (4, 4)).item()
    assert record.value == pytest.approx(uniform, rel=1e-6)
    weight.zero_()[:, 2] = 1  # every unit sees one patch
    (record,), _, _, _ = measured("mixer-digits", tmp_path, model)
    assert record.value == 0


def test_a_resnet_has_the_mean_of_its_channels(tmp_path):
    (record,), columns, model, x = measured("resnet-digits", tmp_path)
    assert columns["kind"] == "channel-mean"
    for i, expected in enumerate(channel_means(model, x)):
        np.testing.assert_allclose(columns[f"maps{i}"], expected, rtol=1e-5, atol=1e-6)
    assert "maps4" not in columns
    assert record.value == pytest.approx(columns["maps3"].mean(), rel=1e-5)


def test_a_model_that_has_nothing_to_draw_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="Sequential has nothing for `attention` to draw") as caught:
        list(attention(subject("vit-digits", flat()), CONFIG, tmp_path))
    assert "\n" not in str(caught.value)
