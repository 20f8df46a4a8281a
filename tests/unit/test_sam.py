"""sam_backward against the formula written out, and everything it must leave as it was."""

import random
import weakref
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from samovar.sam import climb, plain_backward, sam_backward

ROUNDING = {"rtol": 1e-12, "atol": 1e-14}  # float64: a few hundred operations of 1e-16 each
LossFn = Callable[[nn.Module], Tensor]


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Residual(nn.Module):
    """x + DropPath(f(x)): the stochastic depth of timm's blocks."""

    def __init__(self, width: int, drop_path: float):
        super().__init__()
        self.fc, self.drop_path = nn.Linear(width, width), DropPath(drop_path)

    def forward(self, x):
        return x + self.drop_path(torch.tanh(self.fc(x)))


def net(*, dropout: float = 0.0, drop_path: float = 0.0, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> nn.Module:
    layers = [nn.Linear(5, 7), norm(7), nn.GELU(), nn.Dropout(dropout), Residual(7, drop_path), nn.Linear(7, 3)]
    return nn.Sequential(*layers).double()


def batch(size: int = 32) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 5, dtype=torch.float64), torch.randint(3, (size,))


def loss_on(x: Tensor, y: Tensor, weight: float = 1.0) -> LossFn:
    return lambda model: weight * F.cross_entropy(model(x), y)


def written_out(loss_fn: LossFn, model: nn.Module, rho: float, t: Callable | None = None, seed=7) -> list[Tensor]:
    """SAM's gradient by the formula, on a copy: grad L(w + rho T^2 g / |T g|), same seed in both passes."""
    model = deepcopy(model)
    named = dict(model.named_parameters())
    torch.manual_seed(seed)
    g = torch.autograd.grad(loss_fn(model), list(named.values()))
    scale = [torch.ones_like(p) if t is None else t(name, p.detach()) for name, p in named.items()]
    norm = sum(float(((ti * gi) ** 2).sum()) for ti, gi in zip(scale, g, strict=True)) ** 0.5
    with torch.no_grad():
        for p, gi, ti in zip(named.values(), g, scale, strict=True):
            p += rho * ti**2 * gi / norm
    torch.manual_seed(seed)
    return list(torch.autograd.grad(loss_fn(model), list(named.values())))


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters()]


def assert_same(ours: list[Tensor], theirs: list[Tensor], **tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or ROUNDING))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def sgd(lr: float = 0.1, momentum: float = 0.9, decay: float = 0.01):
    """SGD with momentum by its formula."""
    velocity: dict[int, Tensor] = {}

    def update(i: int, t: int, w: Tensor, g: Tensor) -> Tensor:
        g = g + decay * w
        velocity[i] = g if t == 1 else momentum * velocity[i] + g
        return w - lr * velocity[i]

    return update, lambda params: torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=decay)


def adamw(lr: float = 1e-2, b1: float = 0.9, b2: float = 0.99, eps: float = 1e-8, decay: float = 0.3):
    """AdamW by its formula."""
    first: dict[int, Tensor] = {}
    second: dict[int, Tensor] = {}

    def update(i: int, t: int, w: Tensor, g: Tensor) -> Tensor:
        first[i] = (1 - b1) * g + b1 * first.get(i, torch.zeros_like(g))
        second[i] = (1 - b2) * g**2 + b2 * second.get(i, torch.zeros_like(g))
        m_hat, v_hat = first[i] / (1 - b1**t), second[i] / (1 - b2**t)
        return w - lr * decay * w - lr * m_hat / (v_hat.sqrt() + eps)

    return update, lambda params: torch.optim.AdamW(params, lr=lr, betas=(b1, b2), eps=eps, weight_decay=decay)


@pytest.mark.parametrize("m", [1, 4, 32])
@pytest.mark.parametrize("rule", [sgd, adamw])
@pytest.mark.parametrize("noise", [{}, {"dropout": 0.5}, {"drop_path": 0.5}], ids=["plain", "dropout", "drop_path"])
def test_five_clipped_updates_are_the_formula(m, rule, noise):
    model, (x, y), max_norm = net(**noise), batch(32), 0.05
    update, optimizer_of = rule()
    optimizer, twin = optimizer_of(model.parameters()), deepcopy(model)
    for t in range(1, 6):
        groups = [loss_on(x[i : i + m], y[i : i + m], m / 32) for i in range(0, 32, m)]
        for i, group in enumerate(groups):
            torch.manual_seed(100 * t + i)
            sam_backward(group, model, rho=0.1)
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()

        parts = [written_out(group, twin, 0.1, seed=100 * t + i) for i, group in enumerate(groups)]
        total = [sum(each) for each in zip(*parts, strict=True)]
        norm = sum(float((g**2).sum()) for g in total) ** 0.5
        assert norm > max_norm, "clipping must act"
        with torch.no_grad():
            for i, (w, g) in enumerate(zip(twin.parameters(), total, strict=True)):
                w.copy_(update(i, t, w, g * max_norm / (norm + 1e-6)))  # 1e-6 as in torch.nn.utils.clip_grad_norm_
    assert_same(list(model.parameters()), list(twin.parameters()))


def test_adaptive_is_the_formula_of_asam_and_leaves_biases_alone():
    def t(name: str, w: Tensor) -> Tensor:
        return w.abs() + 0.02 if name.endswith("weight") else torch.ones_like(w)

    model, loss_fn = net(), loss_on(*batch())
    sam_backward(loss_fn, model, rho=0.5, adaptive=True, eta=0.02)
    assert_same(grads(model), written_out(loss_fn, model, 0.5, t))


def test_adaptive_knows_weights_by_name_also_in_attention_norms_and_parametrizations():
    model = nn.ModuleDict({"weights": nn.MultiheadAttention(4, 2), "norm": nn.LayerNorm(4)}).double()
    model["normed"] = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4).double())
    model.cls_token = nn.Parameter(torch.ones(4, dtype=torch.float64))
    inside = []

    def loss_fn(model):  # gradient 1 everywhere
        inside.append(snapshot(model))
        return sum(p.sum() for p in model.parameters())

    sam_backward(loss_fn, model, rho=0.1, adaptive=True)
    moved = {name: inside[1][name] - inside[0][name] for name, _ in model.named_parameters()}
    unit = moved["cls_token"][0]
    normalized = {name for name, e in moved.items() if not torch.allclose(e, unit)}
    assert normalized == {
        "weights.in_proj_weight",
        "weights.out_proj.weight",
        "norm.weight",
        "normed.parametrizations.weight.original0",
        "normed.parametrizations.weight.original1",
    }


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("size", [2, 16])
def test_many_parameters_at_a_time_as_on_an_accelerator_give_the_same_gradient(monkeypatch, size, adaptive):
    model, loss_fn = net(), loss_on(*batch())
    twin = deepcopy(model)
    sam_backward(loss_fn, model, rho=0.1, adaptive=adaptive)
    monkeypatch.setattr(climb, "CHUNK_ON_CPU", size)
    sam_backward(loss_fn, twin, rho=0.1, adaptive=adaptive)
    assert all(torch.equal(a, b) for a, b in zip(grads(twin), grads(model), strict=True))


def test_gradients_add_up_and_the_clean_loss_comes_back():
    model, loss_fn = net(), loss_on(*batch())
    clean = loss_fn(model).item()
    loss = sam_backward(loss_fn, model, rho=0.1)
    once = [g.clone() for g in grads(model)]
    sam_backward(loss_fn, model, rho=0.1)
    assert loss.item() == clean
    assert plain_backward(loss_fn, deepcopy(model)).item() == clean
    assert not loss.requires_grad
    assert not plain_backward(loss_fn, deepcopy(model)).requires_grad
    assert_same(grads(model), [2 * g for g in once])


@pytest.mark.parametrize("backward", [plain_backward, lambda *a: sam_backward(*a, rho=0.1)], ids=["plain", "sam"])
def test_micro_batches_of_one_group_are_that_group(backward):
    model, (x, y) = net(), batch(12)
    twin = deepcopy(model)
    whole = backward(loss_on(x, y), model)
    parts = backward([loss_on(x[i : i + 4], y[i : i + 4], 1 / 3) for i in (0, 4, 8)], twin)
    torch.testing.assert_close(parts, whole, **ROUNDING)
    assert_same(grads(twin), grads(model))


def test_micro_batches_see_their_own_masks_again_in_the_second_pass():
    model, (x, y) = net(dropout=0.5), batch(12)
    outputs = []
    handle = model[3].register_forward_hook(lambda _, args, out: outputs.append(out.detach() == 0))
    sam_backward([loss_on(x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)], model, rho=1e-9)
    handle.remove()
    assert [torch.equal(a, b) for a, b in zip(outputs[:3], outputs[3:], strict=True)] == [True] * 3
    assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("draw", [random.random, np.random.random], ids=["random", "numpy"])
def test_python_and_numpy_random_numbers_repeat_too(draw):
    model, (x, y), seen = net(), batch(), []

    def loss_fn(model):
        seen.append(draw())
        return F.cross_entropy(model(x), y)

    sam_backward(loss_fn, model, rho=0.1)
    assert seen[0] == seen[1]


def test_random_numbers_go_on_after_the_step_as_after_one_pass():
    model, loss_fn = net(dropout=0.5), loss_on(*batch())
    torch.manual_seed(3)
    loss_fn(model)
    expected = torch.rand(4)
    torch.manual_seed(3)
    sam_backward(loss_fn, model, rho=0.1)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit_in_the_same_storage(dtype):
    model, (x, y) = net().to(dtype), batch()
    before, addresses = snapshot(model), [p.data_ptr() for p in model.parameters()]
    inside = []

    def loss_fn(model):
        inside.append(snapshot(model))
        return F.cross_entropy(model(x.to(dtype)).float(), y)

    sam_backward(loss_fn, model, rho=0.7)
    assert_untouched(model, before)
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert not torch.equal(inside[1]["0.weight"], before["0.weight"]), "the second pass must see other weights"


def test_an_exception_in_the_second_pass_leaves_weights_and_buffers_as_after_the_first():
    model, (x, y), calls = net(norm=nn.BatchNorm1d), batch(), []
    twin = deepcopy(model)
    loss_on(x, y)(twin)  # one clean forward

    def loss_fn(model):
        calls.append(1)
        loss = F.cross_entropy(model(x), y)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        sam_backward(loss_fn, model, rho=0.1)
    assert_untouched(model, snapshot(twin))


def test_frozen_parameters_are_neither_perturbed_nor_in_the_norm():
    model, (x, y) = net(), batch()
    model[0].requires_grad_(False)
    inside = []

    def loss_fn(model):
        inside.append(snapshot(model))
        return F.cross_entropy(model(x), y)

    sam_backward(loss_fn, model, rho=0.1)
    moved = torch.cat([(inside[1][name] - inside[0][name]).flatten() for name in inside[0]])
    assert torch.equal(inside[1]["0.weight"], inside[0]["0.weight"])
    assert model[0].weight.grad is None
    torch.testing.assert_close(moved.norm().item(), 0.1, **ROUNDING)


def test_tied_parameters_are_perturbed_once():
    model, (x, y) = net(), batch()
    model[4].fc.weight = nn.Parameter(torch.randn(7, 7, dtype=torch.float64))
    model.insert(5, nn.Linear(7, 7).double())
    model[5].weight = model[4].fc.weight
    sam_backward(loss_on(x, y), model, rho=0.1)
    assert_same(grads(model), written_out(loss_on(x, y), model, 0.1))


class Alternating(nn.Module):
    """Uses `first` in odd calls and `second` in even ones, like layer drop with an unlucky draw."""

    def __init__(self):
        super().__init__()
        self.always, self.first, self.second = (nn.Linear(5, 5).double() for _ in range(3))
        self.never = nn.Linear(5, 5).double()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return (self.first if self.calls % 2 else self.second)(self.always(x))


def test_parameters_unused_in_either_pass_are_restored_and_get_the_gradient_of_the_second():
    model, (x, y) = Alternating(), batch()
    before = snapshot(model)
    sam_backward(loss_on(x, y), model, rho=0.5)
    assert_untouched(model, before)
    assert model.first.weight.grad is None
    assert model.never.weight.grad is None
    assert model.second.weight.grad is not None
    assert model.always.weight.grad is not None


def test_batchnorm_counts_the_clean_pass_once_and_the_other_not_at_all():
    model, (x, y) = net(norm=nn.BatchNorm1d), batch()
    twin = deepcopy(model)
    for _ in range(3):
        loss_on(x, y)(twin)
        sam_backward(loss_on(x, y), model, rho=0.1)
    assert model[1].num_batches_tracked == 3
    assert_untouched(model, snapshot(twin))


class Rebinding(nn.Module):
    """Keeps a moving average in a buffer that it rebinds instead of writing to it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(7, dtype=torch.float64))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


@pytest.mark.parametrize(
    "layer",
    [lambda _: Rebinding(), lambda n: nn.utils.parametrizations.spectral_norm(nn.Linear(n, n))],
    ids=["rebound", "spectral_norm"],
)
def test_every_other_buffer_is_that_of_one_clean_pass(layer):
    model, (x, y) = net(norm=layer), batch()
    twin = deepcopy(model)
    loss_on(x, y)(twin)
    sam_backward(loss_on(x, y), model, rho=0.1)
    assert_untouched(model, snapshot(twin))


def test_batchnorm_in_eval_mode_is_not_touched():
    model = net(norm=nn.BatchNorm1d)
    model[1].eval()
    before = snapshot(model)
    sam_backward(loss_on(*batch()), model, rho=0.1)
    assert_untouched(model, before)


class BadGradient(torch.autograd.Function):
    """Identity whose gradient is `value` in the first element."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        g.view(-1)[0] = ctx.value
        return g, None


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e200, 1e308])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_clean_gradient_that_is_not_finite_means_no_perturbation(value, adaptive):
    model, (x, y), calls = net(), batch(), []
    before = snapshot(model)

    def loss_fn(model):
        calls.append(snapshot(model))
        out = model(x)
        return F.cross_entropy(BadGradient.apply(out, value) if len(calls) == 1 else out, y)

    sam_backward(loss_fn, model, rho=0.1, adaptive=adaptive)
    for seen in calls:  # 1e200 is finite, its square is not: also no perturbation rather than a wrong one
        for name, weight in seen.items():
            assert torch.equal(weight, before[name])
    assert_untouched(model, before)
    plain = deepcopy(model)
    plain.zero_grad()
    plain_backward(loss_on(x, y), plain)
    assert_same(grads(model), grads(plain))


@pytest.mark.parametrize("factor", [0.0, 1e-310], ids=["zero", "denormal"])
def test_a_gradient_too_small_to_have_a_direction_means_no_perturbation(factor):
    model, (x, _), seen = net(), batch(), []
    before = snapshot(model)
    sam_backward(lambda m: seen.append(snapshot(m)) or factor * m(x).sum(), model, rho=0.1)
    for name, weight in seen[1].items():
        assert torch.equal(weight, before[name])


def test_one_gradient_tensor_for_two_parameters_is_not_scaled_twice():
    model = nn.ParameterDict({"a": torch.ones(3, dtype=torch.float64), "b": torch.ones(3, dtype=torch.float64)})
    inside = []

    def loss_fn(model):
        inside.append(snapshot(model))
        return (model["a"] + model["b"]).sum()  # autograd hands the same expanded tensor to both

    sam_backward(loss_fn, model, rho=6**0.5)
    for name in ("a", "b"):
        torch.testing.assert_close(inside[1][name], torch.full((3,), 2.0, dtype=torch.float64), **ROUNDING)


def test_a_sparse_gradient_perturbs_as_the_dense_one_does():
    words, dense = torch.tensor([1, 3, 1]), nn.Embedding(5, 3).double()
    sparse = nn.Embedding(5, 3, sparse=True, _weight=dense.weight.detach().clone())
    for model in (dense, sparse):
        sam_backward(lambda m: m(words).square().sum(), model, rho=0.1)
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad, **ROUNDING)


class Precomputed(torch.autograd.Function):
    """A loss that returns a gradient it keeps, as fused losses do."""

    @staticmethod
    def forward(ctx, w, gradient):
        ctx.gradient = gradient
        return (w * gradient).sum()

    @staticmethod
    def backward(ctx, g):
        return ctx.gradient, None


def test_a_gradient_that_someone_else_owns_is_not_written_to():
    model = nn.ParameterDict({"w": torch.zeros(3)})
    gradient = torch.tensor([3.0, 0.0, 4.0])
    sam_backward(lambda m: Precomputed.apply(m["w"], gradient), model, rho=0.1)
    assert torch.equal(gradient, torch.tensor([3.0, 0.0, 4.0]))


def test_rho_zero_is_the_plain_gradient_exactly_and_one_pass():
    model, (x, y), calls = net(norm=nn.BatchNorm1d), batch(), []
    twin = deepcopy(model)
    loss = sam_backward(lambda m: calls.append(1) or loss_on(x, y)(m), model, rho=0)
    assert torch.equal(loss, plain_backward(loss_on(x, y), twin))
    assert all(torch.equal(a, b) for a, b in zip(grads(model), grads(twin), strict=True))
    assert_untouched(model, snapshot(twin))
    assert len(calls) == 1


@pytest.mark.parametrize(("backward", "passes"), [(plain_backward, 1), (lambda *a: sam_backward(*a, rho=0.1), 2)])
def test_two_forwards_and_two_backwards_for_sam_and_one_of_each_for_plain(backward, passes):
    model, (x, y) = net(), batch()
    counts = {"forward": 0, "backward": 0}

    def forward_hook(*_):
        counts["forward"] += 1

    def backward_hook(*_):
        counts["backward"] += 1

    model[4].register_forward_hook(forward_hook)
    model[4].register_full_backward_hook(backward_hook)
    backward(loss_on(x, y), model)
    assert counts == {"forward": passes, "backward": passes}


class NoSync(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_host_never_waits_for_the_device(adaptive):
    model, loss_fn = net(norm=nn.LayerNorm), loss_on(*batch())
    with NoSync():
        sam_backward(loss_fn, model, rho=0.1, adaptive=adaptive)
        with pytest.raises(AssertionError):
            model[0].weight.sum().item()


def test_the_ascent_gradient_is_freed_before_the_second_pass():
    model, (x, y), ascent, calls = net(), batch(), [], []
    handle = model[0].weight.register_hook(lambda g: ascent.append(weakref.ref(g)))

    def loss_fn(model):
        calls.append(1)
        if len(calls) == 2:
            handle.remove()
            assert [ref() for ref in ascent] == [None]
        return F.cross_entropy(model(x), y)

    sam_backward(loss_fn, model, rho=0.1)
    assert len(calls) == 2


def test_weights_of_several_precisions_share_one_norm():
    model, (x, y) = net(), batch()
    model[4].fc.float()
    model[5].bfloat16()
    inside = []

    def loss_fn(model):
        inside.append(snapshot(model))
        hidden = model[:4](x)
        hidden = hidden + model[4].fc(hidden.float())
        return F.cross_entropy(model[5](hidden.bfloat16()).double(), y)

    before = snapshot(model)
    sam_backward(loss_fn, model, rho=5.0)
    moved = torch.cat([(inside[1][name].double() - inside[0][name].double()).flatten() for name in inside[0]])
    assert moved.norm().item() == pytest.approx(5.0, rel=5e-3)  # bfloat16 rounds a weight by up to 2^-9
    assert_untouched(model, before)


def test_the_norm_of_a_half_precision_gradient_does_not_overflow():
    model, inside = nn.ParameterDict({"w": torch.zeros(10_000, dtype=torch.float16)}), []

    def loss_fn(model):
        inside.append(snapshot(model))
        return (1000.0 * model["w"].float()).sum()  # |g| = 1e5, beyond float16's 65504

    sam_backward(loss_fn, model, rho=100.0)
    assert torch.equal(inside[1]["w"], torch.ones(10_000, dtype=torch.float16))


def test_adaptive_adds_eta_to_low_precision_weights_in_float32():
    model, inside = nn.ParameterDict({"weight": torch.tensor([256.0], dtype=torch.bfloat16)}), []
    sam_backward(lambda m: inside.append(snapshot(m)) or m["weight"].sum(), model, rho=1000.0, adaptive=True, eta=1.0)
    expected = 256.0 + 1000.0 * (256.0 + 1.0)  # bfloat16 has no 257, and steps of 1024 up there
    assert inside[1]["weight"].item() == pytest.approx(expected, abs=512)


def test_an_outer_autocast_does_not_hide_the_perturbation():
    model, (x, y) = net().float(), batch()
    twin = deepcopy(model)

    def inner(model):
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x.float()).float(), y)

    sam_backward(inner, model, rho=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        sam_backward(lambda m: F.cross_entropy(m(x.float()).float(), y), twin, rho=2.0)
    assert all(torch.equal(a, b) for a, b in zip(grads(model), grads(twin), strict=True))


def test_activation_checkpointing_gives_the_same_gradient():
    model, (x, y) = net(dropout=0.5), batch()
    twin = deepcopy(model)
    torch.manual_seed(7)
    sam_backward(lambda m: F.cross_entropy(checkpoint(m, x, use_reentrant=False), y), model, rho=0.1)
    assert_same(grads(model), written_out(loss_on(x, y), twin, 0.1))


def test_a_scaler_changes_nothing_but_the_scale():
    model, loss_fn = net(), loss_on(*batch())
    twin = deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = sam_backward(loss_fn, model, rho=0.1, scaler=scaler)
    plain = sam_backward(loss_fn, twin, rho=0.1)
    assert torch.equal(loss, plain)
    assert_same(grads(model), [1024 * g for g in grads(twin)])


def test_an_overflow_under_a_scaler_skips_the_step_and_halves_the_scale():
    model, (x, y) = net(), batch()
    before = snapshot(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    sam_backward(lambda m: F.cross_entropy(BadGradient.apply(m(x), float("inf")), y), model, rho=0.1, scaler=scaler)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert_untouched(model, before)
    assert scaler.get_scale() == 512.0


class Outer(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("how", ["module", "in place"])
def test_a_compiled_model_gets_the_same_gradient_and_buffers_without_compiling_again(how):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model, (x, y) = net(dropout=0.5, norm=nn.BatchNorm1d), batch()
    eager = deepcopy(model)
    if how == "module":
        compiled = torch.compile(model, backend=backend)
    else:
        compiled = Outer(model)  # torch does not compile a Sequential's own call
        compiled.compile(backend=backend)
    counts = []
    for seed in range(3):
        torch.manual_seed(seed)
        sam_backward(loss_on(x, y), compiled, rho=0.1)
        torch.manual_seed(seed)
        sam_backward(loss_on(x, y), eager, rho=0.1)
        counts.append(len(graphs))
    assert_same(grads(model), grads(eager))
    assert_untouched(model, snapshot(eager))
    assert counts == [counts[0]] * 3
    assert counts[0] > 0


@pytest.mark.costly
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_backward_gets_the_same_gradient_and_buffers(backend):
    torch._dynamo.reset()
    model, (x, y) = net(norm=nn.BatchNorm1d), batch()
    eager = deepcopy(model)
    compiled = torch.compile(model, backend=backend)
    for _ in range(2):
        sam_backward(loss_on(x, y), compiled, rho=0.1)
        sam_backward(loss_on(x, y), eager, rho=0.1)
    assert_same(grads(model), grads(eager), rtol=1e-9, atol=1e-11)  # other orders of summation
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, **ROUNDING)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -0.1}, "rho=-0.1 is negative; pick rho >= 0"),
        ({"rho": float("nan")}, "rho=nan is not finite"),
        ({"rho": float("inf")}, "rho=inf is not finite"),
        ({"rho": 0.1, "eta": 0.0}, "eta=0.0 is not positive"),
        ({"rho": 0.1, "eta": float("inf")}, "eta=inf is not positive and finite"),
    ],
)
def test_settings_out_of_range_are_refused_with_advice(settings, message):
    with pytest.raises(ValueError, match=message):
        sam_backward(loss_on(*batch()), net(), **settings)


@pytest.mark.parametrize("backward", [plain_backward, lambda *a: sam_backward(*a, rho=0.1)], ids=["plain", "sam"])
def test_no_loss_function_at_all_is_refused(backward):
    with pytest.raises(ValueError, match="loss_fn is an empty sequence"):
        backward([], net())
