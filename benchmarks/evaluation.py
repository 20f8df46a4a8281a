"""Measure the cost of evaluation, beside a bare loop of forward passes over the same batches.

    python benchmarks/evaluation.py --repeats 7

Rows: `logits_of`, which `samovar measure accuracy` uses; `train.evaluate`, which training uses;
`predict`, which `predictions` uses. Each repetition runs every row once, in rotated order, on one
thread. A ratio is the median over repetitions of the processor time of bare loop / row: 1 is as
fast as the loop, and the aim is 0.95 or more.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import nn

import nets
from samovar.config import Config
from samovar.data.loader import Batch
from samovar.measure.accuracy import logits_of
from samovar.measure.predictions import predict
from samovar.objectives import make_objective
from samovar.runtime import Runtime
from samovar.train.evaluation import evaluate

AIM = 0.95


def vit32() -> tuple[nn.Module, int]:
    return nets.vit32(), 32


def resnet18() -> tuple[nn.Module, int]:
    return timm.create_model("resnet18", num_classes=10), 64


CASES = {"vit32": vit32, "resnet18": resnet18}


def bare(model: nn.Module, batches: list[Batch]) -> None:
    with torch.no_grad():
        for batch in batches:
            model(batch.images)


def by_evaluate(model: nn.Module, batches: list[Batch]) -> None:
    evaluate(
        model, batches, make_objective(Config(), 10), Runtime(torch.device("cpu"), torch.float32)
    )


def by_predict(model: nn.Module, batches: list[Batch]) -> None:
    for batch in batches:
        predict(model, batch)


ROWS: dict[str, Callable[[nn.Module, list[Batch]], object]] = {
    "bare loop": bare,
    "logits_of": logits_of,
    "train.evaluate": by_evaluate,
    "predict": by_predict,
}


def report(case: str, repeats: int) -> None:
    torch.manual_seed(0)
    model, pixels = CASES[case]()
    model.eval()
    batches = [Batch(torch.rand(64, 3, pixels, pixels), torch.randint(10, (64,))) for _ in range(8)]
    spent: dict[str, list[float]] = {row: [] for row in ROWS}
    order = list(ROWS)
    bare(model, batches)
    for _ in range(repeats):
        for row in order:
            start = time.process_time()
            ROWS[row](model, batches)
            spent[row].append(time.process_time() - start)
        order = order[1:] + order[:1]
    for row, seconds in spent.items():
        ratios = sorted(a / b for a, b in zip(spent["bare loop"], seconds, strict=True))
        middle = statistics.median(ratios)
        verdict = "" if row == "bare loop" else f", {'meets' if middle >= AIM else 'MISSES'} {AIM}"
        rate = sum(map(len, batches)) / statistics.median(seconds)
        print(
            f"{case:<10}{row:<16}{rate:>8.0f} images/s   {middle:.3f} [{ratios[0]:.3f}, "
            f"{ratios[-1]:.3f}]{verdict}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, 1 thread, "
        f"{args.repeats} repetitions"
    )
    for case in CASES:
        report(case, args.repeats)


if __name__ == "__main__":
    main()
