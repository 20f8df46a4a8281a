"""Test which parameters decay, optimizers by name, skipped steps, clipping and averaged weights."""

import math

import pytest
import timm.optim
import torch
from torch import nn

from samovar.config import ModelConfig, OptimConfig
from samovar.models.factory import create
from samovar.train.optim import (
    Ema,
    clip_,
    create_optimizer,
    honours_found_inf,
    parameter_groups,
    set_lr,
    step_if,
)
from samovar.train.schedules import lr_at


def digits(name):
    return create(ModelConfig(name=name, init="library"), num_classes=10, image_size=8, channels=1)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()


def give_gradients(model, value=None):
    for p in model.parameters():
        p.grad = torch.randn_like(p) if value is None else torch.full_like(p, value)


def snapshot(optimizer):
    """Return every tensor of the optimizer's state, by parameter and name."""
    return {
        (index, name): value.clone()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def names_of(group):
    return {name for name, _ in group["params"]}


# --- what decays -----------------------------------------------------------------------------------------------------

DECAYED = {
    "vit-digits": {"patch_embed.proj", "head"}
    | {f"blocks.{i}.{layer}" for i in range(4) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")},
    "mixer-digits": {"stem.proj", "head"}
    | {f"blocks.{i}.mlp_{mlp}.fc{j}" for i in range(6) for mlp in ("tokens", "channels") for j in (1, 2)},
    "resnet-digits": {"conv1", "fc"}
    | {f"layer{i}.0.conv{j}" for i in (1, 2, 3, 4) for j in (1, 2)}
    | {f"layer{i}.0.downsample.0" for i in (2, 3, 4)},
}


@pytest.mark.parametrize("name", DECAYED)
def test_exactly_the_kernels_decay(name):
    model = digits(name)
    decayed, kept = parameter_groups(model, OptimConfig(weight_decay=0.3))
    assert names_of(decayed) == {f"body.{layer}.weight" for layer in DECAYED[name]}
    assert names_of(decayed) | names_of(kept) == {key for key, _ in model.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)


def test_class_token_and_position_embedding_do_not_decay():
    _, kept = parameter_groups(digits("vit-digits"), OptimConfig(weight_decay=0.3))
    assert {"body.cls_token", "body.pos_embed", "body.norm.weight", "body.head.bias"} <= names_of(kept)


def test_all_decay_where_asked_for():
    model = digits("vit-digits")
    (group,) = parameter_groups(model, OptimConfig(weight_decay=0.1, decay="all"))
    assert len(group["params"]) == len(list(model.parameters()))


def test_torchs_attention_has_kernels_too():
    decayed, _ = parameter_groups(nn.MultiheadAttention(4, 2), OptimConfig())
    assert names_of(decayed) == {"in_proj_weight", "out_proj.weight"}


def test_a_shared_parameter_appears_once_and_a_frozen_one_not_at_all():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False), "extra": nn.Linear(2, 2)})
    model["head"].weight = model["embed"].weight
    model["extra"].weight.requires_grad_(False)
    decayed, kept = parameter_groups(model, OptimConfig())
    assert names_of(decayed) == {"embed.weight"}
    assert names_of(kept) == {"extra.bias"}


def test_a_frozen_model_is_refused():
    with pytest.raises(ValueError, match="no trainable parameters"):
        parameter_groups(net().requires_grad_(False), OptimConfig())


def test_optimizers_know_the_names_of_their_parameters():
    optimizer = create_optimizer(net(), OptimConfig())
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["0.weight", "2.weight"],
        ["0.bias", "1.weight", "1.bias", "2.bias"],
    ]


# --- which optimizer -------------------------------------------------------------------------------------------------


def test_adamw_decays_apart_from_the_gradient():
    model = net()
    optimizer = create_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.3, betas=(0.8, 0.99)))
    before = [p.detach().clone() for p in model.parameters()]
    give_gradients(model)
    optimizer.step()
    for old, p in zip(before, model.parameters(), strict=True):
        decay = 0.3 if p.ndim == 2 else 0.0
        expected = old * (1 - 0.1 * decay) - 0.1 * p.grad / (p.grad.abs() + 1e-8)  # bias-corrected moments are g, g^2
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)


def test_sgd_decays_within_the_gradient():
    model = net()
    optimizer = create_optimizer(model, OptimConfig(name="sgd", lr=0.1, weight_decay=0.3, momentum=0.9))
    weights = [p.detach().clone() for p in model.parameters()]
    momenta = [torch.zeros_like(p) for p in weights]
    for _ in range(3):
        give_gradients(model)
        for i, p in enumerate(model.parameters()):
            momenta[i] = 0.9 * momenta[i] + p.grad + (0.3 if p.ndim == 2 else 0) * weights[i]
            weights[i] = weights[i] - 0.1 * momenta[i]
        optimizer.step()
    for expected, p in zip(weights, model.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "cls"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_torchs_optimizers_are_fused(name, cls):
    optimizer = create_optimizer(net(), OptimConfig(name=name))
    assert type(optimizer) is cls
    assert all(group["fused"] for group in optimizer.param_groups)
    assert honours_found_inf(optimizer)


def test_without_a_fused_kernel_the_plain_one_is_taken():
    model = nn.Linear(2, 2, dtype=torch.complex64)
    optimizer = create_optimizer(model, OptimConfig())
    give_gradients(model)
    optimizer.step()
    assert not honours_found_inf(optimizer)


def test_lamb_clips_only_when_asked_to():
    optimizer = create_optimizer(net(), OptimConfig(name="lamb", betas=(0.8, 0.99), weight_decay=0.1))
    assert type(optimizer) is timm.optim.Lamb
    assert optimizer.defaults["max_grad_norm"] is None  # timm: 1
    assert [(g["betas"], g["weight_decay"]) for g in optimizer.param_groups] == [((0.8, 0.99), 0.1), ((0.8, 0.99), 0.0)]


def test_rmsprop_is_tensorflows_with_momentum_and_decay_within_the_gradient():
    model = net()
    config = OptimConfig(name="rmsproptf", lr=0.1, momentum=0.8, weight_decay=0.3)
    optimizer = create_optimizer(model, config)
    weights = [p.detach().clone() for p in model.parameters()]
    squares, momenta = [torch.ones_like(p) for p in weights], [torch.zeros_like(p) for p in weights]
    for lr in (0.1, 0.05):
        set_lr(optimizer, lr)
        give_gradients(model)
        for i, p in enumerate(model.parameters()):
            g = p.grad + (0.3 if p.ndim == 2 else 0) * weights[i]
            squares[i] = 0.9 * squares[i] + 0.1 * g**2  # starts from 1, and the rate goes into the momentum
            momenta[i] = 0.8 * momenta[i] + lr * g / (squares[i] + 1e-10).sqrt()
            weights[i] = weights[i] - momenta[i]
        optimizer.step()
    for expected, p in zip(weights, model.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)


# bnb* and fused* need CUDA, adahessian second derivatives; kron takes half a minute to import torch's compiler
NOT_HERE = ("bnb", "fused", "adahessian", "kron")


@pytest.mark.parametrize("name", [n for n in timm.optim.list_optimizers() if not n.startswith(NOT_HERE)])
def test_every_optimizer_of_timm_takes_our_groups_and_steps(name):
    model = net().float()
    optimizer = create_optimizer(model, OptimConfig(name=name, lr=0.01, weight_decay=0.01))
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        (model(torch.randn(5, 3)) ** 2).sum().backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(old, p) for old, p in zip(before, model.parameters(), strict=True))
    assert optimizer.param_groups[1]["weight_decay"] == 0


def test_an_unknown_optimizer_is_met_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown optimizer 'admw'; did you mean .*adamw"):
        create_optimizer(net(), OptimConfig(name="admw"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_an_optimizer_that_lacks_a_device_says_so():
    with pytest.raises(ValueError, match=r"optimizer fusedadam does not run here: .*CUDA"):
        create_optimizer(net(), OptimConfig(name="fusedadam"))


def test_an_optimizer_of_second_order_is_refused():
    with pytest.raises(ValueError, match="optimizer adahessian does not run here: it needs second derivatives"):
        create_optimizer(net(), OptimConfig(name="adahessian"))


# --- steps that are skipped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "sgdw", "rmsproptf"])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_skipped_step_leaves_weights_and_state_as_if_it_had_not_been(name, steps_before):
    def train(skip):
        model = net()
        optimizer = create_optimizer(model, OptimConfig(name=name, lr=0.1, weight_decay=0.1))
        for step in range(steps_before + 2):
            if skip and step == steps_before:
                give_gradients(model, math.nan)
                step_if(optimizer, torch.tensor(False))
            torch.manual_seed(step)
            give_gradients(model)
            step_if(optimizer, torch.tensor(True))
        return list(model.parameters()), snapshot(optimizer)

    (weights, state), (expected, expected_state) = train(skip=True), train(skip=False)
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[key], expected_state[key]) for key in state)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_found_inf_stops_a_fused_step_and_its_counter(name):
    model = net()
    optimizer = create_optimizer(model, OptimConfig(name=name))
    give_gradients(model)
    optimizer.step()
    weights, state = [p.detach().clone() for p in model.parameters()], snapshot(optimizer)
    give_gradients(model, math.inf)
    optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(old, p) for old, p in zip(weights, model.parameters(), strict=True))
    assert all(torch.equal(value, snapshot(optimizer)[key]) for key, value in state.items())


def test_a_step_leaves_no_found_inf_behind():
    model = net()
    optimizer = create_optimizer(model, OptimConfig())
    give_gradients(model)
    step_if(optimizer, torch.tensor(False))
    assert not hasattr(optimizer, "found_inf")


def test_a_parameter_without_a_gradient_in_the_first_step_may_have_one_later():
    model = net()
    optimizer = create_optimizer(model, OptimConfig(name="sgd"))
    give_gradients(model)
    model[0].weight.grad = None
    optimizer.step()
    give_gradients(model, 1.0)
    before = model[0].weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), before - 1e-3)


# --- learning rate and clipping --------------------------------------------------------------------------------------


def test_cosine_after_warmup_by_hand():
    config = OptimConfig(lr=2.0, warmup_steps=10)
    assert [lr_at(step, config, 30) for step in (0, 5, 10, 20, 30)] == pytest.approx([0, 1, 2, 1, 0])


def test_set_lr_reaches_every_group_and_keeps_its_scale():
    optimizer = create_optimizer(net(), OptimConfig())
    optimizer.param_groups[1]["lr_scale"] = 0.5
    set_lr(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]


def test_set_lr_keeps_the_tensor_of_a_compiled_step():
    rate = torch.tensor(1.0)
    optimizer = torch.optim.SGD(net().parameters(), lr=rate)
    set_lr(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.25


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
def test_clipping_bounds_the_global_norm_and_returns_the_one_before(max_norm):
    model = net()
    give_gradients(model)
    gradients = [p.grad.clone() for p in model.parameters()]
    expected = torch.cat([g.flatten() for g in gradients]).norm()
    norm = clip_(model.parameters(), max_norm)
    torch.testing.assert_close(norm, expected)
    scale = min(1.0, max_norm / (expected.item() + 1e-6)) if max_norm else 1.0
    for g, p in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, g * scale)


def test_clipping_skips_parameters_without_a_gradient():
    model = net()
    assert clip_(model.parameters(), 1.0) == 0
    model[0].bias.grad = torch.full((4,), 2.0, dtype=torch.float64)
    assert clip_(model.parameters(), 1.0) == 4
    assert model[0].bias.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_the_norm_of_a_gradient_that_is_not_finite_is_not_finite(bad):
    model = net()
    give_gradients(model, 1.0)
    model[2].bias.grad[0] = bad
    assert not clip_(model.parameters(), 1.0).isfinite()


# --- average of the weights ------------------------------------------------------------------------------------------


def test_the_average_follows_the_formula():
    model = net()
    ema, expected = Ema(model, 0.5), model[0].weight.detach().clone()
    for n in range(12):
        with torch.no_grad():
            model[0].weight.normal_()
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(ema.weights["0.weight"], expected, rtol=1e-12, atol=1e-12)


def test_statistics_of_batch_norm_are_copied():
    model = digits("resnet-digits-bn")
    ema = Ema(model, 0.99)
    model(torch.rand(4, 1, 8, 8))
    ema.update(model)
    buffers = {key: value for key, value in model.state_dict().items() if "running" in key or "tracked" in key}
    assert buffers
    assert all(torch.equal(ema.weights[key], value) for key, value in buffers.items())


def test_swapped_lends_the_average_and_gives_the_weights_back_bit_for_bit():
    model = digits("resnet-digits-bn")
    ema = Ema(model, 0.9)
    for p in model.parameters():
        nn.init.normal_(p)
    ema.update(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    storage = [p.data_ptr() for p in model.parameters()]
    with ema.swapped(model):
        assert all(torch.equal(value, ema.weights[key]) for key, value in model.state_dict().items())
        model(torch.rand(4, 1, 8, 8))  # moves the statistics
    with pytest.raises(TypeError, match="floating point"), ema.swapped(model):
        model(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == storage


def test_a_shared_parameter_stays_shared_under_the_average():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    ema = Ema(model, 0.9)
    nn.init.ones_(model[0].weight)
    ema.update(model)
    with ema.swapped(model):
        assert model[1].weight is model[0].weight
        assert torch.equal(ema.weights["0.weight"], ema.weights["1.weight"])


def test_an_average_continues_from_its_state_dict():
    model = net()
    ema, again = Ema(model, 0.9), Ema(net(), 0.9)
    for averages in ((ema,), (ema, again)):
        nn.init.normal_(model[0].weight)
        for average in averages:
            average.update(model)
        again.load_state_dict(ema.state_dict())
    nn.init.normal_(model[0].weight)
    ema.update(model)
    again.update(model)
    assert ema.num_updates == again.num_updates == 3
    assert all(torch.equal(ema.weights[key], again.weights[key]) for key in ema.weights)


def test_the_average_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"another model: 0\.bias"):
        Ema(net(), 0.9).load_state_dict({"num_updates": torch.tensor(1)})
