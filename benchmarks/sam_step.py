"""Measure time and memory of a SAM step, beside plain steps, a hand-written loop and other SAMs.

    python benchmarks/sam_step.py --cases vit32 resnet50 vit_small --repeats 7
    python benchmarks/sam_step.py --cases vit32 --rows quarter every5 looksam msam sam-on gsam fsam

Time is processor time of one thread, so that other work on the machine counts less. Every repeat
runs every row once, in rotated order, and a ratio is the median of the ratios within repetitions.
For a relative that climbs every fifth step, the mean of five steps counts. Memory is counted, not
sampled: the largest number of tensor bytes alive from a freshly built model to its second climb, in
copies of the weights above a plain step.
"""

import argparse
import importlib.util
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nets
from samovar.config import Config, OptimConfig
from samovar.data.loader import Batch
from samovar.objectives import Loss
from samovar.runtime import Runtime
from samovar.sam import SAM, SamMemory, SamVariant, plain_backward, sam_backward
from samovar.train.loop import TrainState, steps

RHO = 0.05
Step = Callable[[], Any]


def vit32() -> tuple[nn.Module, int, int]:
    return nets.vit32(), 32, 128


def resnet50() -> tuple[nn.Module, int, int]:
    return timm.create_model("resnet50", num_classes=10), 64, 32


def vit_small() -> tuple[nn.Module, int, int]:
    return timm.create_model("vit_small_patch16_224"), 224, 8


def digits() -> tuple[nn.Module, int, int]:
    """Return a tiny ViT, which shows what the steps cost apart from the model."""
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=8, in_chans=3, patch_size=2, embed_dim=64, depth=4, num_heads=2, num_classes=10
    )
    return net, 8, 64


CASES = {"vit32": vit32, "resnet50": resnet50, "vit_small": vit_small, "digits": digits}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def closure_of(optimizer: torch.optim.Optimizer, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    optimizer = adamw(model)

    def step() -> None:
        optimizer.zero_grad()
        plain_backward(lambda net: F.cross_entropy(net(x), y), model)
        optimizer.step()

    return step


def by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Return a step of the smallest loop that trains a timm model."""
    optimizer = adamw(model)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    return step


def our_loop(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Return a step of `samovar train` with seeds, schedule, gradient norm and counts."""
    tally = {name: torch.zeros(()) for name in ("loss", "steps", "skipped", "streak", "tripped")}
    state = TrainState(model, model, adamw(model), scaler=None, ema=None, tally=tally)
    runtime = Runtime(torch.device("cpu"), torch.float32)
    config = Config(optim=OptimConfig(lr=1e-4))
    stream = itertools.repeat(Batch(x, y))
    return partial(next, steps(state, stream, objective, config, runtime, total=10**6))


def objective(net: nn.Module, batch: Batch) -> Loss:
    logits = net(batch.images)
    return Loss(F.cross_entropy(logits, batch.labels), logits)


def ours(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    optimizer = adamw(model)

    def step() -> None:
        optimizer.zero_grad()
        sam_backward(lambda net: F.cross_entropy(net(x), y), model, rho=RHO)
        optimizer.step()

    return step


def adapter(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    sam = SAM(adamw(model), rho=RHO)
    return partial(sam.step, closure_of(sam, model, x, y))


def pytorch_optimizer(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    import pytorch_optimizer as library

    sam = library.SAM(model.parameters(), torch.optim.AdamW, rho=RHO, lr=1e-4, fused=True)
    closure = closure_of(sam, model, x, y)

    def step() -> None:
        closure()
        sam.step(closure)

    return step


def keeps_old_p(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Return a step of SAM as davda54/sam computes it.

    It copies weights into its state, moves one parameter at a time, and swaps storage."""
    optimizer, params, state = adamw(model), list(model.parameters()), {}
    closure = closure_of(optimizer, model, x, y)

    def step() -> None:
        closure()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in params]).norm()
            for p in params:
                state[p] = p.data.clone()
                p.add_(p.grad * (RHO / (norm + 1e-12)))
        closure()
        for p in params:
            p.data = state[p]
        optimizer.step()

    return step


def relative(
    model: nn.Module, x: Tensor, y: Tensor, *, variant: SamVariant, share: float = 1.0
) -> Step:
    """Return a step of one of SAM's relatives, whose climb sees a share of the batch."""
    optimizer, memory, some = adamw(model), SamMemory(), int(share * len(y))

    def step() -> None:
        optimizer.zero_grad()
        sam_backward(
            lambda net: F.cross_entropy(net(x), y),
            model,
            rho=RHO,
            ascent_loss_fn=None
            if share == 1
            else lambda net: F.cross_entropy(net(x[:some]), y[:some]),
            variant=variant,
            memory=memory,
            optimizer=optimizer,
        )
        optimizer.step()

    return step


FAMILY: dict[str, Callable[[nn.Module, Tensor, Tensor], Step]] = {
    "quarter": partial(relative, variant=SamVariant(), share=0.25),
    "every5": partial(relative, variant=SamVariant(every=5)),
    "looksam": partial(relative, variant=SamVariant(every=5, reuse=0.7)),
    "msam": partial(relative, variant=SamVariant(momentum=True)),
    "sam-on": partial(relative, variant=SamVariant(norms_only=True)),
    "gsam": partial(relative, variant=SamVariant(alpha=0.4)),
    "fsam": partial(relative, variant=SamVariant(sigma=1.0)),
}
CYCLE = {"every5": 5, "looksam": 5}
"""Steps after which the cost of a row repeats."""

ROWS: dict[str, Callable[[nn.Module, Tensor, Tensor], Step]] = {
    "plain_backward": plain,
    "plain, by hand": by_hand,
    "samovar train": our_loop,
    "sam_backward": ours,
    "SAM adapter": adapter,
    "pytorch_optimizer": pytorch_optimizer,
    "as davda54/sam": keeps_old_p,
}
ALL = ROWS | FAMILY


def build(case: str, row: str) -> tuple[nn.Module, Step]:
    """Return the model and the step of a row; model and batch are the same for every row."""
    torch.manual_seed(0)
    model, pixels, size = CASES[case]()
    x, y = torch.randn(size, 3, pixels, pixels), torch.randint(10, (size,))
    return model, ALL[row](model.train(), x, y)


def seconds(step: Step, count: int) -> float:
    """Return the mean processor seconds of a step."""
    start = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - start) / count


def times(case: str, rows: list[str], repeats: int) -> dict[str, list[float]]:
    """Return processor seconds of a step, per row and repetition; the first cycle is left out."""
    steps = {row: build(case, row)[1] for row in rows}
    for row, step in steps.items():
        seconds(step, CYCLE.get(row, 1))
    found: dict[str, list[float]] = {row: [] for row in rows}
    order = list(rows)
    for _ in range(repeats):
        for row in order:
            found[row].append(seconds(steps[row], CYCLE.get(row, 1)))
        order = order[1:] + order[:1]
    return found


def peak_bytes(case: str, row: str) -> tuple[int, int]:
    """Return the peak of tensor bytes until the second climb, and the bytes of the weights."""
    model, step = build(case, row)
    with torch.profiler.profile(profile_memory=True) as profiler:
        for _ in range(CYCLE.get(row, 1) + 1):
            step()
    alive = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak, sum(p.numel() * p.element_size() for p in model.parameters())


def ratio(a: list[float], b: list[float]) -> str:
    ratios = sorted(x / y for x, y in zip(a, b, strict=True))
    return f"{statistics.median(ratios):.3f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"


def report(case: str, rows: list[str], repeats: int) -> None:
    found = times(case, rows, repeats)
    memory = {row: peak_bytes(case, row) for row in rows}
    base, weights = memory["plain_backward"]
    print(
        f"\n{case}: weights {weights / 2**20:.0f} MiB, plain step peaks {base / 2**20:.0f} MiB "
        "above them"
    )
    print(
        f"{'row':<20}{'seconds':>8}   {'x plain_backward':<22}{'x sam_backward':<22}"
        f"{'copies above plain':>18}"
    )
    for row, spent in found.items():
        copies = (memory[row][0] - base) / weights
        against = (
            f"{ratio(spent, found['plain_backward']):<22}{ratio(spent, found['sam_backward']):<22}"
        )
        print(f"{row:<20}{statistics.median(spent):>8.3f}   {against}{copies:>18.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=["vit32", "resnet50", "vit_small"]
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ALL,
        default=list(ALL),
        help="beside plain_backward and sam_backward",
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for row in ALL if row in ("plain_backward", "sam_backward", *args.rows)]
    if importlib.util.find_spec("pytorch_optimizer") is None:
        rows = [row for row in rows if row != "pytorch_optimizer"]
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, Python "
        f"{platform.python_version()}, {cpu}"
    )
    print(
        f"{args.threads} thread(s), {args.repeats} repetitions, median [min, max]; "
        f"{' '.join(sys.argv[1:])}"
    )
    for case in args.cases:
        report(case, rows, args.repeats)


if __name__ == "__main__":
    main()
