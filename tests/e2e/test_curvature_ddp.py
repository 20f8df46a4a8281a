"""Curvature on two gloo processes: each has half of the batches, and both get the numbers of one that has all."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

from samovar.curvature import GaussNewton, Hessian, spectral_density, top_eigenvalues, trace
from tests.e2e.ranks import run_ranks

RANKS, SECONDS = 2, 400
SAME = 1e-6  # relative, the target; float64, so rounding is far below
SIZES = [5, 2, 4]  # examples per batch; the first process has the first two


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3)).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    return [(torch.randn(n, 5, dtype=torch.float64), torch.randint(3, (n,))) for n in SIZES]


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def measured(model: nn.Module, mine: list[Any], distributed: bool) -> dict[str, Tensor]:
    op = Hessian(model, loss, mine, distributed=distributed)
    gn = GaussNewton(
        model, lambda m, b: m(b[0]), lambda z, b: F.cross_entropy(z, b[1]), mine, distributed=distributed, retain=False
    )
    value, gradient = op.loss_and_gradient()
    return {
        "products": op @ torch.eye(op.size, 4, dtype=torch.float64),
        "gauss-newton": gn @ torch.ones(gn.size, dtype=torch.float64),
        "top": top_eigenvalues(op, 3, tol=1e-8).values,
        "trace": torch.tensor(trace(op, num_probes=6).value),
        "density": spectral_density(op, num_probes=2, num_steps=5).density,
        "loss": torch.tensor(value),
        "gradient": gradient,
    }


def failing(rank: int, mine: list[Any]) -> str:
    """What a process is told when the other's loss is not finite."""
    op = Hessian(net(), lambda m, b: loss(m, b) / (rank != 0), mine, distributed=True)
    try:
        op @ torch.ones(op.size, dtype=torch.float64)
    except ValueError as error:
        return str(error)
    return "nothing"


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), RANKS), rank=rank, world_size=RANKS)
    mine = batches()[:2] if rank == 0 else batches()[2:]
    results: dict[str, Any] = {"plain": measured(net(), mine, True), "ddp": measured(DDP(net()), mine, True)}
    results["failure"] = failing(rank, mine)
    results["after"] = measured(net(), mine, True)["top"]
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("curvature")
    run_ranks(work, folder, RANKS, SECONDS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("wrapped", ["plain", "ddp"])
def test_two_processes_give_the_numbers_of_one(ranks, wrapped):
    alone = measured(net(), batches(), False)
    for name, expected in alone.items():
        for result in ranks:
            torch.testing.assert_close(result[wrapped][name], expected, rtol=SAME, atol=1e-9)
        assert torch.equal(ranks[0][wrapped][name], ranks[1][wrapped][name]), name


def test_a_failure_in_one_process_reaches_the_other_and_nothing_hangs(ranks):
    assert "the loss is inf" in ranks[0]["failure"]
    assert "another process failed" in ranks[1]["failure"]
    assert torch.equal(ranks[0]["after"], ranks[0]["plain"]["top"])
