"""The SAM optimizer in the loops that people bring: skipped batches, gradients zeroed in place, other signatures."""

import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.sam import SAM, sam_backward
from samovar.sam.variant import SamVariant
from tests.unit.test_sam import NoSync
from tests.unit.test_sam_adapter import Net, adamw, assert_bits, batch, closure_of, sgd

VARIANTS = [{}, {"ascent_steps": 2}, {"sigma": 1.0}, {"gamma": 0.8}, {"every": 2}]
SKIPS = "closure returned None and left no gradient"


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class TestSkippedBatch:
    """A closure that computes nothing and returns None, as Lightning's does when training_step returns None."""

    @pytest.mark.parametrize("at", [1, 2, 3])
    @pytest.mark.parametrize("variant", VARIANTS, ids=str)
    def test_it_is_no_step_in_whichever_pass_it_happens(self, variant, at):
        model, (x, y), calls = Net(nn.BatchNorm1d), batch(), []
        sam = SAM(adamw(model), rho=0.1, variant=SamVariant(**variant))
        sam.step(closure_of(model, x, y))
        before, state, step = deepcopy(model), deepcopy(sam.state_dict()), sam.memory.step

        def closure():
            calls.append(1)
            return None if len(calls) == at else closure_of(model, x, y)()

        passes = 1 if variant == {"every": 2} else 1 + variant.get("ascent_steps", 1)
        if at > passes:
            assert sam.step(closure) is not None
            return
        with pytest.warns(UserWarning, match=SKIPS):
            assert sam.step(closure) is None
        assert len(calls) == at
        for ours, theirs in zip(model.parameters(), before.parameters(), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.grad is None
        assert sam.memory.step == step
        torch.testing.assert_close(sam.state_dict(), state, rtol=0, atol=0)

    @pytest.mark.filterwarnings("ignore:.*left no gradient")
    def test_training_goes_on_as_if_the_batch_had_not_been_there(self):
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        sam, other = SAM(adamw(model), rho=0.1), SAM(adamw(twin), rho=0.1)
        for i in range(4):
            sam.step(lambda i=i: None if i % 2 else closure_of(model, x, y)())
            if i % 2 == 0:
                other.step(closure_of(twin, x, y))
        assert_bits(model, twin)

    def test_a_loss_without_a_gradient_is_a_missing_backward(self):
        model, (x, y) = Net(), batch()
        with pytest.raises(RuntimeError, match="must call backward"):
            SAM(sgd(model)).step(lambda: F.cross_entropy(model(x), y).item())

    def test_gradients_that_were_left_from_elsewhere_are_no_skipped_batch(self):
        model, (x, y) = Net(), batch()
        closure_of(model, x, y)()
        with pytest.raises(RuntimeError, match="there before step"):
            SAM(sgd(model)).step(lambda: None)

    @pytest.mark.oracle
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("in_place", [False, True])
    def test_lightning_skips_where_training_step_returns_none(self, in_place, tmp_path):
        lightning = pytest.importorskip("lightning")
        x, y = batch(32)
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = Net()

            def training_step(self, batch, index):
                return None if index in (0, 2) else F.cross_entropy(self.net(batch[0]), batch[1])

            def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
                optimizer.zero_grad(set_to_none=not in_place)

            def configure_optimizers(self):
                return SAM(adamw(self.net), rho=0.1)

        module = Module()
        twin = deepcopy(module.net)
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
        lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(module, data)
        sam = SAM(adamw(twin), rho=0.1)
        for index in (1, 3):
            sam.step(closure_of(twin, x[8 * index :][:8], y[8 * index :][:8]))
        assert_bits(module.net, twin)


def by_hand(params: list[Tensor]) -> None:
    for param in params:
        if param.grad is not None:
            param.grad.detach_()  # as torch's own zero_grad does
            param.grad.zero_()


def unguarded(params: list[Tensor]) -> None:
    for param in params:
        param.grad.zero_()


ZEROED: dict[str, Callable[[Any, nn.Module], object]] = {
    "sam": lambda sam, _: sam.zero_grad(set_to_none=False),
    "base": lambda sam, _: sam.base_optimizer.zero_grad(set_to_none=False),
    "model": lambda _, model: model.zero_grad(set_to_none=False),
    "by hand": lambda _, model: by_hand(list(model.parameters())),
    "foreach": lambda _, model: torch._foreach_zero_([p.grad for p in model.parameters()]),
    "unguarded": lambda _, model: unguarded(list(model.parameters())),
    "by data": lambda _, model: [p.grad.data.zero_() for p in model.parameters()],
    "times zero": lambda _, model: [p.grad.mul_(0) for p in model.parameters()],
    "to None": lambda _, model: model.zero_grad(),
}


class TestZeroedInPlace:
    @pytest.mark.parametrize("where", ["before", "inside", "both"])
    @pytest.mark.parametrize("how", ZEROED)
    @pytest.mark.parametrize("variant", [{}, {"gamma": 0.8}, {"ascent_steps": 2}], ids=str)
    def test_it_is_as_good_as_setting_to_none_also_after_plain_steps(self, how, where, variant):
        if where == "both" and how == "to None":
            pytest.skip("nothing in place")
        model, (x, y) = Net(), batch()
        base = sgd(model)
        closure_of(model, x, y)()
        base.step()  # a plain warm-up step, whose gradients are not of our making
        twin, theirs = deepcopy((model, base))
        model_and_ours = SAM(base, rho=0.1, variant=SamVariant(**variant))
        other = SAM(theirs, rho=0.1, variant=SamVariant(**variant))
        twin.zero_grad()
        for _ in range(3):
            if where != "inside":
                ZEROED[how](model_and_ours, model)

            def closure():
                if where != "before":
                    ZEROED[how](model_and_ours, model)
                return closure_of(model, x, y)()

            assert torch.equal(model_and_ours.step(closure), other.step(closure_of(twin, x, y)))
        assert_bits(model, twin)

    def test_micro_batches_inside_the_closure_still_add_up(self):
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        closure_of(model, x, y)()
        sam = SAM(sgd(model), rho=0.1)

        def closure(model, zero):
            zero()
            for a, b in zip(x.chunk(4), y.chunk(4), strict=True):
                (F.cross_entropy(model(a), b) / 4).backward()

        for _ in range(2):
            sam.step(lambda: closure(model, lambda: sam.zero_grad(set_to_none=False)))
        other = SAM(sgd(twin), rho=0.1)
        for _ in range(2):
            other.step(lambda: closure(twin, twin.zero_grad))
        assert_bits(model, twin)

    def test_a_gradient_that_is_not_finite_is_no_sign_of_addition(self):
        model, (x, y) = Net(), batch()
        closure_of(model, x, y)()
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        sam = SAM(sgd(model))

        def closure():
            sam.zero_grad(set_to_none=False)
            return closure_of(model, x * float("nan"), y, scaler.scale)()

        sam.step(closure, scaler=scaler)
        scaler.update()
        assert scaler.get_scale() == 128.0

    def test_gradients_that_the_closure_assigns_are_its_own(self):
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        closure_of(model, x, y)()

        def closure():
            loss, params = F.cross_entropy(model(x), y), list(model.parameters())
            for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
                param.grad = grad
            return loss

        sam, other = SAM(sgd(model), rho=0.1), SAM(sgd(twin), rho=0.1)
        for _ in range(2):
            sam.step(closure)
            other.step(closure_of(twin, x, y))
        assert_bits(model, twin)

    @pytest.mark.parametrize("how", ["zeroes another", "only scales", "zeroes too late", "unused"])
    def test_what_is_not_zeroed_is_still_refused(self, how):
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        closure_of(model, x, y)()

        def closure():
            if how == "zeroes another":
                model.body.zero_grad(set_to_none=False)
            if how == "only scales":
                [p.grad.mul_(0.5) for p in model.parameters()]
            if how == "unused":
                model.body.zero_grad()
                loss = model.body(x).square().mean()
                loss.backward()
                return loss
            loss = closure_of(model, x, y)()
            if how == "zeroes too late":
                model.zero_grad(set_to_none=False)
            return loss

        with pytest.raises(RuntimeError, match="accumulate inside the closure"):
            SAM(sgd(model)).step(closure)
        assert_bits(model, twin)
        assert all(p.grad is None for p in model.parameters())

    def test_a_missing_backward_is_seen_behind_zeros(self):
        model, (x, y) = Net(), batch()
        closure_of(model, x, y)()
        sam = SAM(sgd(model))

        def closure(backward=True):
            sam.zero_grad(set_to_none=False)
            loss = F.cross_entropy(model(x), y)
            if backward:
                loss.backward()
            return loss

        sam.step(closure)
        with pytest.raises(RuntimeError, match="must call backward"):
            sam.step(lambda: closure(backward=False))

    def test_a_parameter_that_the_closure_does_not_use_is_left_alone(self):
        model, (x, y) = Net(), batch()
        closure_of(model, x, y)()
        unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        unused.grad = torch.ones_like(unused)
        sam = SAM(torch.optim.AdamW([*model.parameters(), unused], lr=0.1, weight_decay=0.5))

        def closure():
            sam.zero_grad(set_to_none=False)
            return closure_of(model, x, y)()

        for _ in range(2):
            sam.step(closure)
        assert unused.tolist() == [1.0, 1.0]
        assert unused.grad is None

    def test_the_host_does_not_wait_once_the_habit_is_known(self):
        model, (x, y) = Net(), batch()
        closure_of(model, x, y)()
        # only fused optimizers skip a step on the device
        sam = SAM(sgd(model), rho=0.1, skip_nonfinite=False)

        def closure():
            sam.zero_grad(set_to_none=False)
            return closure_of(model, x, y)()

        sam.step(closure)
        with NoSync():
            sam.step(closure)


class TestGroupsOfTheBase:
    def test_a_plain_checkpoint_loaded_into_the_base_takes_the_defaults(self):
        model, (x, y) = Net(), batch()
        plain = adamw(model)
        closure_of(model, x, y)()
        plain.step()
        model.zero_grad()
        twin, saved = deepcopy(model), plain.state_dict()
        sam, other = SAM(adamw(model), rho=0.3, eta=0.02), SAM(adamw(twin), rho=0.3, eta=0.02)
        sam.base_optimizer.load_state_dict(deepcopy(saved))
        other.load_state_dict(deepcopy(saved))
        for _ in range(2):
            sam.step(closure_of(model, x, y))
            other.step(closure_of(twin, x, y))
        assert_bits(model, twin)
        assert {key: sam.param_groups[0][key] for key in ("rho", "adaptive", "eta")} == {
            "rho": 0.3,
            "adaptive": False,
            "eta": 0.02,
        }

    @pytest.mark.parametrize("given", [{}, {"rho": 0.5}, {"rho": 0.0, "eta": 0.5}], ids=str)
    def test_a_group_added_to_the_base_is_trained_and_perturbed(self, given):
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        sam = SAM(torch.optim.SGD(model.body.parameters(), lr=0.1), rho=0.1)
        sam.base_optimizer.add_param_group({"params": list(model.head.parameters()), **given})
        other = SAM(torch.optim.SGD(twin.body.parameters(), lr=0.1), rho=0.1)
        other.add_param_group({"params": list(twin.head.parameters()), **given})
        sam.step(closure_of(model, x, y))
        other.step(closure_of(twin, x, y))
        assert_bits(model, twin)
        assert sam.param_groups[1]["rho"] == given.get("rho", 0.1)

    def test_a_group_that_cannot_be_perturbed_is_refused_before_the_passes(self):
        model, (x, y), calls = Net(), batch(), []
        sam = SAM(sgd(model))
        sam.base_optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "rho": -1.0})
        with pytest.raises(ValueError, match="rho=-1.0 is negative"):
            sam.step(lambda: (calls.append(1), closure_of(model, x, y)()))
        assert not calls


class Mine(torch.optim.SGD):
    """An optimizer of the user's own."""


class TestSignatures:
    """The calls that other libraries take are answered by the call that is right here."""

    @pytest.mark.parametrize(
        ("call", "advice"),
        [
            (
                lambda m: SAM(m.parameters(), torch.optim.SGD, lr=0.1, rho=0.1),
                "SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1)",
            ),
            (
                lambda m: SAM(m.parameters(), torch.optim.SGD, rho=0.1, adaptive=True, lr=0.1, momentum=0.9),
                "SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.1, adaptive=True)",
            ),
            (
                lambda m: SAM(params=m.parameters(), base_optimizer=Mine, lr=0.1),
                "SAM(Mine(model.parameters(), lr=0.1), rho=0.05)",
            ),
            (
                lambda m: SAM(m.parameters(), base_optimizer=torch.optim.AdamW, betas=(0.9, 0.99)),
                "SAM(torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99)), rho=0.05)",
            ),
            (
                lambda m: SAM([{"params": m.parameters(), "lr": 0.2}], Mine, lr=0.1),
                "SAM(Mine(groups, lr=0.1), rho=0.05)",
            ),
            (lambda m: SAM(list(m.parameters()), Mine, 0.2), "SAM(Mine(model.parameters()), rho=0.2)"),
            (lambda m: SAM(m.named_parameters(), Mine, lr=0.1), "SAM(Mine(model.parameters(), lr=0.1), rho=0.05)"),
            (lambda m: SAM(m, Mine, lr=0.1), "SAM(Mine(model.parameters(), lr=0.1), rho=0.05)"),
            (
                lambda m: SAM(Mine, m.parameters(), lr=0.1),
                "SAM(Mine(model.parameters(), lr=0.1), rho=0.05)",
            ),
            (lambda m: SAM(Mine, lr=0.1), "SAM(Mine(model.parameters(), lr=0.1), rho=0.05)"),
            (lambda m: SAM(Mine), "SAM(Mine(model.parameters()), rho=0.05)"),
            (
                lambda m: SAM(m.parameters(), rho=0.1),
                "SAM(torch.optim.SGD(model.parameters(), lr=...), rho=0.1)",
            ),
            (
                lambda m: SAM(m.parameters(), partial(Mine, lr=0.1)),
                "SAM(Mine(model.parameters(), lr=0.1), rho=0.05)",
            ),
            (
                lambda m: SAM(m.parameters(), sgd(m), rho=0.1),
                "SAM(base_optimizer, rho=0.1)",
            ),
            (lambda m: SAM(base_optimizer=sgd(m), params=m.parameters()), "SAM(base_optimizer, rho=0.05)"),
            (lambda m: SAM(sgd(m), 0.1), "SAM(base_optimizer, rho=0.1)"),
            (lambda m: SAM(sgd(m), lr=0.1), "lr"),
            (lambda m: SAM(sgd(m), roh=0.1), "did you mean rho?"),
            (lambda m: SAM(rho=0.1), "SAM(torch.optim.SGD(model.parameters(), lr=...), rho=0.1)"),
            (lambda m: SAM("sgd", rho=0.1), "SAM(torch.optim.SGD(model.parameters(), lr=...), rho=0.1)"),
            (lambda m: SAM(int), "SAM("),
            (lambda m: SAM(None), "SAM(torch.optim.SGD(model.parameters(), lr=...), rho=0.05)"),
        ],
    )
    def test_the_answer_is_one_line_with_the_right_call(self, call, advice):
        with pytest.raises(TypeError, match=re.escape(advice)) as caught:
            call(Net())
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 260

    @pytest.mark.parametrize("name", ["first_step", "second_step"])
    def test_two_steps_are_answered_by_the_one_call(self, name):
        sam = SAM(sgd(Net()))
        with pytest.raises(AttributeError, match=rf"no attribute '{name}'; .*sam\.step\(closure\), or sam_backward"):
            getattr(sam, name)(zero_grad=True)
        assert not hasattr(sam, name)
        with pytest.raises(AttributeError, match="'SAM' object has no attribute 'third_step'$"):
            _ = sam.third_step

    def test_an_optimizer_by_keyword_is_right(self):
        model, (x, y) = Net(), batch()
        SAM(base_optimizer=sgd(model), rho=0.1).step(closure_of(model, x, y))


class Lookahead(torch.optim.Optimizer):
    """A wrapper of another optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, optimizer.defaults)

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Search(torch.optim.SGD):
    """Calls its closure itself, at several points."""

    def step(self, closure):
        return min(closure() for _ in range(3))


class OwnPasses(torch.optim.SGD):
    """A hand-written SAM."""

    def first_step(self): ...

    def second_step(self): ...


class TestOptimizersThatCallTheirClosure:
    @pytest.mark.parametrize(
        ("base", "name"),
        [
            (lambda p: torch.optim.LBFGS(p), "LBFGS"),
            (lambda p: Search(p, lr=0.1), "Search"),
            (lambda p: Lookahead(Search(p, lr=0.1)), "Search"),
            (lambda p: OwnPasses(p, lr=0.1), "OwnPasses"),
        ],
    )
    def test_they_are_refused_in_the_constructor(self, base, name):
        with pytest.raises(ValueError, match=f"{name} calls its closure itself.*wrap an optimizer") as caught:
            SAM(base(Net().parameters()))
        assert "\n" not in str(caught.value)

    def test_a_wrapper_of_an_ordinary_optimizer_is_not(self):
        model, (x, y) = Net(), batch()
        SAM(Lookahead(sgd(model))).step(closure_of(model, x, y))

    @pytest.mark.oracle
    @pytest.mark.parametrize("name", ["SAM", "WSAM", "LookSAM", "FriendlySAM", "BSAM", "AliG"])
    def test_those_of_pytorch_optimizer_are_refused_too(self, name):
        peers = pytest.importorskip("pytorch_optimizer")
        params = list(Net().parameters())
        single = {"BSAM": {"num_data": 1}, "AliG": {}}
        if name in single:
            base = getattr(peers, name)(params, **single[name])
        elif name == "WSAM":
            base = peers.WSAM(Net(), params, torch.optim.SGD, lr=0.1)
        else:
            base = getattr(peers, name)(params, torch.optim.SGD, lr=0.1)
        with pytest.raises(ValueError, match="calls its closure itself|has its own"):
            SAM(base)


@pytest.fixture
def accelerate():
    """Accelerate, whose state of the process is forgotten afterwards."""
    package = pytest.importorskip("accelerate")
    yield package
    package.state.AcceleratorState._reset_state(reset_partial_state=True)
    package.state.GradientState._reset_state()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
class TestAccelerate:
    @pytest.mark.parametrize("prepared", [True, False])
    def test_accumulate_around_a_step_is_refused_before_anything_is_trained(self, accelerate, prepared):
        accelerator = accelerate.Accelerator(gradient_accumulation_steps=4, cpu=True)
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        model, sam = accelerator.prepare_model(model), SAM(sgd(model), rho=0.1)
        optimizer = accelerator.prepare(sam) if prepared else sam

        def closure(a, b):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(a), b)
            accelerator.backward(loss)
            return loss

        def train():
            for a, b in zip(x.chunk(4), y.chunk(4), strict=True):
                with accelerator.accumulate(model):
                    optimizer.step(partial(closure, a, b))

        with pytest.raises(RuntimeError, match=r"accumulate\(\).*inside the closure.*sam_backward"):
            train()
        assert_bits(model, twin)

    def test_micro_batches_inside_the_closure_are_the_way(self, accelerate):
        accelerator = accelerate.Accelerator(cpu=True)
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        model, sam = accelerator.prepare(model, SAM(sgd(model), rho=0.1))

        def closure():
            sam.zero_grad()
            for a, b in zip(x.chunk(4), y.chunk(4), strict=True):
                accelerator.backward(F.cross_entropy(model(a), b) / 4)

        other = SAM(sgd(twin), rho=0.1)
        for _ in range(2):
            with accelerator.accumulate(model):
                sam.step(closure)
            parts = zip(x.chunk(4), y.chunk(4), strict=True)
            pairs = list(parts)
            other.step(lambda pairs=pairs: [(F.cross_entropy(twin(a), b) / 4).backward() for a, b in pairs])
        assert_bits(model, twin)

    def test_sam_backward_under_accumulate_is_the_other_way(self, accelerate):
        accelerator = accelerate.Accelerator(gradient_accumulation_steps=4, cpu=True)
        model, (x, y) = Net(), batch()
        twin = deepcopy(model)
        model, optimizer = accelerator.prepare(model, sgd(model))
        for a, b in zip(x.chunk(4), y.chunk(4), strict=True):
            with accelerator.accumulate(model):
                sam_backward(lambda m, a=a, b=b: F.cross_entropy(m(a), b) / 4, model, rho=0.1)
                optimizer.step()
                optimizer.zero_grad()
        plain = sgd(twin)
        for a, b in zip(x.chunk(4), y.chunk(4), strict=True):
            sam_backward(lambda m, a=a, b=b: F.cross_entropy(m(a), b) / 4, twin, rho=0.1)
        plain.step()
        assert_bits(model, twin)

    def test_accumulation_of_another_loop_in_the_process_is_no_hindrance(self, accelerate):
        accelerate.Accelerator(gradient_accumulation_steps=4, cpu=True)
        model, (x, y) = Net(), batch()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            SAM(sgd(model)).step(closure_of(model, x, y))
