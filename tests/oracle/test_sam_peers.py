"""Every defect of other SAMs that peers.md names: a check that ours passes, and that the peer, or its behaviour, fails.

pytorch_optimizer is run as installed. davda54/sam and composer cannot be installed here; `KeepsOldP` and `KeepsStep`
restate in our own words, as far as the defects go, how they behave. They prove that the checks are able to fail.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from samovar.sam import SAM

pytestmark = pytest.mark.oracle
RHO = 0.1
Closure = Callable[[], Any]


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Restated(torch.optim.Optimizer):
    """A SAM that owns a base optimizer with state of its own, and takes its gradients from `.grad`."""

    def __init__(self, params, base: type[torch.optim.Optimizer], rho: float = RHO, **hyper: Any):
        super().__init__(params, {"rho": rho, **hyper})
        self.base = base(self.param_groups, **hyper)

    def _with_grad(self) -> Iterator[nn.Parameter]:
        return (p for group in self.param_groups for p in group["params"] if p.grad is not None)

    @torch.no_grad()
    def first_step(self) -> None:
        norm = torch.stack([p.grad.norm() for p in self._with_grad()]).norm()
        for p in self._with_grad():
            self._climb(p, RHO * p.grad / (norm + 1e-12))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self._with_grad():
            self._back(p)
        self.base.step()

    @torch.no_grad()
    def step(self, closure: Closure) -> None:
        with torch.enable_grad():
            closure()
            self.first_step()
            closure()
        self.second_step()
        self.zero_grad()


class KeepsOldP(Restated):
    """As davda54/sam: keeps a copy of each weight and puts that tensor in the weight's place."""

    def _climb(self, p: nn.Parameter, e: Tensor) -> None:
        self.state[p]["old_p"] = p.data.clone()
        p.add_(e)

    def _back(self, p: nn.Parameter) -> None:
        p.data = self.state[p]["old_p"]


class KeepsStep(Restated):
    """As composer: keeps each weight's perturbation and subtracts it; cannot load the state of an optimizer."""

    def _climb(self, p: nn.Parameter, e: Tensor) -> None:
        self.state[p]["e_w"] = e
        p.add_(e)

    def _back(self, p: nn.Parameter) -> None:
        p.sub_(self.state[p]["e_w"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise RuntimeError("resume works only if nothing but weights is loaded")


class Peer(NamedTuple):
    """How a library is used: build the optimizer; take a step; take one under a scaler."""

    build: Callable[..., Any]
    step: Callable[[Any, Closure], Any]
    scaled_step: Callable[[Any, Closure, torch.amp.GradScaler], Any]


def ours() -> Peer:
    return Peer(
        build=lambda model, base, **hyper: SAM(base(model.parameters(), **hyper), rho=RHO),
        step=lambda sam, closure: sam.step(closure),
        scaled_step=lambda sam, closure, scaler: sam.step(closure, scaler=scaler),
    )


def unscale_both_passes(sam: Any, closure: Closure, scaler: torch.amp.GradScaler) -> None:
    """What users of first_step and second_step write."""
    closure()
    scaler.unscale_(sam)
    sam.first_step()
    sam.zero_grad()
    closure()
    scaler.unscale_(sam)
    sam.second_step()


def davda54() -> Peer:
    return Peer(
        build=lambda model, base, **hyper: KeepsOldP(model.parameters(), base, **hyper),
        step=lambda sam, closure: sam.step(closure),
        scaled_step=unscale_both_passes,
    )


def composer() -> Peer:
    return davda54()._replace(build=lambda model, base, **hyper: KeepsStep(model.parameters(), base, **hyper))


def pytorch_optimizer() -> Peer:
    library = pytest.importorskip("pytorch_optimizer")

    def step(sam: Any, closure: Closure) -> None:
        closure()  # "Compute gradients at the current weights before calling step()"
        sam.step(closure)
        sam.zero_grad()

    return Peer(
        build=lambda model, base, **hyper: library.SAM(model.parameters(), base, rho=RHO, **hyper),
        step=step,
        scaled_step=unscale_both_passes,
    )


class Net(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), norm(7), nn.Tanh(), nn.Linear(7, 3))
        self.sometimes = nn.Linear(3, 3)
        self.use_sometimes = True
        self.double()

    def forward(self, x):
        x = self.layers(x)
        return self.sometimes(x) if self.use_sometimes else x


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))


def closure_of(
    model: nn.Module, x: Tensor, y: Tensor, scale: Callable[[Tensor], Tensor] = lambda loss: loss
) -> Closure:
    def closure() -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        scale(loss).backward()
        return loss

    return closure


def same_bits(ours: nn.Module, theirs: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


# The checks: one per defect. Each takes a Peer and raises if it has the defect.


def resume_is_exact(peer: Peer) -> None:
    model, (x, y) = Net(), batch()
    sam = peer.build(model, torch.optim.AdamW, lr=0.01)
    for i in range(6):
        peer.step(sam, closure_of(model, x, y))
        if i == 2:
            halfway, saved = deepcopy(model), deepcopy(sam.state_dict())
    resumed = peer.build(halfway, torch.optim.AdamW, lr=0.01)
    resumed.load_state_dict(saved)
    for _ in range(3):
        peer.step(resumed, closure_of(halfway, x, y))
    assert same_bits(halfway, model)


def unused_in_the_second_pass_is_restored(peer: Peer) -> None:
    model, (x, y), calls = Net(), batch(), []
    before = model.sometimes.weight.detach().clone()

    def closure() -> Tensor:
        calls.append(1)
        model.use_sometimes = len(calls) == 1
        return closure_of(model, x, y)()

    peer.step(peer.build(model, torch.optim.SGD, lr=0.0), closure)
    assert torch.equal(model.sometimes.weight, before)


def storage_is_kept(peer: Peer) -> None:
    model, (x, y) = Net(), batch()
    addresses = [p.data_ptr() for p in model.parameters()]
    peer.step(peer.build(model, torch.optim.SGD, lr=0.1), closure_of(model, x, y))
    assert [p.data_ptr() for p in model.parameters()] == addresses


def weights_come_back_to_the_bit(peer: Peer) -> None:
    model, (x, y) = Net().float(), batch()
    before = deepcopy(model)
    peer.step(peer.build(model, torch.optim.SGD, lr=0.0), closure_of(model, x.float(), y))
    assert same_bits(model, before)


def batchnorm_counts_once(peer: Peer) -> None:
    model, (x, y) = Net(nn.BatchNorm1d), batch()
    peer.step(peer.build(model, torch.optim.SGD, lr=0.1), closure_of(model, x, y))
    assert model.layers[1].num_batches_tracked == 1


def one_inf_is_survived(peer: Peer) -> None:
    model, (x, y), calls = Net(), batch(), []

    def closure() -> Tensor:
        loss = closure_of(model, x, y)()
        calls.append(1)
        if len(calls) == 1:
            model.layers[0].weight.grad[0, 0] = float("inf")
        return loss

    sam = peer.build(model, torch.optim.SGD, lr=0.1)
    for _ in range(2):
        peer.step(sam, closure)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def positional_scaler_step_never_trains_on_scaled_gradients(peer: Peer) -> None:
    model, (x, y) = Net(), batch()
    before, scaler = deepcopy(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    sam = peer.build(model, torch.optim.SGD, lr=0.1)
    closure = closure_of(model, x, y, scaler.scale)
    closure()
    try:
        scaler.step(sam, closure)
    except RuntimeError:
        assert same_bits(model, before)
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert (a - b).abs().max() < 1.0, "a step of 0.1 along a gradient below 10"


def two_steps_under_a_scaler_are_two_steps(peer: Peer) -> None:
    model, (x, y) = Net(), batch()
    twin, scaler = deepcopy(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    sam, other = (peer.build(each, torch.optim.SGD, lr=0.1) for each in (model, twin))
    for _ in range(2):
        peer.scaled_step(sam, closure_of(model, x, y, scaler.scale), scaler)
        scaler.update()
        peer.step(other, closure_of(twin, x, y))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # GradScaler inverts the scale in float32


def accumulated_outside_is_the_whole_batch_or_refused(peer: Peer) -> None:
    model, (x, y) = Net(), batch()
    twin = deepcopy(model)
    peer.step(peer.build(twin, torch.optim.SGD, lr=0.1), closure_of(twin, x, y))
    sam = peer.build(model, torch.optim.SGD, lr=0.1)

    def micro_batch(i: int) -> Tensor:
        loss = F.cross_entropy(model(x[i : i + 4]), y[i : i + 4]) / 3
        loss.backward()
        return loss

    micro_batch(0)
    micro_batch(4)
    try:
        sam.step(lambda: micro_batch(8))  # what a loop, or Lightning, does with any other optimizer
    except RuntimeError as error:
        assert "accumulate inside the closure" in str(error)  # noqa: PT017
        sam.step(lambda: [micro_batch(i) for i in (0, 4, 8)])
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def the_ascent_stays_on_its_rank(peer: Peer) -> None:
    model, (x, y), sent, passes = DistributedDataParallel(Net()), batch(), [], []

    def comm_hook(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sent.append(1)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def closure() -> Tensor:
        loss = closure_of(model, x, y)()
        passes.append(len(sent))
        return loss

    model.register_comm_hook(None, comm_hook)
    peer.step(peer.build(model, torch.optim.SGD, lr=0.1), closure)
    assert passes == [0, 1], "gradients averaged before the perturbation give all ranks one perturbation"


CHECKS = [
    resume_is_exact,
    unused_in_the_second_pass_is_restored,
    storage_is_kept,
    weights_come_back_to_the_bit,
    batchnorm_counts_once,
    one_inf_is_survived,
    positional_scaler_step_never_trains_on_scaled_gradients,
    two_steps_under_a_scaler_are_two_steps,
    accumulated_outside_is_the_whole_batch_or_refused,
    the_ascent_stays_on_its_rank,
]
DEFECTS = [
    (davda54, resume_is_exact),
    (davda54, unused_in_the_second_pass_is_restored),
    (davda54, storage_is_kept),
    (davda54, batchnorm_counts_once),
    (davda54, one_inf_is_survived),
    (davda54, positional_scaler_step_never_trains_on_scaled_gradients),
    (davda54, two_steps_under_a_scaler_are_two_steps),
    (davda54, accumulated_outside_is_the_whole_batch_or_refused),
    (davda54, the_ascent_stays_on_its_rank),
    (composer, resume_is_exact),
    (composer, unused_in_the_second_pass_is_restored),
    (composer, weights_come_back_to_the_bit),
    (composer, batchnorm_counts_once),
    (composer, one_inf_is_survived),
    (pytorch_optimizer, batchnorm_counts_once),
    (pytorch_optimizer, one_inf_is_survived),
    (pytorch_optimizer, positional_scaler_step_never_trains_on_scaled_gradients),
    (pytorch_optimizer, two_steps_under_a_scaler_are_two_steps),
    (pytorch_optimizer, accumulated_outside_is_the_whole_batch_or_refused),
    (pytorch_optimizer, the_ascent_stays_on_its_rank),
]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_ours_has_none_of_the_defects(check):
    check(ours())


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(("peer", "check"), DEFECTS, ids=lambda each: each.__name__)
def test_the_peer_has_the_defect_and_the_check_sees_it(peer, check):
    used = peer()
    with pytest.raises((AssertionError, RuntimeError)):
        check(used)


SOUND = [resume_is_exact, unused_in_the_second_pass_is_restored, storage_is_kept, weights_come_back_to_the_bit]


@pytest.mark.parametrize("check", SOUND, ids=lambda check: check.__name__)
def test_the_checks_do_not_ask_too_much_pytorch_optimizer_passes_where_it_is_sound(check):
    check(pytorch_optimizer())


@pytest.mark.parametrize(
    ("base", "hyper"),
    [(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), (torch.optim.AdamW, {"lr": 0.01, "eps": 1e-3})],
)
def test_without_defects_in_the_way_all_libraries_take_the_same_steps(base, hyper):
    model, (x, y) = Net(), batch()
    trained = []
    for peer in (ours(), davda54(), composer(), pytorch_optimizer()):
        twin = deepcopy(model)
        sam = peer.build(twin, base, **hyper)
        for _ in range(5):
            peer.step(sam, closure_of(twin, x, y))
        trained.append(twin)
    for other in trained[1:]:
        for a, b in zip(trained[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)  # pytorch_optimizer has |g| in float32
