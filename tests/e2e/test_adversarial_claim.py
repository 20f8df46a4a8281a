"""What adversarial training buys on photos: CIFAR-10, a small ViT; minutes to an hour of one core.

The sizes below are a compact version; raise them for the claim as it is in docs/log.md."""

import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean

import pytest
import torch

from samovar import recipes
from samovar.attacks import pgd
from samovar.config import AdversarialConfig, Config, SamConfig
from samovar.data.loader import batches, eval_batches
from samovar.objectives import make_objective
from samovar.runtime import Runtime, keep_freed_memory
from samovar.train.fit import prepare
from samovar.train.loop import steps
from tests.conftest import SHARED

MODEL, SHARE_OF_IMAGES, EPOCHS, WARMUP_STEPS = "vit-cifar-s8", 0.2, 12, 100
SEEDS = (0,)
EPS, RHO, NUM_ATTACKED = 2 / 255, 0.05, 2000
CPU = Runtime(torch.device("cpu"), torch.float32)


def config_of(root: Path, seed: int) -> Config:
    base = recipes.get("vit-cifar10").config()
    return replace(
        base,
        seed=seed,
        epochs=EPOCHS,
        model=replace(base.model, name=MODEL),
        data=replace(base.data, root=root, fraction=SHARE_OF_IMAGES),
        optim=replace(base.optim, warmup_steps=WARMUP_STEPS),
    )


def pgd_accuracy(config: Config) -> float:
    """Under the paper's attack, on held-out images, of a network trained for it."""
    source, state = prepare(config, CPU)
    total = round(config.epochs * len(source.train) / config.data.batch_size)
    stream = batches(source, config.data, seed=config.seed, stop=total, device=CPU.device)
    for _ in steps(state, stream, make_objective(config, len(source.classes)), config, CPU, total):
        pass
    right = []
    for batch in islice(eval_batches(source.val, config.data, batch_size=100, device=CPU.device), NUM_ATTACKED // 100):
        points = pgd(state.model, batch.images, batch.labels, eps=EPS, step_size=EPS / 8, num_steps=10)
        right.append(state.model.eval()(points).argmax(1) == batch.labels)
    return torch.cat(right).float().mean().item()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_adversarial_training_is_worth_ten_points_of_robust_accuracy_and_sam_takes_none_of_them(tmp_path) -> None:
    keep_freed_memory()
    subprocess.run([sys.executable, str(SHARED / "data/prepare.py"), str(tmp_path), "cifar-10"], check=True)
    kinds = {"clean": (0.0, 0.0), "adversarial": (EPS, 0.0), "adversarial, SAM": (EPS, RHO)}
    found: dict[str, float] = {}
    for kind, (eps, rho) in kinds.items():
        settings = [
            replace(config_of(tmp_path, seed), adversarial=AdversarialConfig(eps), sam=SamConfig(rho=rho))
            for seed in SEEDS
        ]
        found[kind] = mean(map(pgd_accuracy, settings))
        print(f"{kind}: {found[kind]:.3f}", flush=True)
    assert found["adversarial"] > found["clean"] + 0.1
    # the standard error of a difference of two accuracies near a half
    noise = (2 * 0.25 / NUM_ATTACKED / len(SEEDS)) ** 0.5
    assert found["adversarial, SAM"] > found["adversarial"] - 2 * noise
