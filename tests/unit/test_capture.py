"""Captured outputs and attention against what the networks compute, and networks that do not notice."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _len_torch_function_stack
from torchvision.models import VisionTransformer as TorchvisionVit

from samovar.config import ModelConfig
from samovar.measure.capture import block_of, capture, channel_axis, network, probabilities
from samovar.models.factory import create

pytestmark = pytest.mark.costly


def vit(**changes) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return VisionTransformer(**sizes | changes).eval()


def swin() -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer(
        img_size=32, patch_size=4, embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=4, num_classes=5
    ).eval()


def torchvision_vit() -> TorchvisionVit:
    torch.manual_seed(0)
    model = TorchvisionVit(16, 4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    return model


def digits(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create(ModelConfig(name=name, init="library"), num_classes=10, image_size=8, channels=1).eval()


def convnext() -> ConvNeXt:
    return ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=5).eval()


def unfused(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def images(size: int = 16, channels: int = 3, dtype=torch.float32) -> Tensor:
    return torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def by_hand(model: VisionTransformer, x: Tensor) -> list[Tensor]:
    """softmax(Q K^T / sqrt d) of each block, from the weights of its qkv layer."""
    found, x = [], model._pos_embed(model.patch_embed(x))
    for block in model.blocks:
        attn = block.attn
        qkv = F.linear(block.norm1(x), attn.qkv.weight, attn.qkv.bias)
        q, k, _ = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        scores = (attn.q_norm(q) @ attn.k_norm(k).transpose(-2, -1)) / attn.head_dim**0.5
        found.append(scores.exp() / scores.exp().sum(-1, keepdim=True))
        x = block(x)
    return found


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}, {"global_pool": "avg", "class_token": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_attention_is_the_explicit_softmax_of_queries_and_keys(fused, settings, dtype):
    model = vit(**settings).to(dtype)
    assert all(block.attn.fused_attn for block in model.blocks)
    if not fused:
        unfused(model)
    with capture(model, attention=True) as seen:
        model(images(dtype=dtype))
    tokens = 16 + model.num_prefix_tokens
    assert [name for name, _ in seen.attention] == ["blocks.0.attn", "blocks.1.attn"]
    for (_, found), expected in zip(seen.attention, by_hand(model, images(dtype=dtype)), strict=True):
        assert found.shape == (3, 4, tokens, tokens)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if dtype is torch.float32 else 1e-14)


@torch.no_grad()
def test_attention_within_windows_has_its_biases_and_masks():
    """Against the softmax of the model's own path without fused attention, shifted windows included."""
    model = swin()
    for name, table in model.named_parameters():
        if "relative_position_bias_table" in name:
            nn.init.normal_(table)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    found = []
    for each in (model, unfused(model)):
        with capture(each, attention=True) as seen:
            each(images(32))
        found.append(seen.attention)
    assert [name for name, _ in found[0]] == [name for name, _ in found[1]]
    assert [tuple(p.shape) for _, p in found[0]] == [(12, 2, 16, 16), (12, 2, 16, 16), (3, 4, 16, 16)]
    assert any((p == 0).any() for _, p in found[0])  # masked across the border of a shifted image
    for (_, fused), (_, plain) in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=0, atol=1e-6)


@torch.no_grad()
def test_multihead_attention_is_seen_in_its_fused_path():
    model = torchvision_vit()
    with capture(model, attention=True) as seen:
        model(images())
    x = model._process_input(images())
    x = torch.cat([model.class_token.expand(3, -1, -1), x], 1) + model.encoder.pos_embedding
    for (name, found), block in zip(seen.attention, model.encoder.layers, strict=True):
        attn = block.self_attention
        q, k, _ = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
        q, k = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in (q, k))
        torch.testing.assert_close(found, (q @ k.mT / 8**0.5).softmax(-1), rtol=0, atol=1e-6)
        assert name.endswith("self_attention")
        x = block(x)


def test_multihead_attention_keeps_its_masks():
    torch.manual_seed(0)
    attn, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(3, 5, 8)
    padding = torch.tensor([[False] * 4 + [True]] * 3)
    with capture(attn, attention=True) as seen:
        attn(x, x, x, padding, False)
    ((_, found),) = seen.attention
    expected = attn(x, x, x, key_padding_mask=padding, average_attn_weights=False)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not found[..., 4].any()


KINDS = {
    "bool mask": {"attn_mask": torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) > 0.3},
    "mask that leaves nothing": {"attn_mask": torch.arange(6)[:, None].expand(6, 6) > 0},
    "bias": {"attn_mask": torch.linspace(-2, 2, 36).view(6, 6)},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.7},
    "plain": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_times_values_are_what_the_fused_function_returns(kind):
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.scaled_dot_product_attention(q, k, v, **KINDS[kind])
    torch.testing.assert_close(probabilities(q, k, v, **KINDS[kind]) @ v, expected, rtol=1e-12, atol=1e-14)


def test_queries_that_share_keys_are_told_apart():
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    expected = F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    found = probabilities(q, k, k, enable_gqa=True) @ k.repeat_interleave(2, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # float32


@torch.no_grad()
def test_attention_is_float32_under_autocast():
    model = vit()
    with capture(model, attention=True) as seen, torch.autocast("cpu", torch.bfloat16):
        model(images())
    for _, found in seen.attention:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), rtol=0, atol=1e-6)


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_outputs_are_those_of_the_modules_by_name_or_pattern():
    model = vit()
    with capture(model, ["norm", "blocks.*.mlp.act"]) as seen, torch.no_grad():
        logits = model(images())
    assert set(seen.outputs) == {"norm", "blocks.0.mlp.act", "blocks.1.mlp.act"}
    assert torch.equal(model.forward_head(seen.outputs["norm"][0]), logits)
    assert seen.outputs["blocks.1.mlp.act"][0].shape == (3, 17, 128)


def test_a_kept_output_is_not_changed_by_what_works_in_place_on_it():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    x = torch.randn(5, 3)
    with capture(model, "0") as seen:
        model(x)
    assert torch.equal(seen.outputs["0"][0], model[0](x))
    assert not seen.outputs["0"][0].requires_grad


def test_a_module_that_is_called_twice_is_seen_twice_until_cleared():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 4), relu)
    with capture(model, "1", keep=lambda output: output.shape) as seen:
        model(torch.randn(5, 3))
        assert seen.outputs == {"1": [(5, 4), (5, 4)]}
        seen.clear()
        assert seen.outputs == {"1": []}


def test_of_a_tuple_the_first_tensor_is_kept():
    model = nn.GRU(3, 4, batch_first=True)
    with capture(model, "") as seen, torch.no_grad():
        expected, _ = model(torch.ones(2, 5, 3))
    assert torch.equal(seen.outputs[""][0], expected)


def test_a_pattern_that_fits_no_module_names_some_that_are_there():
    with pytest.raises(ValueError, match=r"no module of VisionTransformer fits 'blocks.0.mpl'; .*blocks.0.mlp"):
        capture(vit(), "blocks.0.mpl").__enter__()


# --- the model does not notice ---------------------------------------------------------------------------------------

MODELS = {
    "vit": (vit, 16, 3),
    "vit unfused": (lambda: unfused(vit()), 16, 3),
    "torchvision vit": (torchvision_vit, 16, 3),
    "swin": (swin, 32, 3),
    "convnext": (convnext, 64, 3),
    "vit-digits": (partial(digits, "vit-digits"), 8, 1),
    "mixer-digits": (partial(digits, "mixer-digits"), 8, 1),
    "resnet-digits": (partial(digits, "resnet-digits"), 8, 1),
    "resnet-digits-bn": (partial(digits, "resnet-digits-bn"), 8, 1),
}


def state(model: nn.Module) -> list:
    """All that a forward pass or a hook could leave behind, compared by identity or value."""
    tensors = [*model.parameters(), *model.buffers()]
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called)) for m in model.modules()
    ]
    names = [sorted(vars(m)) for m in model.modules()]
    flags = [m.training for m in model.modules()]
    values = [(id(t), t.detach().clone().numpy().tobytes(), t.requires_grad, id(t.grad)) for t in tensors]
    modes = (_len_torch_function_stack(), torch._C._is_torch_function_enabled(), torch.is_grad_enabled())
    return [hooks, names, flags, values, torch.get_rng_state().tolist(), modes]


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_same_bit_for_bit_and_so_is_the_model_afterwards(name):
    make, size, channels = MODELS[name]
    model, x = make(), images(size, channels)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            expected = model(x)
            before = state(model)
            with capture(model, "*", attention=True) as seen:
                logits = model(x)
            assert state(model) == before
        assert torch.equal(logits, expected)
        assert sum(map(len, seen.outputs.values())) > 5
        assert logits.requires_grad == grad


def test_a_model_in_training_comes_back_after_an_error_as_it_was():
    model = digits("resnet-digits-bn").train()
    model.body.fc.requires_grad_(False)
    model(images(8, 1)).sum().backward()
    before = state(model)
    with pytest.raises(RuntimeError, match="channels"), capture(model, "*", attention=True):
        model(torch.rand(3, 5, 8, 8).mean(1, keepdim=True) * model(images(8, 1)).sum() * torch.ones(3, 5, 8, 8))
    assert state(model) == before
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0


@pytest.mark.parametrize("make", [vit, torchvision_vit])
@torch.no_grad()
def test_after_a_pass_that_fails_the_next_one_is_captured_well(make):
    model = make()
    with capture(model, attention=True) as seen:
        model(images())
        good = [*seen.attention]
        seen.clear()
        with pytest.raises((RuntimeError, AssertionError)):
            model.get_submodule(good[0][0])(torch.zeros(2, 3, 5), *[torch.zeros(2, 3, 5)] * 2)
        model(images())
    for (name, found), (same, expected) in zip(seen.attention, good, strict=True):
        assert name == same
        assert torch.equal(found, expected)


def test_attention_after_a_part_that_failed_has_the_name_of_the_module_that_attends():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.Linear(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.part(x)
            except RuntimeError:
                return F.scaled_dot_product_attention(x, x, x)

    model = nn.Sequential(Careful())
    with capture(model, attention=True) as seen:
        model(torch.ones(2, 1, 4, 8))
    assert [name for name, _ in seen.attention] == ["0"]


@pytest.mark.parametrize("inside", [False, True])
@torch.no_grad()
def test_compiled_models_and_parts_are_looked_through(inside):
    model = vit()
    expected = model(images())
    compiled = torch.compile(model, backend="eager")
    if inside:
        model.blocks[1].compile(backend="eager")
        compiled = model
    compiled(images())
    with capture(compiled, "blocks.1.mlp.act", attention=True) as seen:
        assert torch.equal(compiled(images()), expected)
    assert [name for name, _ in seen.attention] == ["blocks.0.attn", "blocks.1.attn"]
    assert len(seen.outputs["blocks.1.mlp.act"]) == 1
    with capture(compiled, "blocks.1.mlp.act") as seen:  # nothing that makes torch compile again
        assert torch.equal(compiled(images()), expected)
    assert len(seen.outputs["blocks.1.mlp.act"]) == 1


def test_a_data_parallel_model_is_looked_through():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(vit())
        with capture(model, "blocks.0", attention=True) as seen, torch.no_grad():
            model(images())
        assert [name for name, _ in seen.attention] == ["blocks.0.attn", "blocks.1.attn"]
        assert len(seen.outputs["blocks.0"]) == 1
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("make", [vit, torchvision_vit, lambda: unfused(vit())])
@torch.no_grad()
def test_contexts_can_be_nested(make):
    model = make()
    expected, before = model(images()), state(model)
    with capture(model, "*", attention=True) as outer, capture(model, "*.mlp", attention=True) as inner:
        assert torch.equal(model(images()), expected)
        assert torch.equal(model(images()), expected)
    assert state(model) == before
    assert len(outer.outputs) > len(inner.outputs) == 2
    assert len(outer.attention) == len(inner.attention) == 4
    for (name, found), (same, twin) in zip(outer.attention, inner.attention, strict=True):
        assert (name, found.tolist()) == (same, twin.tolist())


def test_the_callers_gradient_mode_holds_inside():
    model = vit()
    for grad in (False, True):
        with torch.set_grad_enabled(grad), capture(model):
            assert model(images()).requires_grad == grad
    with torch.inference_mode(), capture(model):
        assert not model(images()).requires_grad


# --- finding one's way -----------------------------------------------------------------------------------------------


def test_a_block_is_the_innermost_entry_of_a_list_around_a_module():
    names = {
        "blocks.1.mlp.act": "blocks.1",
        "blocks.0": "",
        "norm": "",
        "patch_embed.proj": "",
        "blocks.0.attn": "blocks.0",
    }
    assert {name: block_of(name, vit()) for name in names} == names
    assert block_of("encoder.layers.encoder_layer_1.mlp.1", torchvision_vit()) == "encoder.layers.encoder_layer_1"
    assert block_of("layer2.0.act1", network(digits("resnet-digits"))) == "layer2.0"


@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 5, 7, 7), 1), ((2, 7, 7, 5), -1), ((2, 7, 7, 7), 1), ((2, 4, 6), -1), ((2, 4), -1)]
)
def test_channels_are_told_from_space_by_square_maps(shape, axis):
    assert channel_axis(torch.zeros(shape)) == axis
