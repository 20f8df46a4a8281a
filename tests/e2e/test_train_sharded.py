"""`--run.shard` over 4 gloo processes trains, saves and restores as one process does."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from samovar import recipes
from samovar.config import Config, OptimConfig, RunConfig, SamConfig
from samovar.data.loader import Batch
from samovar.objectives import make_objective
from samovar.runs import checkpoint
from samovar.runtime import Runtime
from samovar.train import resume
from samovar.train.loop import TrainState, build, steps
from tests.conftest import Shell
from tests.e2e.ranks import run_ranks
from tests.e2e.test_torchrun import FLAGS, torchrun, weights

RANKS, SECONDS, BATCH, STEPS = 4, 500, 16, 5
EXACT = {"rtol": 0.0, "atol": 1e-12}  # float64
BASE = recipes.get("vit-digits").config()
OPTIMIZERS = {
    "adamw": OptimConfig(lr=1e-3, warmup_steps=1, clip_norm=0.5, ema=0.9),
    "sgd": OptimConfig(name="sgd", lr=1e-2, warmup_steps=1, clip_norm=0.5, ema=0.9),
}
CASES = {"full": 0, "hybrid:2": BATCH // 2}
"""The m of one process that has the ascents of each."""


def config(optim: str, m: int, run: RunConfig) -> Config:
    data = replace(BASE.data, batch_size=BATCH)
    model = replace(BASE.model, dropout=0.0, drop_path=0.0)
    sam = SamConfig(rho=0.1, sigma=1.0, m=m)
    return replace(BASE, steps=STEPS, sam=sam, data=data, model=model, optim=OPTIMIZERS[optim], run=run)


def stream(rank: int, count: int) -> list[Batch]:
    """Batches of noise; the third is not finite in one image, of the last rank."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for t in range(STEPS):
        images = torch.rand(BATCH, 1, 8, 8, generator=generator, dtype=torch.float64)
        labels = torch.randint(10, (BATCH,), generator=generator)
        if t == 2:
            images[-1] = torch.inf
        found.append(Batch(images.chunk(count)[rank], labels.chunk(count)[rank]))
    return found


def trained(settings: Config, runtime: Runtime) -> TrainState:
    torch.set_default_dtype(torch.float64)
    try:
        state = build(settings, runtime, num_classes=10, channels=1)
        batches = stream(runtime.rank, runtime.world_size)
        for _ in steps(state, batches, make_objective(settings, 10), settings, runtime, STEPS):
            pass
    finally:
        torch.set_default_dtype(torch.float32)
    return state


def what_counts(state: TrainState, *, keep: bool = True) -> dict[str, Any]:
    found = resume.snapshot(state, keep=keep)
    kept = {"model": found.model, "ema": found.ema, "optimizer": found.state["optimizer"]["state"]}
    return kept | {"average": found.state["sam"]["average"], "skipped": found.state["tally"]["skipped"]}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), RANKS), rank=rank, world_size=RANKS)
    runtime = Runtime(torch.device("cpu"), torch.float32, rank, RANKS)
    found: dict[Any, Any] = {}
    for optim in OPTIMIZERS:
        for choice in CASES:
            settings = config(optim, 0, RunConfig(threads=1, shard=choice, checkpointing=choice == "full"))
            state = trained(settings, runtime)
            found[optim, choice] = what_counts(state, keep=rank == 0)
    # the last state, saved whole and brought to a new one, is the same on every shard
    whole = [resume.snapshot(state)]
    dist.broadcast_object_list(whole, 0)
    torch.set_default_dtype(torch.float64)
    again = build(settings, runtime, num_classes=10, channels=1)
    resume.restore(again, whole[0])
    restored = resume.snapshot(again)
    found["restored"] = same(restored.model, whole[0].model) and same(restored.state, whole[0].state)
    found["restored"] &= same(restored.ema, whole[0].ema)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    run_ranks(work, folder, RANKS, SECONDS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("choice", CASES)
def test_sharded_training_equals_one_process_with_its_average_and_a_step_that_is_skipped(ranks, optim, choice):
    state = trained(config(optim, CASES[choice], RunConfig(threads=1)), Runtime(torch.device("cpu"), torch.float32))
    expected, found = what_counts(state), ranks[0][optim, choice]
    assert found["skipped"] == expected["skipped"] == 1
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_whole_checkpoint_comes_back_bit_for_bit(ranks):
    assert all(result["restored"] for result in ranks)


def test_a_run_goes_on_with_other_numbers_of_ranks_and_is_exported(tmp_path) -> None:
    sharded = ["--run.shard", "full", "--sam.m", "0"]
    begun = torchrun(tmp_path, "train", "vit-digits-sam", *FLAGS, *sharded, "--output", "a")
    assert begun.returncode == 0, begun.stderr
    run = tmp_path / "a" / "r"
    expected = weights(run)
    shutil.rmtree(checkpoint.path_of(run / "checkpoints", 12))
    again = Shell(tmp_path).run_here("train", "--resume", "a/r")
    assert again.returncode == 0, again.stderr
    assert "resumed at step 8" in again.stdout
    actual = weights(run)
    for name in expected:  # as in test_torchrun
        assert (expected[name] - actual[name]).abs().max() < 2e-4, name
