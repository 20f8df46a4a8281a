"""Which parameters belong to which block of Table 3."""

import pytest
import timm
import torch
from torch import nn

from samovar.curvature import Hessian, blocks, match, top_eigenvalues
from tests.unit.test_operators import NETS, by_functorch, images, loss


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Normalized(nn.Module):
    """A network under a name, behind a layer without parameters."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.body = body

    def forward(self, x):
        return self.body(x - self.mean)


def made(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=10, **options)


VIT = ["embedding", "msa", "mlp", "block1", "block6", "block12", "whole"]
MIXER = ["embedding", "token_mlp", "channel_mlp", "block1", "block6", "block12", "whole"]
RESNET = ["stem", "stage1", "stage2", "stage3", "stage4", "head", "whole"]
TITLES = {
    "vit_base_patch16_224": VIT,
    "mixer_b16_224": MIXER,
    "resnet18": RESNET,
    "resnetv2_50": RESNET,
    "convnext_atto": RESNET,
    "efficientnet_b0": ["conv_stem", "bn1", "blocks", "conv_head", "bn2", "classifier", "whole"],
    "swin_tiny_patch4_window7_224": ["patch_embed", "layers", "norm", "head", "whole"],
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", TITLES)
def test_blocks_are_those_of_the_paper_also_behind_a_wrapper(name, wrapped):
    model = made(name)
    outer = Normalized(model) if wrapped else model
    found = blocks(outer)
    assert list(found) == TITLES[name]
    assert found["whole"] == [name for name, _ in outer.named_parameters()]
    assert all(inside == match(outer, inside) for inside in found.values())


def test_a_vits_blocks_hold_what_the_docstring_says():
    found = blocks(made("vit_base_patch16_224"))
    assert found["embedding"] == ["patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert len(found["msa"]) == len(found["mlp"]) == 12 * 4
    assert "blocks.5.norm1.weight" in found["block6"]
    assert not any("norm" in name for name in found["msa"] + found["mlp"])
    assert {"cls_token", "pos_embed", "norm.weight", "head.weight"} <= set(found["whole"])


def test_middle_and_last_follow_the_depth():
    assert [t for t in blocks(made("vit_tiny_patch16_224", depth=9)) if t.startswith("block")] == [
        "block1", "block5", "block9",
    ]  # fmt: skip
    assert [t for t in blocks(NETS["vit"]()) if t.startswith("block")] == ["block1", "block2"]


def test_frozen_parameters_are_left_out():
    model = made("vit_tiny_patch16_224", depth=2)
    model.patch_embed.requires_grad_(False)
    assert "embedding" not in blocks(model)
    with pytest.raises(ValueError, match="no trainable"):
        blocks(model.requires_grad_(False))


@pytest.mark.parametrize("name", NETS)
def test_no_block_exceeds_the_whole(name):
    model, batch = NETS[name](), images()
    highest = float(torch.linalg.eigvalsh(by_functorch(model, batch))[-1])
    for title, params in blocks(model).items():
        op = Hessian(model, loss, [batch], dtype=torch.float64, params=params)
        found = top_eigenvalues(op, which="largest", tol=1e-6)
        assert found.values[0] <= highest * (1 + 1e-9), title
        assert title != "whole" or found.values[0] == pytest.approx(highest, rel=1e-6)


def test_patterns_fit_names_modules_and_wildcards():
    model = NETS["vit"]()
    assert match(model, "head") == ["head.weight", "head.bias"]
    assert match(model, ["head.bias", "cls_token"]) == ["cls_token", "head.bias"]
    assert match(model, "blocks.*.attn.proj.bias") == [f"blocks.{i}.attn.proj.bias" for i in (0, 1)]
    with pytest.raises(ValueError, match="no parameter fits 'haed'.*head"):
        match(model, "haed")
