"""FGSM and PGD against closed forms on linear models, and what they promise of pixels and of the model."""

import math

import pytest
import torch
from torch import nn

from samovar.attacks import EPS, fgsm, pgd


def linear(num_pixels: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(num_pixels, 3)).double()


def pictures(n: int = 5, low: float = 0.3, high: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = low + (high - low) * torch.rand(n, 3, 2, 2, generator=generator, dtype=torch.float64)
    return images, torch.arange(n) % 3


def two_class_margin() -> nn.Module:
    """Logits (w.x, 0): the loss of class 0 rises along -w everywhere."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight[1] = 0
    return model


def test_fgsm_moves_every_pixel_by_eps_against_the_weights_of_a_linear_model():
    model, (images, _) = two_class_margin(), pictures()
    labels = torch.zeros(5, dtype=torch.long)
    w = model[1].weight[0].detach().view(1, 3, 2, 2)
    assert torch.equal(fgsm(model, images, labels, eps=0.1), images - 0.1 * w.sign())


def test_l2_steps_end_at_the_furthest_point_of_the_ball_of_a_linear_model():
    model, (images, _) = two_class_margin(), pictures()
    labels = torch.zeros(5, dtype=torch.long)
    w = model[1].weight[0].detach().view(1, 3, 2, 2)
    found = pgd(model, images, labels, eps=0.2, step_size=0.05, num_steps=100, norm="2")
    # what is left of the random start shrinks by 0.8 a step, 2e-10 after 100
    torch.testing.assert_close(found, images - 0.2 * w / w.norm(), rtol=0, atol=1e-6)


def test_pgd_from_the_image_in_one_step_of_eps_is_fgsm():
    model, (images, labels) = linear(), pictures()
    found = pgd(model, images, labels, eps=0.05, step_size=0.05, num_steps=1, random_start=False)
    assert torch.equal(found, fgsm(model, images, labels, eps=0.05))


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_points_stay_in_the_ball_and_in_the_range_of_pixels(norm):
    model, (images, labels) = linear(), pictures(low=0.0, high=1.0)
    found = pgd(model, images, labels, eps=0.3, step_size=0.2, num_steps=5, norm=norm, restarts=2)
    change = (found - images).flatten(1)
    size = change.abs().amax(1) if norm == "inf" else change.norm(dim=1)
    assert (size <= 0.3 + 1e-12).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found < 0.01).any()  # some pixels reach the border, or this would test nothing
    assert (found > 0.99).any()


def test_random_starts_fill_the_ball_evenly():
    images = torch.full((4000, 1, 1, 2), 0.5, dtype=torch.float64)
    labels = torch.zeros(4000, dtype=torch.long)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).double()
    flat = pgd(model, images, labels, eps=0.4, num_steps=0) - 0.5
    assert abs(float(flat.abs().mean()) - 0.2) < 0.005  # mean of |u|, u uniform in [-0.4, 0.4]; 3 standard errors
    disc = (pgd(model, images, labels, eps=0.4, num_steps=0, norm="2") - 0.5).flatten(1).norm(dim=1)
    # the mean length of a point uniform in a disc of radius r is 2 r / 3
    assert abs(float(disc.mean()) - 0.8 / 3) < 0.005


def test_restarts_never_fool_less_and_never_lower_the_loss_of_what_is_not_fooled():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    images, labels = pictures(200)
    loss = nn.CrossEntropyLoss(reduction="none")

    def outcome(restarts):
        found = pgd(model, images, labels, eps=0.08, step_size=0.04, num_steps=2, restarts=restarts)
        return (model(found).argmax(1) != labels), loss(model(found), labels)

    fooled, losses = outcome(0)
    more_fooled, higher = outcome(5)
    assert (more_fooled >= fooled).all()
    assert (higher[fooled == more_fooled] >= losses[fooled == more_fooled]).all()
    assert (higher > losses).any()


def test_the_model_is_untouched_and_only_images_are_differentiated():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    model.train()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, labels = pictures()
    found = pgd(model, images, labels, eps=0.1)
    assert torch.equal(found, pgd(model, images, labels, eps=0.1))  # eval mode: no dropout, and the same seed
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))
    assert not found.requires_grad


def test_an_attack_takes_a_gradient_a_step_and_with_restarts_one_forward_pass_more_each():
    model, (images, labels) = linear(), pictures()
    calls = []
    model.register_forward_hook(lambda *args: calls.append(1))
    pgd(model, images, labels, num_steps=7)
    assert len(calls) == 7
    calls.clear()
    pgd(model, images, labels, num_steps=7, restarts=2)
    assert len(calls) == 24


def test_the_default_is_the_papers_attack():
    assert math.isclose(EPS * 255, 2)
    model, (images, labels) = linear(), pictures()
    wanted = pgd(model, images, labels, eps=2 / 255, step_size=0.25 / 255, num_steps=10, norm="inf", random_start=True)
    assert torch.equal(pgd(model, images, labels), wanted)


def test_eps_zero_changes_nothing():
    model, (images, labels) = linear(), pictures()
    for norm in ("inf", "2"):
        assert torch.equal(pgd(model, images, labels, eps=0, norm=norm), images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attack", [pgd, fgsm])
def test_images_outside_by_rounding_are_clamped(attack, dtype):
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    mean, std = mean.view(1, 3, 1, 1).to(dtype), std.view(1, 3, 1, 1).to(dtype)
    pixels = (torch.arange(256).view(256, 1, 1, 1) / 255).expand(-1, 3, 2, 2).to(dtype)
    images, labels = ((pixels - mean) / std) * std + mean, torch.zeros(256, dtype=torch.long)
    if dtype != torch.float32:  # whose own rounding leaves [0, 1]
        slack = max(1e-5, torch.finfo(dtype).eps)
        images[0], images[1] = -slack, 1 + slack
    assert images.min() < 0 or images.max() > 1
    model, before = linear().to(dtype), images.clone()
    found = attack(model, images, labels, eps=2 / 255)
    assert torch.equal(found, attack(model, images.clamp(0, 1), labels, eps=2 / 255))
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-1.2e-5, 1.0, "from -1.2e-05 to 1;"),
        (0.0, 1.000012, "from 0 to 1.000012;"),
        (0.25, 1.0001, "from 0.25 to 1.0001;"),
        (-0.4, 2.64, "from -0.4 to 2.64;"),
        (0.0, 255.0, "from 0 to 255;"),
        (0.0, math.nan, "from nan to nan;"),
    ],
)
def test_images_outside_by_more_are_refused_with_digits_that_show_it(low, high, words):
    images = torch.full((2, 3, 2, 2), low, dtype=torch.float64)
    images[0, 0, 0, 0] = high
    with pytest.raises(ValueError, match=words):
        pgd(linear(), images, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.full((2, 3, 2, 2), 1.5)}, "pixels in \\[0, 1\\], before normalization"),
        ({"images": torch.zeros(2, 3, 2, 2, dtype=torch.uint8)}, "uint8"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "2 images and 3 labels"),
        ({"eps": 8}, "eps=8 is not within \\[0, 1\\]"),
        ({"eps": math.nan}, "eps=nan"),
        ({"step_size": 0}, "step_size=0"),
        ({"num_steps": -1}, "num_steps=-1"),
        ({"norm": "1"}, "norm='1'"),
        ({"restarts": 1, "random_start": False}, "repeat the same ascent"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, words):
    given = {"images": torch.zeros(2, 3, 2, 2), "labels": torch.zeros(2, dtype=torch.long)} | change
    with pytest.raises(ValueError, match=words) as caught:
        pgd(linear().float(), given.pop("images"), given.pop("labels"), **given)
    assert "\n" not in str(caught.value)


def test_a_gradient_that_is_not_finite_is_refused():
    model, (images, labels) = linear(), pictures()
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        pgd(model, images, labels)


def test_attacks_work_inside_inference_mode():
    model, (images, labels) = linear(), pictures()
    wanted = pgd(model, images, labels, eps=0.1, restarts=1)
    with torch.inference_mode():
        found = pgd(model, images.clone(), labels.clone(), eps=0.1, restarts=1)
    assert torch.equal(found, wanted)
