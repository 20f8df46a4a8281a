"""SAF and MESA on two gloo processes take the steps of one process, and all ranks hold the same state."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from samovar import recipes
from samovar.config import Config, OptimConfig, SamConfig
from samovar.data.loader import batches
from samovar.objectives import make_objective
from samovar.runtime import Runtime
from samovar.train.fit import prepare
from samovar.train.loop import steps
from tests.e2e.ranks import run_ranks

pytestmark = pytest.mark.costly

RANKS, SECONDS, STEPS = 2, 400, 8
SAMS = {
    "saf": SamConfig(teacher="earlier", teacher_lag=2, teacher_start=0.0, teacher_weight=1.0),
    "mesa": SamConfig(teacher="average", teacher_start=0.0, teacher_weight=1.0),
    "none": SamConfig(),
}


def config_of(sam: SamConfig) -> Config:
    base = recipes.get("vit-digits").config()
    optim = OptimConfig(name="sgd", lr=0.1, momentum=0.9, schedule="constant")
    return replace(base, steps=STEPS, sam=sam, optim=optim, data=replace(base.data, fraction=0.3, batch_size=32))


def trained(config: Config, rank: int, count: int, folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Weights after some epochs, and the tensors that the teacher keeps."""
    runtime = Runtime(torch.device("cpu"), torch.float32, rank, count)
    source, state = prepare(config, runtime)
    torch.nn.init.normal_(state.model.body.head.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    device = runtime.device
    stream = batches(source, config.data, seed=0, stop=STEPS, device=device, rank=rank, world_size=count)
    if state.teacher is not None:
        stream = state.teacher.follow(stream, config, runtime, len(source.train), 0, folder)
    for _ in steps(state, stream, make_objective(config, 10), config, runtime, STEPS):
        pass
    kept = {} if state.teacher is None else state.teacher.state_dict()
    return [param.detach() for param in state.model.parameters()], list(kept.values())


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), RANKS), rank=rank, world_size=RANKS)
    found: dict[str, Any] = {name: trained(config_of(sam), rank, RANKS, folder) for name, sam in SAMS.items()}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_take_the_steps_of_one_and_hold_the_same_logits(tmp_path):
    run_ranks(work, tmp_path, RANKS, SECONDS)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS))
    single = {name: trained(config_of(sam), 0, 1, tmp_path) for name, sam in SAMS.items()}
    for name in SAMS:
        for ours, theirs in zip(first[name][0] + first[name][1], second[name][0] + second[name][1], strict=True):
            assert torch.equal(ours, theirs), name
        for ours, theirs in zip(first[name][0], single[name][0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # float32 sums in another order
        if name != "none":
            differs = [
                not torch.allclose(a, b, atol=1e-4) for a, b in zip(first[name][0], first["none"][0], strict=True)
            ]
            assert any(differs), name
    torch.testing.assert_close(first["saf"][1][0], single["saf"][1][0], rtol=1e-3, atol=1e-4)
    assert bool((first["saf"][1][0] != 0).any(dim=2).all()), "every image has logits of both epochs"
