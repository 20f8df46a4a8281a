"""Adversarial SAM training on two gloo processes: each rank attacks its own images, and sends what plain DDP sends."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from samovar.config import AdversarialConfig, Config, OptimConfig, SamConfig
from samovar.data.loader import Batch
from samovar.objectives import adversarial, make_objective
from samovar.runtime import Runtime
from samovar.train.loop import TrainState, backward, steps
from tests.e2e.ranks import run_ranks

RANKS, SECONDS, RHO, EPS = 2, 400, 0.1, 0.1
ROUNDING = {"rtol": 1e-12, "atol": 1e-14}  # float64: a few hundred operations of 1e-16 each
PASSES = {"plain": (0.0, 0.0), "fgsm": (0.0, EPS), "sam": (RHO, 0.0), "sam_fgsm": (RHO, EPS)}


def config(rho: float = RHO, eps: float = EPS, **sam: Any) -> Config:
    return Config(
        optim=OptimConfig(name="sgd", lr=0.1),
        sam=SamConfig(rho=rho, **sam),
        adversarial=AdversarialConfig(eps, clean_share=0.25),
    )


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(36, 3)).double()


def batch(rank: int) -> Batch:
    generator = torch.Generator().manual_seed(rank)
    images = torch.rand(16, 1, 4, 4, generator=generator, dtype=torch.float64)
    return Batch(images, torch.randint(3, (16,), generator=generator))


def prepared(rank: int, settings: Config) -> tuple[TrainState, Config, Runtime]:
    model = net()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    tally = {name: torch.zeros(()) for name in ("loss", "steps", "skipped", "streak", "tripped")}
    state = TrainState(model, wrapped, torch.optim.SGD(model.parameters(), lr=0.1), scaler=None, ema=None, tally=tally)
    return state, settings, Runtime(torch.device("cpu"), torch.float32, rank, RANKS)


def gradient(state: TrainState, settings: Config, runtime: Runtime) -> list[Tensor]:
    state.optimizer.zero_grad()
    backward(state, batch(runtime.rank), make_objective(settings, 3), settings, runtime)
    return [p.grad.clone() for p in state.model.parameters()]


def sent(state: TrainState, settings: Config, runtime: Runtime) -> dict[str, int]:
    """The collective operations of a step, counted by the profiler."""
    for _ in range(2):  # in its second forward, once in a life, DDP agrees on the order of its buckets
        gradient(state, settings, runtime)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        gradient(state, settings, runtime)
    return {e.key: e.count for e in profiler.key_averages() if e.key.startswith("c10d::")}


def work(rank: int, folder: Path) -> None:
    """One process: what each kind of step sends, gradients, and the weights after three steps."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), RANKS), rank=rank, world_size=RANKS)
    found: dict[str, Any] = {"sent": {name: sent(*prepared(rank, config(*each))) for name, each in PASSES.items()}}
    found["sent"]["groups"] = sent(*prepared(rank, config(m=4)))
    found["own"] = gradient(*prepared(rank, config()))
    found["shared"] = gradient(*prepared(rank, config(shared_ascent=True)))
    state, settings, runtime = prepared(rank, config(m=4))
    for _ in steps(state, [batch(rank)] * 3, make_objective(settings, 3), settings, runtime, 3):
        pass
    found["weights"] = [p.detach() for p in state.model.parameters()]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("adversarial")
    run_ranks(work, folder, RANKS, SECONDS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def written_out(shared: bool) -> list[Tensor]:
    """Mean over ranks of the gradient at (w + e, x + d), both from each rank's own start."""
    moved, clean, model = [], [], net()
    for rank in range(RANKS):
        attack = adversarial.begin(batch(rank).images, config().adversarial, 0, 0, rank)
        points = attack.points.clone().requires_grad_()
        loss = F.cross_entropy(model(points), batch(rank).labels)
        *g, slope = torch.autograd.grad(loss, [*model.parameters(), points])
        attack.move([slope])
        moved.append(attack.points)
        clean.append(g)
    if shared:
        clean = [[sum(g) / RANKS for g in zip(*clean, strict=True)]] * RANKS
    total = []
    for rank, (points, g) in enumerate(zip(moved, clean, strict=True)):
        top, norm = deepcopy(model), sum(float((each**2).sum()) for each in g) ** 0.5
        with torch.no_grad():
            for p, each in zip(top.parameters(), g, strict=True):
                p += RHO * each / norm
        total.append(torch.autograd.grad(F.cross_entropy(top(points), batch(rank).labels), list(top.parameters())))
    return [sum(g) / RANKS for g in zip(*total, strict=True)]


@pytest.mark.parametrize("ascent", ["own", "shared"])
def test_each_rank_attacks_its_own_images_whether_or_not_it_shares_the_ascent_of_weights(ranks, ascent):
    wanted = written_out(ascent == "shared")
    for result in ranks:
        for ours, theirs in zip(result[ascent], wanted, strict=True):
            torch.testing.assert_close(ours, theirs, **ROUNDING)


def test_an_attack_sends_nothing(ranks):
    for result in ranks:
        found = result["sent"]
        assert found["plain"]["c10d::allreduce_"] == 1
        assert found["fgsm"] == found["sam"] == found["sam_fgsm"] == found["groups"] == found["plain"]


def test_ranks_hold_equal_bits_after_three_steps(ranks):
    first, second = (result["weights"] for result in ranks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
