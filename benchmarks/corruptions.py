"""Measure the cost of the 19 corruptions at 224 px, beside imagecorruptions-imaug.

    python benchmarks/corruptions.py [--rounds 15] [--severity 3] [--size 224]

Both sides run in one process on one thread. They take turns and are timed by processor time, so
that the ratios hold on a busy machine. Targets: the sum over the 19 at severity 3 is at least 3
times smaller; no corruption takes more than 60 ms.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import cv2
import imagecorruptions
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

from samovar.data.corruptions import CORRUPTIONS, corrupt

TIMES_FASTER = 3
LONGEST_MS = 60


def photos(size: int) -> list[np.ndarray]:
    images = [Image.fromarray(image[:427, 100:527]) for image in load_sample_images().images]
    return [np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) for image in images]


def processor_ms(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return 1000 * (time.process_time() - start)


def in_turns(
    name: str, severity: int, images: list[np.ndarray], rounds: int
) -> tuple[list[float], list[float]]:
    """Return milliseconds of processor time of both sides; each round has a new seed and image."""
    ours, theirs = [], []
    for step in range(
        -2, rounds
    ):  # two rounds warm up tables, numba's compiler and first allocations
        image = images[step % len(images)]
        ms = processor_ms(
            lambda image=image, step=step: corrupt(image, name, severity=severity, seed=step)
        )
        their_ms = processor_ms(lambda image=image: imagecorruptions.corrupt(image, severity, name))
        if step >= 0:
            ours.append(ms)
            theirs.append(their_ms)
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="times each side is run")
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--size", type=int, default=224, help="pixels of the side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = photos(args.size)
    table = Table(
        "corruption",
        "ours, ms",
        "theirs, ms",
        "ratio",
        title=f"{args.size} px, severity {args.severity}",
    )
    medians = []
    for name in CORRUPTIONS:
        ours, theirs = (
            statistics.median(times) for times in in_turns(name, args.severity, images, args.rounds)
        )
        medians.append((ours, theirs, name))
        table.add_row(name, f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.1f} x")
    total, their_total = sum(row[0] for row in medians), sum(row[1] for row in medians)
    table.add_section()
    table.add_row("sum", f"{total:.1f}", f"{their_total:.1f}", f"{their_total / total:.2f} x")
    console = Console()
    console.print(table)
    slowest = max(medians)
    console.print(
        f"sum: {their_total / total:.2f} x faster (target {TIMES_FASTER} x at 224 px, severity 3)",
        highlight=False,
    )
    console.print(
        f"slowest: {slowest[2]}, {slowest[0]:.1f} ms (target {LONGEST_MS} ms)", highlight=False
    )
    packages = ("imagecorruptions-imaug", "numpy", "scipy", "pillow", "torch")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    console.print(
        f"{versions}, OpenCV {cv2.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
