"""SAM on two gloo processes: every rank ascends on its own, and only what DDP sends anyway is sent."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

from samovar.sam import SAM, plain_backward, sam_backward
from samovar.sam.variant import SamVariant
from tests.e2e.ranks import run_ranks

RANKS, SECONDS, RHO = 2, 400, 0.1
ROUNDING = {"rtol": 1e-12, "atol": 1e-14}  # float64; the target is 1e-6
SCENARIOS: dict[str, Callable[[int], Any]] = {}


def scenario(function: Callable[[int], Any]) -> Callable[[int], Any]:
    SCENARIOS[function.__name__] = function
    return function


def work(rank: int, folder: Path) -> None:
    """One process: run all scenarios, write what they return."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), RANKS), rank=rank, world_size=RANKS)
    results = {}
    for name, function in SCENARIOS.items():
        torch.manual_seed(0)
        results[name] = function(rank)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    run_ranks(work, folder, RANKS, SECONDS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def net(norm: Callable[[int], nn.Module] = nn.LayerNorm, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), norm(7), nn.Tanh(), nn.Dropout(dropout), nn.Linear(7, 3)).double()


def batch(rank: int, step: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(10 + 100 * step + rank)
    return torch.randn(8, 5, dtype=torch.float64), torch.randint(3, (8,))


def loss_on(x: Tensor, y: Tensor, weight: float = 1.0) -> Callable[[nn.Module], Tensor]:
    return lambda model: weight * F.cross_entropy(model(x), y)


def closure_of(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    def closure():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


class Sent:
    """Counts the collective operations started inside, in C++ or Python, by the profiler."""

    def __enter__(self) -> dict[str, int]:
        self.counts: dict[str, int] = {}
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.profiler.__enter__()
        return self.counts

    def __exit__(self, *error: object) -> None:
        self.profiler.__exit__(*error)
        for event in self.profiler.key_averages():
            if event.key.startswith("c10d::"):
                self.counts[event.key.removeprefix("c10d::")] = event.count


# What one process can compute by itself, to compare with.


def written_out(model: nn.Module, loss_fns: list[Callable], shared: bool = False) -> list[Tensor]:
    """Mean over ranks of SAM's gradient by the formula; `shared` ascends along the mean clean gradient instead."""

    def gradient(model: nn.Module, rank: int) -> list[Tensor]:
        torch.manual_seed(rank)
        return list(torch.autograd.grad(loss_fns[rank](model), list(model.parameters())))

    clean = [gradient(deepcopy(model), rank) for rank in range(RANKS)]
    if shared:
        clean = [[sum(g) / RANKS for g in zip(*clean, strict=True)]] * RANKS
    total = []
    for rank in range(RANKS):
        perturbed = deepcopy(model)
        norm = sum(float((g**2).sum()) for g in clean[rank]) ** 0.5
        with torch.no_grad():
            for p, g in zip(perturbed.parameters(), clean[rank], strict=True):
                p += RHO * g / norm
        total.append(gradient(perturbed, rank))
    return [sum(g) / RANKS for g in zip(*total, strict=True)]


def assert_same(ours: list[Tensor], theirs: list[Tensor], **tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or ROUNDING))


DDP_OPTIONS = [
    {},
    {"gradient_as_bucket_view": True},
    {"find_unused_parameters": True},
    {"static_graph": True},
    {"bucket_cap_mb": 1e-4},
]


@scenario
def gradient(rank: int) -> list[list[Tensor]]:
    found = []
    for options in DDP_OPTIONS:
        model, (x, y) = DDP(net(dropout=0.5), **options), batch(rank)
        for _ in range(2):  # the second time DDP has rebuilt its buckets
            model.zero_grad()
            torch.manual_seed(rank)
            sam_backward(loss_on(x, y), model, rho=RHO)
        found.append(grads(model))
    return found


def test_the_gradient_is_the_mean_of_the_ranks_sam_gradients_however_ddp_is_set(ranks):
    expected = written_out(net(dropout=0.5), [loss_on(*batch(rank)) for rank in range(RANKS)])
    for result in ranks:
        for found in result["gradient"]:
            assert_same(found, expected)


@scenario
def adapter_gradient(rank: int) -> list[list[Tensor]]:
    found = []
    for options in DDP_OPTIONS:
        if "static_graph" in options:
            continue  # DDP forbids no_sync in its first step then, with or without SAM: see below
        model, (x, y) = DDP(net(dropout=0.5), **options), batch(rank)
        sam = SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=RHO)
        for _ in range(2):
            torch.manual_seed(rank)
            sam.step(closure_of(model, x, y))
        found.append(grads(model))
    return found


def test_the_adapters_gradient_is_the_mean_of_the_ranks_sam_gradients(ranks):
    expected = written_out(net(dropout=0.5), [loss_on(*batch(rank)) for rank in range(RANKS)])
    for result in ranks:
        for found in result["adapter_gradient"]:
            assert_same(found, expected)


@scenario
def static_graph(rank: int) -> dict[str, Any]:
    """A graph that DDP counts in its first backward pass, which must not be a silent one."""
    x, y = batch(rank)
    found: dict[str, Any] = {}

    def steps(ddp: nn.Module, count: int, **settings: Any) -> list[Tensor]:
        ddp.zero_grad()
        sam = SAM(torch.optim.SGD(ddp.parameters(), lr=0.0), rho=RHO, **settings)
        for _ in range(count):
            torch.manual_seed(rank)
            sam.step(closure_of(ddp, x, y))
        return grads(ddp)

    model = DDP(net(dropout=0.5), static_graph=True)
    for name, settings in {"found": {}, "named": {"model": model}}.items():
        try:
            steps(model, 1, **settings)
        except ValueError as error:
            found[name] = str(error)
    found["cleared"] = all(p.grad is None for p in model.parameters())
    found["plain first"] = [steps(model, 3, start=1), steps(model, 2)]
    both = SamVariant(gamma=0.8)
    found["wsam"] = [steps(model, 2, variant=both), steps(DDP(net(dropout=0.5)), 2, variant=both)]
    found["shared"] = steps(DDP(net(dropout=0.5), static_graph=True), 3, shared_ascent=True)
    return found


def test_a_static_graph_is_refused_until_ddp_has_counted_it(ranks):
    losses = [loss_on(*batch(rank)) for rank in range(RANKS)]
    expected = written_out(net(dropout=0.5), losses)
    for result in ranks:
        found = result["static_graph"]
        for name in ("found", "named"):
            assert "use sam_backward, leave out static_graph" in found[name]
        assert found["cleared"]
        for each in found["plain first"]:
            assert_same(each, expected)
        assert_same(*found["wsam"])
        assert_same(found["shared"], written_out(net(dropout=0.5), losses, shared=True))


@scenario
def shared_ascent(rank: int) -> dict[str, Any]:
    x, y = batch(rank)
    model, found = DDP(net(dropout=0.5)), {}
    with Sent() as found["sent"]:
        torch.manual_seed(rank)
        sam_backward(loss_on(x, y), model, rho=RHO, shared_ascent=True)
    found["gradient"] = grads(model)
    model.zero_grad()
    torch.manual_seed(rank)
    with Sent() as found["adapter sent"]:
        SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=RHO, shared_ascent=True).step(closure_of(model, x, y))
    found["adapter gradient"] = grads(model)
    return found


def test_a_shared_ascent_goes_along_the_mean_gradient_for_one_all_reduce_more(ranks):
    expected = written_out(net(dropout=0.5), [loss_on(*batch(rank)) for rank in range(RANKS)], shared=True)
    for result in ranks:
        assert_same(result["shared_ascent"]["gradient"], expected)
        assert_same(result["shared_ascent"]["adapter gradient"], expected)
        assert result["shared_ascent"]["sent"] == {"allreduce_": 2}
        assert result["shared_ascent"]["adapter sent"]["allreduce_"] == 2


@scenario
def groups(rank: int) -> dict[str, Any]:
    model, (x, y) = DDP(net()), batch(rank)
    with Sent() as sent:
        with model.no_sync():
            for i in (0, 2, 4):
                sam_backward(loss_on(x[i : i + 2], y[i : i + 2], 1 / 4), model, rho=RHO)
        sam_backward(loss_on(x[6:], y[6:], 1 / 4), model, rho=RHO)
    return {"gradient": grads(model), "sent": sent}


def test_groups_inside_no_sync_are_m_sharpness_for_one_all_reduce(ranks):
    data = [batch(rank) for rank in range(RANKS)]
    parts = [written_out(net(), [loss_on(x[i : i + 2], y[i : i + 2], 1 / 4) for x, y in data]) for i in range(0, 8, 2)]
    for result in ranks:
        assert_same(result["groups"]["gradient"], [sum(g) for g in zip(*parts, strict=True)])
        assert result["groups"]["sent"] == {"allreduce_": 1}


@scenario
def micro_batches(rank: int) -> dict[str, Any]:
    (x, y), found = batch(rank), {}
    halves = [loss_on(x[:4], y[:4], 0.5), loss_on(x[4:], y[4:], 0.5)]
    for name, backward in {"plain": plain_backward, "sam": lambda *a: sam_backward(*a, rho=RHO)}.items():
        model = DDP(net())
        with Sent() as sent:
            backward(halves, model)
        found[name] = {"gradient": grads(model), "sent": sent}
        backward(loss_on(x, y), whole := DDP(net()))
        found[name]["whole"] = grads(whole)
    return found


@pytest.mark.parametrize("backward", ["plain", "sam"])
def test_micro_batches_of_a_group_are_sent_once(ranks, backward):
    for result in ranks:
        found = result["micro_batches"][backward]
        assert_same(found["gradient"], found["whole"])
        assert found["sent"] == {"allreduce_": 1}


class Ascents:
    """Counts what is sent between two calls of `mark`: during the first pass, up to its backward."""

    def __init__(self) -> None:
        self.calls, self.counts, self.gradients = 0, [], []

    def closure(self, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
        def closure():
            with Sent() as sent:
                loss = closure_of(model, x, y)()
            self.counts.append(sent)
            self.gradients.append(grads(model))
            return loss

        return closure


MODELS = {
    "no buffers": nn.LayerNorm,
    "batchnorm": nn.BatchNorm1d,
    "batchnorm, the module in DDP named": nn.BatchNorm1d,
    "compiled": nn.BatchNorm1d,
}


@scenario
def ascent(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    compiled = torch.compile(net(nn.BatchNorm1d), backend="eager")
    for name, inside in MODELS.items():
        inside = compiled if name == "compiled" else net(inside)
        model, (x, y), hooked = DDP(inside), batch(rank), []
        named = None if name in ("no buffers", "batchnorm") else inside

        def comm_hook(_, bucket, hooked=hooked):
            hooked.append(1)
            return dist.all_reduce(bucket.buffer() / RANKS, async_op=True).get_future().then(lambda f: f.value()[0])

        model.register_comm_hook(None, comm_hook)
        sam, watch = SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=RHO, model=named), Ascents()
        closure, buckets = watch.closure(model, x, y), []
        for _ in range(3):
            sam.step(lambda closure=closure, buckets=buckets, hooked=hooked: (closure(), buckets.append(len(hooked))))
        statistics = [int(b) for n, b in model.named_buffers() if n.endswith("num_batches_tracked")]
        found[name] = {"sent": watch.counts, "buckets": buckets, "gradients": watch.gradients, "seen": statistics}
    return found


@pytest.mark.parametrize("model", MODELS)
def test_the_adapters_ascent_sends_nothing_and_differs_between_ranks(ranks, model):
    for result in ranks:
        found = result["ascent"][model]
        assert found["buckets"] == [0, 1, 1, 2, 2, 3], "the comm hook must run in descents only"
        assert found["sent"][0] == found["sent"][4] == {}
        # once in a life, as its second forward begins, DDP agrees on the order of its buckets
        assert set(found["sent"][2]) <= {"broadcast_"}
        assert all(sent["allreduce_"] == 1 for sent in found["sent"][1::2])
        assert found["seen"] == ([] if model == "no buffers" else [3])
    first, second = (result["ascent"][model]["gradients"] for result in ranks)
    for i in (0, 2, 4):
        assert not torch.equal(first[i][0], second[i][0]), "ascents are local"
        assert torch.equal(first[i + 1][0], second[i + 1][0]), "descents are averaged"


@scenario
def traffic(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, norm in {"no buffers": nn.LayerNorm, "batchnorm": nn.BatchNorm1d}.items():
        (x, y), found[name] = batch(rank), {}
        for kind in ("plain", "sam", "adapter"):
            model, ascent_sent = DDP(net(norm)), []

            def loss_fn(model, x=x, y=y, ascent_sent=ascent_sent):
                with Sent() as sent:
                    loss = F.cross_entropy(model(x), y)
                ascent_sent.append(sent)
                return loss

            base = torch.optim.SGD(model.parameters(), lr=0.1)
            sam = SAM(base, rho=RHO)
            for step in range(3):
                watching = Sent() if step == 2 else None
                sent = watching.__enter__() if watching else None
                if kind == "adapter":
                    sam.step(closure_of(model, x, y))
                elif kind == "sam":
                    sam_backward(loss_on(x, y), model, rho=RHO)
                else:
                    plain_backward(loss_on(x, y), model)
                if watching:
                    watching.__exit__(None, None, None)
            found[name][kind] = sent
            if kind == "sam":
                sam_backward(loss_fn, model, rho=RHO)
                found[name]["first forward"] = ascent_sent[0]
    return found


@pytest.mark.parametrize("model", ["no buffers", "batchnorm"])
def test_a_sam_step_sends_what_a_plain_step_sends(ranks, model):
    for result in ranks:
        found = result["traffic"][model]
        assert found["sam"] == found["adapter"] == found["plain"]
        assert found["plain"]["allreduce_"] == 1
        assert found["first forward"] == {}


@scenario
def ten_steps(rank: int) -> dict[str, Any]:
    found = {}
    for kind in ("sam_backward", "adapter"):
        model = DDP(net(nn.BatchNorm1d, dropout=0.3))
        base = torch.optim.AdamW(model.parameters(), lr=1e-2)
        sam = SAM(base, rho=RHO)
        for step in range(10):
            x, y = batch(rank, step)
            if kind == "adapter":
                sam.step(closure_of(model, x, y))
            else:
                base.zero_grad()
                sam_backward(loss_on(x, y), model, rho=RHO)
                base.step()
        found[kind] = model.module.state_dict()
    return found


def test_ranks_hold_equal_bits_after_ten_steps_buffers_included(ranks):
    for kind in ("sam_backward", "adapter"):
        first, second = (result["ten_steps"][kind] for result in ranks)
        for name in first:
            assert torch.equal(first[name], second[name]), (kind, name)


def test_the_adapter_and_sam_backward_are_one_algorithm_on_two_ranks(ranks):
    ours = ranks[0]["ten_steps"]
    assert_same(list(ours["adapter"].values()), list(ours["sam_backward"].values()))


@scenario
def buffers(rank: int) -> dict[str, Any]:
    model, sent = DDP(net(nn.BatchNorm1d)), []
    for step in range(3):
        with Sent() as counts:
            with model.no_sync():
                sam_backward(loss_on(*batch(rank, 2 * step)), model, rho=RHO)
            sam_backward(loss_on(*batch(rank, 2 * step + 1)), model, rho=RHO)
        sent.append(counts)
    return {"values": dict(model.module.named_buffers()), "sent": sent}


def test_batchnorm_statistics_are_those_of_rank_0_on_clean_batches_as_in_plain_ddp(ranks):
    alone = net(nn.BatchNorm1d)
    for step in range(6):
        alone(batch(0, step)[0])
    for result in ranks:
        for name, buffer in alone.named_buffers():
            assert torch.equal(result["buffers"]["values"][name], buffer), name
        assert result["buffers"]["sent"][2] == result["traffic"]["batchnorm"]["plain"], "once a step, not once a group"


@scenario
def after_an_exception(rank: int) -> list[bool]:
    model, (x, y), found = DDP(net(nn.BatchNorm1d)), batch(rank), []
    before = deepcopy(model.module.state_dict())
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=RHO)
    for fail_at in (1, 2):
        calls = []

        def closure(calls=calls, fail_at=fail_at):
            calls.append(1)
            loss = F.cross_entropy(model(x), y)
            if len(calls) == fail_at:
                raise ZeroDivisionError
            loss.backward()
            return loss

        try:
            sam.step(closure)
        except ZeroDivisionError:
            found.append(model.require_backward_grad_sync)
    found += [torch.equal(p, before[name]) for name, p in model.module.named_parameters()]
    return found


def test_an_exception_in_either_closure_restores_ddps_flags_and_the_weights(ranks):
    for result in ranks:
        assert len(result["after_an_exception"]) == 2 + 6
        assert all(result["after_an_exception"])


@scenario
def compiled(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {"refused": []}
    x, y = batch(rank)
    outside = torch.compile(DDP(net()), backend="eager")
    inside = DDP(torch.compile(net(nn.BatchNorm1d), backend="eager"))
    for refused in (
        lambda: sam_backward(loss_on(x, y), outside, rho=RHO),
        lambda: SAM(torch.optim.SGD(outside.parameters(), lr=0.1)).step(closure_of(outside, x, y)),
        lambda: SAM(torch.optim.SGD(outside.parameters(), lr=0.1), model=outside).step(closure_of(outside, x, y)),
        lambda: SAM(torch.optim.SGD(inside.parameters(), lr=0.1)).step(closure_of(inside, x, y)),
    ):
        try:
            refused()
        except (ValueError, RuntimeError) as error:
            found["refused"].append(str(error))
    inside.zero_grad()
    sam_backward(loss_on(x, y), inside, rho=RHO)
    found["sam_backward"] = grads(inside)
    inside.zero_grad()
    SAM(torch.optim.SGD(inside.parameters(), lr=0.0), rho=RHO, model=inside).step(closure_of(inside, x, y))
    found["adapter"] = grads(inside)
    return found


def test_a_model_compiled_inside_ddp_works_and_outside_is_refused_with_advice(ranks):
    expected = written_out(net(nn.BatchNorm1d), [loss_on(*batch(rank)) for rank in range(RANKS)])
    for result in ranks:
        found = result["compiled"]
        assert_same(found["sam_backward"], expected)
        assert_same(found["adapter"], expected)
        assert len(found["refused"]) == 4
        assert all("DDP(torch.compile(model))" in message for message in found["refused"][:3])
        assert "model=model" in found["refused"][3]


class Pair(nn.Module):
    """Two DDP models in one module, as a GAN has."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.a, self.b = DDP(net(norm)), DDP(net(norm))

    def forward(self, x):
        return self.a(x) + self.b(x)


@scenario
def wrapped_inside(rank: int) -> dict[str, Any]:
    model, (x, y) = Pair(), batch(rank)
    for _ in range(2):
        model.zero_grad()
        sam_backward(loss_on(x, y), model, rho=RHO)
    with_buffers, sent = Pair(nn.BatchNorm1d), []

    def loss_fn(model: nn.Module) -> Tensor:
        with Sent() as counts:
            loss = F.cross_entropy(model(x), y)
        sent.append(counts)
        return loss

    for _ in range(3):
        sam_backward(loss_fn, with_buffers, rho=RHO)
    return {"gradient": grads(model), "sent": sent}


def test_ddp_deeper_inside_the_model_ascends_locally_too(ranks):
    alone = nn.Module()
    alone.a, alone.b = net(), net()
    losses = [lambda m, x=x, y=y: F.cross_entropy(m.a(x) + m.b(x), y) for x, y in map(batch, range(RANKS))]
    for result in ranks:
        assert_same(result["wrapped_inside"]["gradient"], written_out(alone, losses))
        first, _, third = result["wrapped_inside"]["sent"][::2]
        assert first == third == {}, "in its second forward, once in a life, DDP agrees on the order of its buckets"


# The recipe of davda54/sam's README, written here from its description: what the checks above must be able to catch.


@scenario
def void_recipe(rank: int) -> list[Tensor]:
    model, (x, y) = DDP(net()), batch(rank)
    loss = F.cross_entropy(model(x), y)  # outside: DDP has armed its reducer by now
    with model.no_sync():
        loss.backward()
    return grads(model)


def test_no_sync_around_backward_only_ascends_alike_on_all_ranks_and_is_caught(ranks):
    first, second = (result["void_recipe"] for result in ranks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
