"""Measure the cost of adversarial training: steps with each attack, plain and SAM.

    python benchmarks/adversarial.py --cases vit32 resnet18 --repeats 7

Time is processor time of one thread. Every repetition runs every row once, in rotated order, and a
ratio is the median of the ratios within repetitions. The last row computes the images'
gradient in a pass of its own, as the two methods would if they were merely put together.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nets
from samovar.config import AdversarialConfig, Config, OptimConfig, SamConfig
from samovar.data.loader import Batch
from samovar.objectives import adversarial, make_objective
from samovar.runtime import Runtime
from samovar.sam import sam_backward
from samovar.train.loop import TrainState, steps

RHO, EPS = 0.05, 2 / 255
Step = Callable[[], Any]

CASES: dict[str, Callable[[], nn.Module]] = {
    "vit32": nets.vit32,
    "resnet18": lambda: timm.create_model("resnet18", num_classes=10),
}
ATTACKS = {
    "": AdversarialConfig(),
    " + FGSM": AdversarialConfig(EPS),
    " + PGD-3": AdversarialConfig(EPS, 3),
}


def our_loop(rho: float, attack: AdversarialConfig, model: nn.Module, batch: Batch) -> Step:
    """Return a step of `samovar train`."""
    tally = {name: torch.zeros(()) for name in ("loss", "steps", "skipped", "streak", "tripped")}
    state = TrainState(model, model, adamw(model), scaler=None, ema=None, tally=tally)
    config = Config(optim=OptimConfig(lr=1e-4), sam=SamConfig(rho=rho), adversarial=attack)
    stream, runtime = itertools.repeat(batch), Runtime(torch.device("cpu"), torch.float32)
    return partial(
        next, steps(state, stream, make_objective(config, 10), config, runtime, total=10**6)
    )


def by_three_passes(model: nn.Module, batch: Batch) -> Step:
    """Return a step that runs FGSM from a random start, then SAM on the attacked images."""
    optimizer, config = adamw(model), AdversarialConfig(EPS)
    weights = list(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        attack = adversarial.begin(batch.images, config, 0)
        start = attack.points.clone().requires_grad_()
        for weight in weights:
            weight.requires_grad_(False)
        attack.move(torch.autograd.grad(F.cross_entropy(model(start), batch.labels), [start]))
        for weight in weights:
            weight.requires_grad_(True)
        sam_backward(lambda net: F.cross_entropy(net(attack.points), batch.labels), model, rho=RHO)
        optimizer.step()

    return step


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


ROWS: dict[str, Callable[[nn.Module, Batch], Step]] = {
    f"{base}{name}": partial(our_loop, rho, attack)
    for base, rho in (("plain", 0.0), ("SAM", RHO))
    for name, attack in ATTACKS.items()
} | {"SAM + FGSM, 3 passes": by_three_passes}


def build(case: str, row: str, size: int) -> Step:
    """Return the model and the step of a row; model and batch are the same for every row."""
    torch.manual_seed(0)
    model = CASES[case]().train()
    images: Tensor = torch.rand(size, 3, 32, 32)
    return ROWS[row](model, Batch(images, torch.randint(10, (size,))))


def times(case: str, repeats: int, size: int) -> dict[str, list[float]]:
    """Return processor seconds of a step, per row and repetition, without each row's first step."""
    built = {row: build(case, row, size) for row in ROWS}
    found: dict[str, list[float]] = {row: [] for row in ROWS}
    order = list(ROWS)
    for repeat in range(repeats + 1):
        for row in order:
            start = time.process_time()
            built[row]()
            if repeat:
                found[row].append(time.process_time() - start)
        order = order[1:] + order[:1]
    return found


def ratio(a: list[float], b: list[float]) -> str:
    ratios = sorted(x / y for x, y in zip(a, b, strict=True))
    return f"{statistics.median(ratios):.3f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, 1 thread, {args.repeats} "
        "repetitions, median [min, max]"
    )
    for case in args.cases:
        found = times(case, args.repeats, args.batch_size)
        print(
            f"\n{case}, {args.batch_size} images\n{'row':<22}{'seconds':>8}   {'x plain':<22}x SAM"
        )
        for row, spent in found.items():
            against = f"{ratio(spent, found['plain']):<22}{ratio(spent, found['SAM'])}"
            print(f"{row:<22}{statistics.median(spent):>8.3f}   {against}", flush=True)


if __name__ == "__main__":
    main()
