"""Hessian and GaussNewton against dense matrices by another route, and everything they must leave as it was."""

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from samovar.curvature import GaussNewton, Hessian, dense, top_eigenvalues
from samovar.curvature.graphs import held_bytes

pytestmark = pytest.mark.costly

ROUNDING = {"rtol": 1e-9, "atol": 1e-11}  # float64, thousands of operations of 1e-16 each on entries up to some 10
SINGLE = 2e-5  # float32, relative to the norm: hundreds of operations of 6e-8 each


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class GroupNormResNet(nn.Module):
    """A stem, one residual block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, 2, 1), nn.GroupNorm(2, 4)
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, 1, 1), nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(x + self.norm1(self.conv1(x))).mean(dim=(2, 3)))


def vit() -> nn.Module:
    return VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, embed_dim=4, depth=2, num_heads=2, mlp_ratio=1, num_classes=3
    )


def mixer() -> nn.Module:
    return MlpMixer(img_size=8, patch_size=4, in_chans=1, embed_dim=4, num_blocks=2, mlp_ratio=(1, 1), num_classes=3)


NETS: dict[str, Callable[[], nn.Module]] = {"vit": vit, "mixer": mixer, "resnet": GroupNormResNet}


def images(size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 1, 8, 8, generator=generator), torch.randint(3, (size,), generator=generator)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def logits(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


def criterion(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch[1])


def by_functorch(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The whole Hessian [P, P] in float64: one flat vector, torch.func, all rows at once."""
    named = {name: param.detach().double() for name, param in model.named_parameters()}
    buffers = {name: x.double() if x.is_floating_point() else x for name, x in model.named_buffers()}
    sizes, x, y = [param.numel() for param in named.values()], batch[0].double(), batch[1]

    def of_flat(flat: Tensor) -> Tensor:
        parts = (part.view(p.shape) for part, p in zip(flat.split(sizes), named.values(), strict=True))
        return F.cross_entropy(
            torch.func.functional_call(model, dict(zip(named, parts, strict=True)) | buffers, (x,)), y
        )

    flat = torch.cat([param.flatten() for param in named.values()])
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jacrev(torch.func.grad(of_flat), chunk_size=64)(flat)


def everything(model: nn.Module) -> dict[str, Any]:
    """Bits of the weights and buffers, where they are, gradients, flags, and the random stream."""
    state = {name: (x.clone(), x.data_ptr()) for name, x in [*model.named_parameters(), *model.named_buffers()]}
    grads = {name: (id(p.grad), p.requires_grad, id(p)) for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    return {"state": state, "grads": grads, "modes": modes, "random": torch.get_rng_state()}


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["grads"] == after["grads"]
    assert before["modes"] == after["modes"]
    assert torch.equal(before["random"], after["random"])
    for name, (value, where) in before["state"].items():
        assert torch.equal(value, after["state"][name][0])
        assert where == after["state"][name][1], name


@pytest.mark.parametrize("name", NETS)
def test_products_are_those_of_the_dense_hessian(name):
    model, batch = NETS[name](), images()
    op = Hessian(model, loss, [batch], dtype=torch.float64)
    torch.testing.assert_close(dense(op), by_functorch(model, batch), **ROUNDING)


@pytest.mark.parametrize("name", NETS)
def test_float32_products_err_by_rounding_only(name):
    model, batch = NETS[name](), images()
    v = torch.randn(Hessian(model, loss, [batch]).size)
    exact = Hessian(model, loss, [batch], dtype=torch.float64) @ v.double()
    found = Hessian(model, loss, [batch]) @ v
    assert found.dtype == torch.float32
    assert (found - exact).norm() < SINGLE * exact.norm()


STOCK = {
    "vit_tiny_patch16_224": 32,
    "mixer_s32_224": 64,
    "resnet10t": 32,
    "convnext_atto": 32,
    "efficientnet_b0": 32,
    "swin_tiny_patch4_window7_224": 32,
}
SMALLER: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 3},
    "mixer_s32_224": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "depths": (1, 1, 1, 1), "embed_dim": 24},
}


@pytest.mark.costly
@pytest.mark.parametrize("name", STOCK)
def test_stock_timm_models_run_and_are_bit_identical_afterwards(name):
    model = timm.create_model(name, num_classes=10, **SMALLER.get(name, {})).train()
    next(model.children()).eval()  # a mixture of modes has to come back too
    params = list(model.parameters())
    params[0].requires_grad_(False)
    params[1].grad = torch.ones_like(params[1])
    x, y = torch.randn(2, 3, STOCK[name], STOCK[name]), torch.randint(10, (2,))
    before = everything(model)
    pairs = top_eigenvalues(Hessian(model, loss, [(x, y)]), max_steps=3)
    assert_same(before, everything(model))
    assert torch.isfinite(pairs.values).all()
    assert pairs.values[0] != 0


def test_the_model_is_as_before_when_the_loss_raises():
    model = vit().train()
    before = everything(model)

    def broken(model: nn.Module, batch: Any) -> Tensor:
        model(batch[0])
        torch.rand(1)
        raise KeyError("out of data")

    with pytest.raises(KeyError, match="out of data"):
        Hessian(model, broken, [images()]) @ torch.ones(sum(p.numel() for p in model.parameters()))
    assert_same(before, everything(model))


def test_retained_and_fresh_graphs_give_the_same_bits():
    model, batches = vit(), [images(4, 1), images(6, 2), images(2, 3)]
    retained, fresh = (Hessian(model, loss, batches, retain=r) for r in (True, False))
    v = torch.randn(retained.size)
    retained @ v
    some = Hessian(model, loss, batches, retain=1 + held_bytes(retained._kept[0][1], retained._leaves))
    for _ in range(2):
        expected = retained @ v
        assert torch.equal(expected, fresh @ v)
        assert torch.equal(expected, some @ v)
    assert (retained.num_graphs, fresh.num_graphs, some.num_graphs) == (3, 6, 5)  # the budget is the first graph's
    assert (retained.num_products, fresh.num_products, some.num_products) == (3, 2, 2)


def test_several_columns_share_one_graph_per_batch():
    model = vit()
    op = Hessian(model, loss, [images(4, 1), images(6, 2)], retain=False)
    V = torch.randn(op.size, 3)
    product = op @ V
    assert (op.num_products, op.num_graphs) == (3, 2)
    torch.testing.assert_close(product, torch.stack([op @ v for v in V.T], dim=1), rtol=1e-5, atol=1e-6)


def test_unequal_batches_average_to_one_big_batch():
    model, (x, y) = vit(), images(12)
    parts = [(x[:2], y[:2]), (x[2:9], y[2:9]), (x[9:], y[9:])]
    one, many = (Hessian(model, loss, b, dtype=torch.float64) for b in ([(x, y)], parts))
    v = torch.randn(one.size, dtype=torch.float64)
    torch.testing.assert_close(many @ v, one @ v, **ROUNDING)
    loss1, gradient1 = one.loss_and_gradient()
    loss3, gradient3 = many.loss_and_gradient()
    assert loss3 == pytest.approx(loss1, rel=1e-12)
    torch.testing.assert_close(gradient3, gradient1, **ROUNDING)


@dataclass(frozen=True)
class Pictures:
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def test_batches_may_be_lists_dicts_dataclasses_and_loaders():
    model, (x, y) = vit(), images(8)
    data = torch.utils.data.TensorDataset(x, y)
    kinds: list[tuple[Any, Callable[[nn.Module, Any], Tensor]]] = [
        ([{"x": x[:3], "y": y[:3]}, {"x": x[3:], "y": y[3:]}], lambda m, b: F.cross_entropy(m(b["x"]), b["y"])),
        ([Pictures(x[:3], y[:3]), Pictures(x[3:], y[3:])], lambda m, b: F.cross_entropy(m(b.images), b.labels)),
        (torch.utils.data.DataLoader(data, batch_size=3), loss),
    ]
    whole = Hessian(model, loss, [(x, y)], dtype=torch.float64)
    v = torch.randn(whole.size, dtype=torch.float64)
    for batches, function in kinds:
        found = Hessian(model, function, batches, dtype=torch.float64) @ v
        torch.testing.assert_close(found, whole @ v, **ROUNDING)


WRITES: dict[str, Callable[[nn.Parameter], None]] = {
    "in place": lambda p: p.detach().mul_(1.5),
    "by .data, in place": lambda p: p.data.mul_(1.5),
    "by .data, another tensor": lambda p: setattr(p, "data", p.data * 1.5),
    "the same values again": lambda p: p.detach().copy_(p.detach().clone()),
}


@pytest.mark.parametrize("write", WRITES)
def test_weights_may_change_between_products(write):
    model, batch = vit(), images()
    op = Hessian(model, loss, [batch])
    v = torch.randn(op.size)
    op @ v
    WRITES[write](model.blocks[0].mlp.fc1.weight)
    assert torch.equal(op @ v, Hessian(model, loss, [batch]) @ v)
    assert op.num_graphs == 2


def test_buffers_may_change_between_products_and_never_do_by_themselves():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    op = Hessian(model, loss, [images()])
    v = torch.randn(op.size)
    first = op @ v
    model[2].running_var.mul_(4)
    assert not torch.equal(op @ v, first)
    assert model[2].num_batches_tracked == 0


def test_a_block_is_the_submatrix_and_unused_and_frozen_parameters_have_zero_rows():
    model, batch = vit(), images()
    whole = by_functorch(model, batch)
    block = Hessian(model, loss, [batch], dtype=torch.float64, params=["blocks.*.attn", "head.bias"])
    everywhere = torch.arange(whole.shape[0])
    parts = Hessian(model, loss, [batch]).split(everywhere)
    rows = torch.cat([parts[name].flatten() for name in block.names])
    assert block.names == [name for name in parts if ".attn." in name or name == "head.bias"]
    torch.testing.assert_close(dense(block), whole[rows][:, rows], **ROUNDING)

    model.unused = nn.Parameter(torch.ones(3))
    model.head.bias.requires_grad_(False)
    named = Hessian(model, loss, [batch], dtype=torch.float64, params=["unused", "head.*"])
    found, places = dense(named), named.split(torch.arange(named.size))
    assert not found[places["unused"]].any()
    assert not found[:, places["head.bias"]].any()
    assert found[places["head.weight"].flatten()].any()
    assert "head.bias" not in Hessian(model, loss, [batch]).names


TIES: dict[str, Callable[[nn.Module], Any]] = {
    "a module": lambda m: setattr(m.blocks[1].mlp, "fc1", m.blocks[0].mlp.fc1),
    "a parameter": lambda m: setattr(m.blocks[1].mlp.fc1, "weight", m.blocks[0].mlp.fc1.weight),
}


@pytest.mark.parametrize("tie", TIES)
def test_tied_parameters_count_once_and_stay_tied(tie):
    model, batch = vit(), images()
    TIES[tie](model)
    shared = model.blocks[0].mlp.fc1.weight
    before = everything(model)
    op = Hessian(model, loss, [batch], dtype=torch.float64, params=[shared])
    found = dense(op)
    assert op.names == ["blocks.0.mlp.fc1.weight"]
    assert model.blocks[1].mlp.fc1.weight is shared
    assert_same(before, everything(model))

    copied = copy.deepcopy(model).double()
    w = copied.blocks[1].mlp.fc1.weight
    with sdpa_kernel(SDPBackend.MATH):
        (g,) = torch.autograd.grad(loss(copied, (batch[0].double(), batch[1])), [w], create_graph=True)
    rows = [torch.autograd.grad(x, [w], retain_graph=True)[0].flatten() for x in g.flatten()]
    torch.testing.assert_close(found, torch.stack(rows), **ROUNDING)


def test_activation_checkpointing_gives_the_same_products():
    model, batch = vit().train(), images()
    op = Hessian(model, loss, [batch], dtype=torch.float64)
    v = torch.randn(op.size, dtype=torch.float64)
    expected = op @ v
    model.set_grad_checkpointing(True)
    again = Hessian(model, loss, [batch, batch], dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(again @ v, expected, **ROUNDING)


def test_it_works_under_no_grad_inference_mode_and_autocast():
    model, batch = vit(), images()
    op = Hessian(model, loss, [batch])
    v = torch.randn(op.size)
    expected = op @ v
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            assert torch.equal(Hessian(model, loss, [batch]) @ v, expected)


def test_dropout_in_train_mode_has_the_same_masks_in_every_product():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
    fresh = Hessian(model, loss, [images(), images(4, 1)], mode="train", retain=False)
    v = torch.randn(fresh.size)
    first = fresh @ v
    assert torch.equal(first, fresh @ v)
    assert torch.equal(first, Hessian(model, loss, [images(), images(4, 1)], mode="train", retain=True) @ v)
    assert not torch.equal(first, Hessian(model, loss, [images(), images(4, 1)]) @ v)


def peak_bytes(run: Callable[[], Any]) -> int:
    """Peak of what was allocated during run, by torch's own allocator events."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        run()
    alive = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


@pytest.mark.costly
def test_peak_memory_over_a_loader_does_not_grow_with_the_number_of_batches():
    model = vit()

    def peak(num_batches: int, retain: Any) -> int:
        op = Hessian(model, loss, [images(16, i) for i in range(num_batches)], retain=retain)
        v = torch.ones(op.size)
        return peak_bytes(lambda: [op @ v for _ in range(2)])

    peak(2, False)  # what torch allocates once
    assert peak(9, False) <= 1.02 * peak(3, False)  # 2 % for the sums of a pass
    assert peak(9, True) > 2 * peak(3, True)  # so that the measure is able to fail
    budget = peak(3, False) // 2
    assert peak(9, budget) <= 1.02 * peak(3, False) + budget


def test_held_bytes_are_what_a_retained_graph_takes():
    model = vit()
    op = Hessian(model, loss, [images(64)], retain=True)
    v = torch.ones(op.size)
    with torch.profiler.profile(profile_memory=True) as profiler:
        op @ v
    taken = sum(e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    ((_, graph),) = op._kept.values()
    assert held_bytes(graph, op._leaves) == pytest.approx(taken, rel=0.15)  # not all that is alive is a saved tensor


def test_nothing_is_left_alive_when_the_operator_goes():
    model = vit()
    op = Hessian(model, loss, [images()])
    op @ torch.ones(op.size)
    leaf = weakref.ref(op._leaves[0])
    del op
    assert leaf() is None


def test_gauss_newton_is_the_hessian_of_a_linear_model_and_semi_definite_for_any():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    H = dense(Hessian(linear, loss, [images()], dtype=torch.float64))
    G = dense(GaussNewton(linear, logits, criterion, [images()], dtype=torch.float64))
    torch.testing.assert_close(G, H, **ROUNDING)
    G = dense(GaussNewton(GroupNormResNet(), logits, criterion, [images(4, 1), images(6, 2)], dtype=torch.float64))
    torch.testing.assert_close(G, G.T, **ROUNDING)
    eigenvalues = torch.linalg.eigvalsh(G)
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]
    assert (eigenvalues > 1e-9 * eigenvalues[-1]).sum() <= 10 * 2  # rank: examples x (classes - 1)


def test_gauss_newton_is_j_h_j_written_out():
    model, batch = vit(), images()
    op = GaussNewton(model, logits, criterion, [batch], dtype=torch.float64)
    named = {name: p.detach().double() for name, p in model.named_parameters()}

    def of_params(params: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, params, (batch[0].double(),)).flatten()

    with sdpa_kernel(SDPBackend.MATH):
        jacobian = torch.func.jacrev(of_params)(named)
        z = of_params(named)
    J = torch.cat([jacobian[name].flatten(1) for name in op.names], dim=1)
    H = torch.func.hessian(lambda z: F.cross_entropy(z.view(6, 3), batch[1]))(z)
    torch.testing.assert_close(dense(op), J.T @ H @ J, **ROUNDING)
    loss_value, gradient = op.loss_and_gradient()
    expected, slope = Hessian(model, loss, [batch], dtype=torch.float64).loss_and_gradient()
    assert loss_value == pytest.approx(expected)
    torch.testing.assert_close(gradient, slope, **ROUNDING)


@pytest.mark.costly
def test_wrappers_are_looked_through():
    model, batch = vit(), images()
    v = torch.randn(Hessian(model, loss, [batch]).size)
    expected = Hessian(model, loss, [batch]) @ v
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        op = Hessian(wrapped, loss, [batch])
        assert op.names[0] == "cls_token"
        assert torch.equal(op @ v, expected)


def ones(op: Hessian) -> Tensor:
    return op @ torch.ones(op.size)


def nan_weights() -> nn.Module:
    model = vit()
    with torch.no_grad():
        model.head.bias[1] = torch.nan
    return model


def frozen() -> nn.Module:
    return vit().requires_grad_(False)


def batch_norm(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3, **options))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a loss per example": (
        lambda: ones(Hessian(vit(), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), [images()])),
        r"shape \[6\], not a scalar.*mean",
    ),
    "a number": (lambda: ones(Hessian(vit(), lambda m, b: 1.0, [images()])), "loss is float, not a scalar tensor"),
    "a detached loss": (lambda: ones(Hessian(vit(), lambda m, b: loss(m, b).detach(), [images()])), "does not depend"),
    "an infinite loss": (lambda: ones(Hessian(vit(), lambda m, b: loss(m, b) / 0, [images()])), "loss is inf"),
    "NaN weights": (lambda: ones(Hessian(nan_weights(), loss, [images()])), "head.bias is not finite"),
    "no batches": (lambda: ones(Hessian(vit(), loss, [])), "no batches; give at least one"),
    "no examples": (lambda: ones(Hessian(vit(), loss, [images(0)])), "no examples"),
    "a batch without tensors": (lambda: ones(Hessian(vit(), loss, [("a", "b")])), "no examples to count"),
    "a generator": (lambda: Hessian(vit(), loss, (images() for _ in range(2))), "only once; give a list"),
    "batches that change": (
        lambda: [ones(op) for op in [Hessian(vit(), loss, Shuffled(), retain=False)] for _ in range(2)],
        "shuffle=False",
    ),
    "everything frozen": (lambda: Hessian(frozen(), loss, [images()]), "no trainable parameter"),
    "a pattern that fits nothing": (lambda: Hessian(vit(), loss, [images()], params=["blcks.*"]), "no parameter fits"),
    "a foreign parameter": (
        lambda: Hessian(vit(), loss, [images()], params=[nn.Parameter(torch.ones(1))]),
        "not a par",
    ),
    "half precision": (lambda: Hessian(vit(), loss, [images()], dtype=torch.float16), "too coarse"),
    "retain": (lambda: Hessian(vit(), loss, [images()], retain=-1), "retain=-1 is not allowed"),
    "another mode": (lambda: Hessian(vit(), loss, [images()], mode="test"), "mode='test' is unknown"),
    "BatchNorm in train mode": (
        lambda: Hessian(batch_norm(), loss, [images()], mode="train"),
        "2 is a BatchNorm1d with mode='train'.*mode='eval'",
    ),
    "BatchNorm without statistics": (
        lambda: Hessian(batch_norm(track_running_stats=False), loss, [images()]),
        "no running statistics",
    ),
    "no process group": (lambda: Hessian(vit(), loss, [images()], distributed=True), "process group"),
    "a vector of another size": (
        lambda: Hessian(vit(), loss, [images()]) @ torch.ones(3),
        r"\[3\]; the operator takes",
    ),
}


class Shuffled:
    """Other batches in every pass."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([images(4, self.passes), images(4, 1 + self.passes)])


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(case):
    run, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)
