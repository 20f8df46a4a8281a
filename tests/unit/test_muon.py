"""Muon with SAM: which parameters it orthogonalizes, its step by singular values, a resume in the same bits."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from samovar import cli, recipes
from samovar.config import OptimConfig
from samovar.models.factory import create
from samovar.runs import checkpoint
from samovar.sam import sam_backward
from samovar.train.optim import create_optimizer

MUON = OptimConfig(name="muon", lr=0.01, momentum=0.95, weight_decay=0.1)


def test_matrices_are_orthogonalized_and_the_rest_takes_adamw() -> None:
    config = recipes.get("vit-digits-muon-sam").config()
    model = create(config.model, num_classes=10, image_size=8, channels=1)
    optimizer = create_optimizer(model, config.optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    by_adamw = {name for name, p in model.named_parameters() if "exp_avg" in optimizer.state[p]}
    matrices = {name for name, p in model.named_parameters() if p.ndim >= 2 and min(p.shape[:2]) > 1}
    assert by_adamw == {name for name, _ in model.named_parameters()} - matrices
    # the kernel of a gray image has one input channel, which timm takes for a depthwise convolution
    assert {name for name in by_adamw if name.endswith("weight") and "norm" not in name} == {
        "body.patch_embed.proj.weight"
    }
    assert any("pos_embed" in name for name in by_adamw)


def test_a_step_with_sam_orthogonalizes_the_gradient_at_the_top_of_the_climb() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4, bias=False)
    images, targets = torch.randn(16, 8), torch.randn(16, 4)
    start = model.weight.detach().clone()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return (images @ weight.T - targets).square().mean()

    def gradient(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.clone().requires_grad_()
        return torch.autograd.grad(loss(weight), weight)[0]

    clean = gradient(start)
    climbed = gradient(start + 4.0 * clean / clean.norm())
    optimizer = create_optimizer(model, MUON)
    sam_backward(lambda net: (net(images) - targets).square().mean(), model, rho=4.0)
    torch.testing.assert_close(model.weight.grad, climbed)
    optimizer.step()
    # less weight decay, over the rate and the scale that gives it the size of AdamW's: 0.2 sqrt(larger side)
    step = (start * (1 - 0.01 * 0.1) - model.weight.detach()) / (0.01 * 0.2 * 8**0.5)
    left, _, right = torch.linalg.svd(climbed, full_matrices=False)
    inner = left.T @ step @ right.T
    singular = inner.diagonal()
    # timm takes five Newton-Schulz steps in bfloat16, so the factor is orthogonal within a tenth
    assert singular.min() > 0.85
    assert singular.max() < 1.15
    assert (inner - singular.diag()).abs().max() < 0.02
    assert (step - left @ inner @ right).abs().max() < 0.02
    # along the gradient before the climb it would be another step
    left, _, right = torch.linalg.svd(clean, full_matrices=False)
    inner = left.T @ step @ right.T
    assert (inner - inner.diagonal().diag()).abs().max() > 0.05


@pytest.mark.costly
@pytest.mark.parametrize("variant", ["sam", "momentum"])
def test_a_resume_ends_in_the_same_bits(variant: str, tmp_path) -> None:
    words = ["--steps", "12", "--run.eval-every", "6", "--run.keep", "9", "--optim.warmup-steps", "2"]
    words += ["--sam.momentum"] if variant == "momentum" else []
    last = []
    for name in ("whole", "cut"):
        cli.main(["train", "vit-digits-muon-sam", *words, "--output", str(tmp_path), "--name", name])
        run = tmp_path / name
        final = checkpoint.path_of(run / "checkpoints", 12)
        if name == "cut":
            final.rename(tmp_path / "aside")
            (run / "checkpoints" / "best.json").unlink()
            cli.main(["train", "--resume", str(run)])
        last.append((final / "model.safetensors").read_bytes())
    assert last[0] == last[1]


def test_its_twin_differs_in_sam_alone() -> None:
    plain, sam = (recipes.get(name).config() for name in ("vit-digits-muon", "vit-digits-muon-sam"))
    assert replace(sam, sam=plain.sam, recipe=plain.recipe) == plain
