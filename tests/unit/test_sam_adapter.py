"""The SAM optimizer in loops that know nothing of it."""

import pickle
import warnings
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.sam import SAM, sam_backward

ROUNDING = {"rtol": 1e-12, "atol": 1e-14}  # float64: a few hundred operations of 1e-16 each


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm, dropout: float = 0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), norm(7), nn.GELU(), nn.Dropout(dropout))
        self.head = nn.Linear(7, 3)
        self.double()

    def forward(self, x):
        return self.head(self.body(x))


def batch(size: int = 32) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 5, dtype=torch.float64), torch.randint(3, (size,))


def closure_of(model: nn.Module, x: Tensor, y: Tensor, scale: Callable[[Tensor], Tensor] = lambda loss: loss):
    def closure():
        loss = F.cross_entropy(model(x), y)
        scale(loss).backward()
        return loss

    return closure


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.3)


def assert_same(ours: nn.Module, theirs: nn.Module, **tolerance: float) -> None:
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, **(tolerance or ROUNDING), msg=lambda m, name=name: f"{name}: {m}")


def assert_bits(ours: nn.Module, theirs: nn.Module) -> None:
    assert_same(ours, theirs, rtol=0, atol=0)


def two_passes(model: nn.Module, losses: list[Callable[[], Tensor]], groups: list[dict], seed: int) -> Tensor:
    """SAM's gradient written out, into .grad: ascent over `groups` of {params, rho, t}, same seed in both passes."""
    params = [p for group in groups for p in group["params"]]
    torch.manual_seed(seed)
    clean = sum(loss() for loss in losses)
    g = dict(zip(params, torch.autograd.grad(clean, params), strict=True))
    t = {p: group.get("t", torch.ones_like)(p.detach()) for group in groups for p in group["params"]}
    norm = sum(float(((t[p] * g[p]) ** 2).sum()) for group in groups if group["rho"] for p in group["params"]) ** 0.5
    before = {p: p.detach().clone() for p in params}
    with torch.no_grad():
        for group in groups:
            for p in group["params"]:
                p += group["rho"] * t[p] ** 2 * g[p] / norm
    torch.manual_seed(seed)
    model.zero_grad()
    sum(loss() for loss in losses).backward()
    with torch.no_grad():
        for p in params:
            p.copy_(before[p])
    return clean.detach()


@pytest.mark.parametrize("base", [sgd, adamw])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_five_clipped_steps_are_the_formula(base, dropout, micro_batches):
    model, (x, y) = Net(dropout=dropout), batch()
    twin = deepcopy(model)
    sam, optimizer = SAM(base(model), rho=0.1, clip_norm=0.05), base(twin)

    def losses(model):
        parts = zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True)
        return [lambda a=a, b=b: F.cross_entropy(model(a), b) / micro_batches for a, b in parts]

    def closure():
        total = 0.0
        for loss_of in losses(model):
            loss = loss_of()
            loss.backward()
            total += loss.item()
        return total

    for seed in range(5):
        torch.manual_seed(seed)
        loss = sam.step(closure)
        groups = [{"params": list(twin.parameters()), "rho": 0.1}]
        assert loss == pytest.approx(float(two_passes(twin, losses(twin), groups, seed)), rel=1e-12)
        norm = sum(float((p.grad**2).sum()) for p in twin.parameters()) ** 0.5
        assert norm > 0.05, "clipping must act"
        for p in twin.parameters():
            p.grad *= 0.05 / (norm + 1e-6)  # 1e-6 as in torch.nn.utils.clip_grad_norm_
        optimizer.step()
    assert_same(model, twin)


def test_groups_have_their_own_rho_and_rho_zero_is_out_of_the_norm():
    model, (x, y) = Net(), batch()
    twin = deepcopy(model)

    def groups(model):
        return [
            {"params": list(model.body[0].parameters()), "rho": 0.3},
            {"params": list(model.head.parameters())},
            {"params": list(model.body[1].parameters()), "rho": 0.0},
        ]

    sam = SAM(torch.optim.SGD(groups(model), lr=0.1), rho=0.1)
    sam.step(closure_of(model, x, y))
    two_passes(twin, [lambda: F.cross_entropy(twin(x), y)], [{"rho": 0.1} | group for group in groups(twin)], 0)
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert_same(model, twin)


@pytest.mark.parametrize("names_from", ["model", "optimizer"])
def test_adaptive_takes_names_from_the_model_or_the_optimizer(names_from):
    model, (x, y) = Net(), batch()
    twin = deepcopy(model)
    if names_from == "model":
        sam = SAM(sgd(model), rho=0.5, adaptive=True, eta=0.02, model=model)
    else:
        sam = SAM(torch.optim.SGD(model.named_parameters(), lr=0.1), rho=0.5, adaptive=True, eta=0.02)
    sam.step(closure_of(model, x, y))
    named = dict(twin.named_parameters())
    weights = {"params": [p for name, p in named.items() if "weight" in name], "t": lambda w: w.abs() + 0.02}
    biases = {"params": [p for name, p in named.items() if "bias" in name]}
    two_passes(twin, [lambda: F.cross_entropy(twin(x), y)], [{"rho": 0.5} | weights, {"rho": 0.5} | biases], 0)
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert_same(model, twin)


def test_adaptive_without_names_says_where_to_get_them():
    with pytest.raises(ValueError, match=r"model\.named_parameters\(\), or pass model="):
        SAM(sgd(Net()), adaptive=True)
    sam = SAM(sgd(Net()))
    with pytest.raises(ValueError, match="pass model="):
        sam.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "adaptive": True})
    assert len(sam.param_groups) == 1


def test_the_adapter_is_sam_backward_and_a_step():
    model, (x, y) = Net(nn.BatchNorm1d, dropout=0.5), batch()
    twin = deepcopy(model)
    sam, base = SAM(adamw(model), rho=0.1), adamw(twin)
    for seed in range(3):
        torch.manual_seed(seed)
        ours = sam.step(closure_of(model, x, y))
        torch.manual_seed(seed)
        base.zero_grad()
        assert torch.equal(ours, sam_backward(lambda m: F.cross_entropy(m(x), y), twin, rho=0.1))
        base.step()
    assert_bits(model, twin)


class Trainer:
    """The shape of Hugging Face's Trainer: it owns the loop and steps without a closure; users override a method."""

    def __init__(self, model: nn.Module, accumulate: int):
        self.model, self.accumulate, self.optimizer = model, accumulate, adamw(model)

    def training_step(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(model(x), y) / self.accumulate
        loss.backward()
        return loss.detach()

    def train(self, x: Tensor, y: Tensor, steps: int) -> None:
        for _ in range(steps):
            for a, b in zip(x.chunk(self.accumulate), y.chunk(self.accumulate), strict=True):
                self.training_step(self.model, a, b)
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.05)
            self.optimizer.step()
            self.model.zero_grad()


class SamTrainer(Trainer):
    def training_step(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return sam_backward(lambda m: F.cross_entropy(m(x), y) / self.accumulate, model, rho=0.1)


def test_a_trainer_that_owns_the_loop_takes_sam_backward_in_its_training_step():
    model, (x, y) = Net(), batch()
    twin = deepcopy(model)
    SamTrainer(model, accumulate=1).train(x, y, steps=3)
    sam = SAM(adamw(twin), rho=0.1, clip_norm=0.05)
    for _ in range(3):
        sam.step(closure_of(twin, x, y))
    assert_bits(model, twin)
    SamTrainer(model, accumulate=4).train(x, y, steps=1)  # accumulation is m-sharpness: each call its own ascent


def test_a_closure_may_zero_the_gradients_or_not_and_gets_gradients_enabled():
    model, (x, y) = Net(), batch()
    twin = deepcopy(model)
    sam, other = SAM(sgd(model)), SAM(sgd(twin))

    def zeroing():
        other.zero_grad()
        return closure_of(twin, x, y)()

    for _ in range(3):
        with torch.no_grad():
            a = sam.step(closure_of(model, x, y))
        b = other.step(zeroing)
        assert torch.equal(a, b)
        assert not a.requires_grad
    assert_bits(model, twin)


def test_zeroing_in_place_is_as_good():
    model, (x, y) = Net(), batch()
    twin = deepcopy(model)
    sam, other = SAM(sgd(model)), SAM(sgd(twin))
    for _ in range(3):
        sam.step(closure_of(model, x, y))
        other.step(closure_of(twin, x, y))
        other.zero_grad(set_to_none=False)
    assert_bits(model, twin)


@pytest.mark.parametrize("value", [None, 3.5, {"loss": 1}])
def test_whatever_the_closure_returns_comes_back(value):
    model, (x, y) = Net(), batch()
    closure = closure_of(model, x, y)
    assert SAM(sgd(model)).step(lambda: closure() and value) == value


def test_two_closure_calls_a_step_or_one_if_rho_is_zero_everywhere():
    model, (x, y), calls = Net(nn.BatchNorm1d), batch(), []
    twin = deepcopy(model)

    def closure():
        calls.append(1)
        return closure_of(model, x, y)()

    SAM(sgd(model), rho=0.1).step(closure)
    assert len(calls) == 2
    model.load_state_dict(twin.state_dict())
    SAM(sgd(model), rho=0.0).step(lambda: (model.zero_grad(), closure())[1])
    assert len(calls) == 3
    base = sgd(twin)
    closure_of(twin, x, y)()
    base.step()
    assert_bits(model, twin)


def test_no_closure_and_a_closure_without_backward_are_refused():
    model, (x, y) = Net(), batch()
    twin = deepcopy(model)
    sam = SAM(sgd(model))
    with pytest.raises(TypeError, match=r"needs a closure .*call sam_backward"):
        sam.step()
    with pytest.raises(RuntimeError, match="must call backward"):
        sam.step(lambda: F.cross_entropy(model(x), y))
    assert_bits(model, twin)


def test_gradients_accumulated_outside_the_closure_are_refused():
    model, (x, y) = Net(), batch()
    twin = deepcopy(model)
    sam = SAM(sgd(model))
    closure_of(model, x, y)()  # as Lightning does for all but the last of accumulate_grad_batches
    with pytest.raises(RuntimeError, match="accumulate inside the closure"):
        sam.step(closure_of(model, x, y))
    assert_bits(model, twin)
    assert all(p.grad is None for p in model.parameters())
    sam.step(closure_of(model, x, y))


def test_gradients_from_elsewhere_that_the_closure_zeroes_do_no_harm():
    model, (x, y) = Net(), batch()
    twin = deepcopy(model)
    sam = SAM(sgd(model))
    closure_of(model, x, y)()  # a generator's loss running through a discriminator, say

    def closure():
        model.zero_grad()
        return closure_of(model, x, y)()

    sam.step(closure)
    SAM(sgd(twin)).step(closure_of(twin, x, y))
    assert_bits(model, twin)


@pytest.mark.parametrize("base", [sgd, adamw])
def test_five_steps_saved_and_five_more_are_ten_steps(base, tmp_path):
    model, (x, y) = Net(), batch()
    sam = SAM(base(model), rho=0.1)
    halfway = deepcopy(model)
    for i in range(10):
        sam.step(closure_of(model, x, y))
        if i == 4:
            torch.save(sam.state_dict(), tmp_path / "sam.pt")
            halfway.load_state_dict(model.state_dict())
    resumed = SAM(base(halfway), rho=0.7)  # the saved rho wins, like a saved lr
    resumed.load_state_dict(torch.load(tmp_path / "sam.pt", weights_only=True))
    assert resumed.param_groups[0]["rho"] == 0.1
    for _ in range(5):
        resumed.step(closure_of(halfway, x, y))
    assert_bits(halfway, model)


def test_the_state_of_a_base_optimizer_alone_loads_into_sam():
    model, (x, y) = Net(), batch()
    base = adamw(model)
    closure_of(model, x, y)()
    base.step()
    sam = SAM(adamw(model), rho=0.3)
    sam.load_state_dict(base.state_dict())
    assert sam.param_groups[0]["rho"] == 0.3
    assert sam.state[model.head.weight]["step"] == 1
    model.zero_grad()
    sam.step(closure_of(model, x, y))
    assert sam.state[model.head.weight]["step"] == 2


def test_groups_and_state_are_the_base_optimizers_own_also_after_loading():
    model, (x, y) = Net(), batch()
    base = adamw(model)
    sam = SAM(base)
    sam.step(closure_of(model, x, y))
    for _ in range(2):
        assert sam.param_groups is base.param_groups
        assert sam.state is base.state
        base.load_state_dict(deepcopy(base.state_dict()))
    sam.param_groups, sam.state = list(sam.param_groups), dict(sam.state)
    assert sam.param_groups is base.param_groups
    assert sam.state is base.state
    assert set(sam.state[model.head.weight]) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("on", ["sam", "base"])
def test_schedulers_work_on_either_optimizer_without_warnings(on):
    model, (x, y) = Net(), batch()
    base = sgd(model, lr=1.0)
    sam = SAM(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.StepLR(sam if on == "sam" else base, step_size=1, gamma=0.5)
        for _ in range(3):
            sam.step(closure_of(model, x, y))
            scheduler.step()
    assert sam.param_groups[0]["lr"] == base.param_groups[0]["lr"] == 0.125


def test_step_hooks_see_one_step():
    model, (x, y), seen = Net(), batch(), []
    sam = SAM(sgd(model))
    sam.register_step_pre_hook(lambda *_: seen.append("pre"))
    sam.register_step_post_hook(lambda *_: seen.append("post"))
    sam.base_optimizer.register_step_post_hook(lambda *_: seen.append("base"))
    sam.step(closure_of(model, x, y))
    assert seen == ["pre", "base", "post"]


def test_a_group_added_later_is_trained_perturbed_and_saved():
    model, (x, y) = Net(), batch()
    sam = SAM(torch.optim.AdamW(model.body.parameters(), lr=1e-2), rho=0.1)
    sam.add_param_group({"params": list(model.head.parameters()), "rho": 0.5})
    before = deepcopy(model)
    sam.step(closure_of(model, x, y))
    assert [group["rho"] for group in sam.state_dict()["param_groups"]] == [0.1, 0.5]
    assert [group["lr"] for group in sam.param_groups] == [1e-2, 1e-2]
    assert not torch.equal(model.head.weight, before.head.weight)


@pytest.mark.parametrize("copy", [deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])  # noqa: S301
def test_a_copy_of_model_and_optimizer_trains_on_alike(copy):
    model, (x, y) = Net(), batch()
    sam = SAM(adamw(model), rho=0.1, clip_norm=0.5)
    sam.step(closure_of(model, x, y))
    twin, other = copy((model, sam))
    other.zero_grad()
    for _ in range(2):
        sam.step(closure_of(model, x, y))
        other.step(closure_of(twin, x, y))
    assert_bits(twin, model)
    assert other.clip_norm == 0.5


def test_repr_names_both_optimizers_and_the_settings():
    text = repr(SAM(adamw(Net()), rho=0.25))
    assert text.startswith("SAM of AdamW (")
    assert "rho: 0.25" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -1.0}, "rho=-1.0 is negative"),
        ({"eta": 0.0}, "eta=0.0 is not positive"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 is not positive"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SAM(sgd(Net()), **settings)


def test_a_base_optimizer_with_a_rho_of_its_own_is_refused():
    with pytest.raises(ValueError, match="Adadelta has its own rho"):
        SAM(torch.optim.Adadelta(Net().parameters()))


def test_wrapping_an_optimizer_twice_is_refused_since_the_first_rho_would_win():
    base = sgd(Net())
    SAM(base, rho=0.1)
    with pytest.raises(ValueError, match="in a SAM already"):
        SAM(base, rho=0.2)


def test_a_refused_construction_leaves_the_base_optimizer_as_it_was():
    base = torch.optim.SGD([{"params": list(Net().parameters())}, {"params": list(Net().parameters()), "rho": -1.0}])
    for settings in ({}, {"adaptive": True}):
        with pytest.raises(ValueError):
            SAM(base, **settings)
        assert "eta" not in base.param_groups[0]
    base.param_groups[1]["rho"] = 0.3
    assert [group["rho"] for group in SAM(base, rho=0.2).param_groups] == [0.2, 0.3]


@pytest.mark.parametrize("tell", [False, True], ids=["not told", "told"])
def test_batchnorm_is_found_and_counted_once(tell):
    model, (x, y) = Net(nn.BatchNorm1d), batch()
    twin = deepcopy(model)
    twin(x)
    SAM(sgd(model), model=model if tell else None).step(closure_of(model, x, y))
    buffers = dict(twin.named_buffers())
    assert buffers["body.1.num_batches_tracked"] == 1
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_batchnorm_of_every_model_in_the_closure_is_found():
    first, second, teacher, (x, y) = Net(nn.BatchNorm1d), Net(nn.BatchNorm1d), Net(nn.BatchNorm1d).eval(), batch()
    before = deepcopy(teacher)

    def closure():
        loss = F.cross_entropy(first(x) + second.head(second.body(x)) + teacher(x), y)
        loss.backward()
        return loss

    SAM(torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)).step(closure)
    assert first.body[1].num_batches_tracked == 1
    assert second.body[1].num_batches_tracked == 1
    assert_bits(teacher, before)


def test_hooks_are_gone_after_a_step_and_after_an_exception():
    model, (x, y) = Net(), batch()
    sam = SAM(sgd(model))
    sam.step(closure_of(model, x, y))
    with pytest.raises(ZeroDivisionError):
        sam.step(lambda: model(x) / 0 if False else 1 / 0)
    assert not torch.nn.modules.module._has_any_global_hook()


def test_an_exception_in_the_second_closure_restores_weights_and_buffers_and_clears_gradients():
    model, (x, y), calls = Net(nn.BatchNorm1d), batch(), []
    twin = deepcopy(model)
    twin(x)
    addresses = [p.data_ptr() for p in model.parameters()]

    def closure():
        loss = closure_of(model, x, y)()
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        SAM(sgd(model)).step(closure)
    assert_bits(model, twin)
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert all(p.grad is None for p in model.parameters())


def test_weights_keep_their_storage():
    model, (x, y) = Net(), batch()
    addresses = [p.data_ptr() for p in model.parameters()]
    sam = SAM(sgd(model))
    for _ in range(3):
        sam.step(closure_of(model, x, y))
    assert [p.data_ptr() for p in model.parameters()] == addresses


def test_a_clean_gradient_that_is_not_finite_trains_on_the_plain_one():
    model, (x, y), calls = Net(), batch(), []
    twin = deepcopy(model)

    def closure():
        loss = closure_of(model, x, y)()
        calls.append(1)
        if len(calls) == 1:
            model.head.weight.grad[0, 0] = float("inf")
        return loss

    SAM(sgd(model), rho=0.1).step(closure)
    closure_of(twin, x, y)()
    sgd(twin).step()
    assert_same(model, twin)


class TestGradScaler:
    """fp16's loss scale, tried on the CPU, where the arithmetic of GradScaler is the same."""

    @pytest.mark.parametrize("clip_norm", [None, 0.05])
    def test_steps_with_a_scaler_are_steps_without(self, clip_norm):
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        sam, other = SAM(adamw(model), clip_norm=clip_norm), SAM(adamw(twin), clip_norm=clip_norm)
        for _ in range(4):
            sam.step(closure_of(model, x, y, scaler.scale), scaler=scaler)
            scaler.update()
            other.step(closure_of(twin, x, y))
        assert scaler.get_scale() == 1024.0
        assert_same(model, twin, rtol=1e-6, atol=1e-9)  # GradScaler inverts the scale in float32

    @pytest.mark.parametrize("clip_norm", [None, 0.05])
    def test_an_overflow_skips_the_step_and_training_goes_on(self, clip_norm):
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        sam = SAM(adamw(model), clip_norm=clip_norm)
        sam.step(closure_of(model, x, y, lambda loss: scaler.scale(loss) * float("inf")), scaler=scaler)
        scaler.update()
        assert_bits(model, twin)
        assert scaler.get_scale() == 128.0
        assert not sam.state
        sam.step(closure_of(model, x, y, scaler.scale), scaler=scaler)
        scaler.update()
        assert sam.state[model.head.weight]["step"] == 1
        assert all(bool(p.isfinite().all()) for p in model.parameters())

    @pytest.mark.parametrize(
        "call",
        [
            lambda scaler, sam, closure: scaler.step(sam, closure),
            lambda scaler, sam, _: scaler.step(sam),
            lambda scaler, sam, closure: (scaler.unscale_(sam), scaler.step(sam, closure)),
        ],
        ids=["positional", "without closure", "unscaled first"],
    )
    def test_scaler_step_on_sam_is_refused_before_anything_is_trained(self, call):
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        sam = SAM(sgd(model))
        closure = closure_of(model, x, y, scaler.scale)
        closure()  # gradients present, as in a loop that runs the first pass itself
        with pytest.raises(RuntimeError, match=r"sam\.step\(closure, scaler=scaler\)"):
            call(scaler, sam, closure)
        assert_bits(model, twin)
        scaler.update()
        sam.zero_grad()
        sam.step(closure, scaler=scaler)  # and the right call works with the same objects
        scaler.update()
        assert not torch.equal(model.head.weight, twin.head.weight)

    def test_scaler_step_is_refused_by_torch_before_the_first_scale_and_by_keyword(self):
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        scaler = torch.amp.GradScaler("cpu")
        closure = closure_of(model, x, y, scaler.scale)
        with pytest.raises(AssertionError):
            scaler.step(SAM(sgd(model)), closure)
        with pytest.raises(RuntimeError):
            scaler.step(SAM(sgd(model)), closure=closure)
        assert_bits(model, twin)

    def test_a_disabled_scaler_is_harmless_either_way(self):
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        sam, other = SAM(sgd(model)), SAM(sgd(twin))
        scaler.step(sam, closure_of(model, x, y, scaler.scale))
        sam.step(closure_of(model, x, y, scaler.scale), scaler=scaler)
        scaler.update()
        for _ in range(2):
            other.step(closure_of(twin, x, y))
        assert_bits(model, twin)


class TestCompiled:
    @staticmethod
    def compiled(model: nn.Module, how: str) -> nn.Module:
        torch._dynamo.reset()
        if how == "module":
            return torch.compile(model, backend="eager")
        model.compile(backend="eager")
        return model

    @pytest.mark.parametrize("how", ["module", "in place"])
    @pytest.mark.filterwarnings("ignore:Using `torch.compile")
    def test_with_batchnorm_it_must_be_named(self, how):
        model, (x, y) = Net(nn.BatchNorm1d), batch()
        before = deepcopy(model)
        compiled = self.compiled(model, how)
        with pytest.raises(RuntimeError, match=r"SAM\(base_optimizer, model=model\)"):
            SAM(sgd(model)).step(closure_of(compiled, x, y))
        assert_bits(model, before)
        twin = deepcopy(before)
        sam, other = SAM(sgd(model), model=compiled), SAM(sgd(twin))
        for _ in range(2):
            sam.step(closure_of(compiled, x, y))
            other.step(closure_of(twin, x, y))
        assert_same(model, twin)

    @pytest.mark.parametrize("how", ["module", "in place"])
    @pytest.mark.filterwarnings("ignore:Using `torch.compile")
    def test_without_buffers_it_need_not_be_and_compiles_once(self, how):
        graphs = []

        def backend(graph, _):
            graphs.append(graph)
            return graph.forward

        model, (x, y) = Net(dropout=0.5), batch()
        twin = deepcopy(model)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend)
        if how == "in place":
            model.compile(backend=backend)
            compiled = model
        closure_of(compiled, x, y)()
        once = len(graphs)
        assert once > 0
        torch._dynamo.reset()
        graphs.clear()
        model.zero_grad()
        sam, other, counts = SAM(sgd(model)), SAM(sgd(twin)), []
        for seed in range(3):
            torch.manual_seed(seed)
            sam.step(closure_of(compiled, x, y))
            torch.manual_seed(seed)
            other.step(closure_of(twin, x, y))
            counts.append(len(graphs))
        assert_same(model, twin)
        assert counts == [once] * 3


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_on_the_sam_gradient_with_its_own_clipping(tmp_path):
    lightning = pytest.importorskip("lightning")
    x, y = batch(24)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net(nn.BatchNorm1d)

        def training_step(self, batch, _):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            sam = SAM(sgd(self.net), rho=0.1)
            return [sam], [torch.optim.lr_scheduler.StepLR(sam, step_size=1, gamma=0.5)]

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    module = Module()
    twin = deepcopy(module.net)
    options = {"accelerator": "cpu", "max_epochs": 2, "default_root_dir": tmp_path, **quiet}
    trainer = lightning.Trainer(gradient_clip_val=0.05, **options)
    trainer.fit(module, data)
    assert trainer.global_step == 6

    sam = SAM(sgd(twin), rho=0.1, clip_norm=0.05)
    for epoch in range(2):
        sam.param_groups[0]["lr"] = 0.1 * 0.5**epoch
        for a, b in zip(x.split(8), y.split(8), strict=True):
            sam.step(closure_of(twin, a, b))
    assert_same(module.net, twin)

    with pytest.raises(RuntimeError, match="accumulate_grad_batches=1"):
        lightning.Trainer(accumulate_grad_batches=3, **options).fit(module, data)


def test_fsdp_is_refused_with_advice():
    class FullyShardedDataParallel(Net):
        """FSDP 1 itself cannot be built without an accelerator; it is recognised by its name."""

    model, (x, y) = FullyShardedDataParallel(), batch()
    with pytest.raises(ValueError, match="use DDP instead of FSDP"):
        SAM(sgd(model)).step(closure_of(model, x, y))
    with pytest.raises(ValueError, match="use DDP instead of FSDP"):
        sam_backward(lambda m: F.cross_entropy(m(x), y), model, rho=0.1)


@pytest.mark.parametrize("options", [{"rho": "0.05"}, {"rho": None}, {"rho": 0.05, "eta": [0.01]}])
def test_a_setting_that_is_no_number_is_one_line(options):
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match=r"(rho|eta)=.* is of type \w+; give a number"):
        SAM(torch.optim.SGD([weight], lr=0.1), **options)


# --- gradients that are not finite -----------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.3),
    "fused sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
    "fused adamw": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.3, fused=True),
}


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("first", [False, True])
def test_no_step_is_taken_on_a_gradient_that_is_not_finite(first, name, clip_norm, bad) -> None:
    model, (x, y) = Net(), batch()
    twin = deepcopy(model)
    sam, other = (SAM(OPTIMIZERS[name](each.parameters()), clip_norm=clip_norm) for each in (model, twin))
    spoiled = closure_of(model, x, y, lambda loss: loss * bad)
    if first:
        sam.step(spoiled)
    for _ in range(2):
        sam.step(closure_of(model, x, y))
        other.step(closure_of(twin, x, y))
    sam.step(spoiled)
    assert_bits(model, twin)
    assert sam.skipped == 1 + first
    assert other.skipped == 0
    sam.step(closure_of(model, x, y))
    other.step(closure_of(twin, x, y))
    assert_bits(model, twin)


def test_one_number_that_is_not_finite_is_enough_and_large_ones_are_not() -> None:
    model, (x, y) = Net(), batch()
    sam = SAM(sgd(model, lr=1e-30))
    sam.step(closure_of(model, x, y, lambda loss: loss * 1e200))
    assert sam.skipped == 0

    def closure():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        model.head.bias.grad[1] = float("nan")
        return loss

    sam.step(closure)
    assert sam.skipped == 1
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_the_base_optimizer_gets_such_a_gradient_where_it_is_asked_for() -> None:
    model, (x, y) = Net(), batch()
    sam = SAM(sgd(model), skip_nonfinite=False)
    sam.step(closure_of(model, x, y, lambda loss: loss * float("nan")))
    assert sam.skipped == 0
    assert not any(bool(p.isfinite().any()) for p in model.parameters())


def test_the_count_of_skipped_steps_is_copied() -> None:
    model, (x, y) = Net(), batch()
    sam = SAM(sgd(model))
    sam.step(closure_of(model, x, y, lambda loss: loss * float("nan")))
    again = deepcopy(sam)
    assert (again.skipped, again.skip_nonfinite) == (1, True)
