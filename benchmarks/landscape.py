"""Measure the cost of a point of a loss landscape, beside loss-landscapes, and of a second process.

    python benchmarks/landscape.py --repeats 3

Time is processor time of one thread, so that other work on the machine counts less. Every repeat
runs every row once, in rotated order, on a grid of the same number of points, over the same images,
in eval mode, each on a copy of the same model. Its biases are not 0, because the peer divides by
them. A ratio is the median of the ratios within repetitions.

The peer takes all images in one batch, as its `Loss` does; `its batches as ours` gives it a metric
with samovar's batches and without a graph. The time of a point runs from the end of one point to
the end of the next; the rest, mainly drawing and normalizing two directions, is the set-up. `two
processes` compares the processor time that the busier of two processes spends on points with that
of one process alone, and the wall times, both from when the second process has started.
"""

import argparse
import copy
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import nets
from samovar.measure.grid import Execution
from samovar.measure.landscape import fast_batch_size
from samovar.measure.plane import axis, filter_direction, loss_plane

POINTS = 3  # per axis
TARGET, TARGET_PROCESSES = 0.65, 1.8
Batches = list[tuple[Tensor, Tensor]]
Row = Callable[[nn.Module, Batches], tuple[float, float]]  # seconds of the set-up, and of a point


def vit32() -> tuple[nn.Module, int]:
    return nets.vit32(), 32


def vit32_tiny() -> tuple[nn.Module, int]:
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, num_classes=10
    )
    return net, 32


def resnet18() -> tuple[nn.Module, int]:
    return timm.create_model("resnet18", num_classes=10), 64


CASES = {"vit32": vit32, "resnet18": resnet18, "vit32_tiny": vit32_tiny}


def built(case: str) -> tuple[nn.Module, int]:
    """Return a model in eval mode without a zero parameter, and its image size."""
    torch.manual_seed(0)
    model, pixels = CASES[case]()
    with torch.no_grad():
        for param in model.parameters():
            param += 1e-3 * torch.randn_like(param)
    return model.eval(), pixels


def images(model: nn.Module, pixels: int, count: int) -> Batches:
    """Return enlarged digits, in batches as the measurement takes them."""
    digits = load_digits()
    x = torch.tensor(digits.images[:count], dtype=torch.float32)[:, None] / 8 - 1
    x = F.interpolate(x.repeat(1, 3, 1, 1), size=pixels, mode="bilinear")
    y, size = torch.tensor(digits.target[:count]), fast_batch_size(model, x[:1], 256)
    return list(zip(x.split(size), y.split(size), strict=True))


def judged(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]), logits.argmax(1) == batch[1]


class Laps:
    """The processor time at the end of each point."""

    def __init__(self) -> None:
        self.start, self.ends = time.process_time(), []

    def lap(self) -> None:
        """Note the end of a point."""
        self.ends.append(time.process_time())

    def result(self) -> tuple[float, float]:
        """Return seconds of all but the points, and seconds from one point to the next."""
        point = (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
        return time.process_time() - self.start - len(self.ends) * point, point


def ours(model: nn.Module, batches: Batches) -> tuple[float, float]:
    laps = Laps()

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        found = judged(model, batch)
        if batch is batches[-1]:
            laps.lap()
        return found

    generator, x = torch.Generator().manual_seed(0), axis(POINTS, 1.0)
    loss_plane(model, loss, batches, [filter_direction(model, generator) for _ in range(2)], x, x)
    return laps.result()


def peer(model: nn.Module, batches: Batches, chunked: bool = False) -> tuple[float, float]:
    from loss_landscapes import random_plane
    from loss_landscapes.metrics import Loss
    from loss_landscapes.metrics.metric import Metric

    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    whole, laps = Loss(F.cross_entropy, x, y), Laps()

    class Timed(Metric):
        def __call__(self, wrapper: Any) -> float:
            if chunked:
                with torch.no_grad():
                    value = sum(
                        F.cross_entropy(wrapper.forward(x), y).item() * len(y) for x, y in batches
                    )
            else:
                value = whole(wrapper)
            laps.lap()
            return value

    random_plane(model, Timed(), distance=1, steps=POINTS, normalization="filter")
    return laps.result()


def peer_chunked(model: nn.Module, batches: Batches) -> tuple[float, float]:
    return peer(model, batches, chunked=True)


ROWS: dict[str, Row] = {
    "samovar": ours,
    "loss-landscapes": peer,
    "its batches as ours": peer_chunked,
}


def report(case: str, count: int, repeats: int) -> None:
    model, pixels = built(case)
    batches = images(model, pixels, count)
    found: dict[str, list[tuple[float, float]]] = {row: [] for row in ROWS}
    order = list(ROWS)
    for _ in range(repeats):
        for row in order:
            found[row].append(ROWS[row](copy.deepcopy(model), batches))
        order = order[1:] + order[:1]
    print(
        f"\n{case}, {count} images, ours in batches of {len(batches[0][1])}, {POINTS} x {POINTS} "
        "points"
    )
    print(f"{'row':<22}{'set-up':>9}{'a point':>9}   samovar / row a point [min, max]")
    for row in ROWS:
        setup, point = (statistics.median(part) for part in zip(*found[row], strict=True))
        ratios = sorted(a[1] / b[1] for a, b in zip(found["samovar"], found[row], strict=True))
        ratio = statistics.median(ratios)
        verdict = (
            f", {'meets' if ratio <= TARGET else 'MISSES'} {TARGET}"
            if row == "loss-landscapes"
            else ""
        )
        print(
            f"{row:<22}{setup:>8.3f}s{point:>8.3f}s   {ratio:.2f} [{ratios[0]:.2f}, "
            f"{ratios[-1]:.2f}]{verdict}",
            flush=True,
        )


@dataclass(frozen=True)
class Clocked:
    """A loss that waits for all processes and notes in a folder when each began and ended."""

    folder: Path
    processes: int

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the loss and the number of right answers."""
        first = self.folder / f"first-{os.getpid()}"
        if not first.exists():
            first.write_text(str(time.process_time()))
            while len(list(self.folder.glob("first-*"))) < self.processes:
                time.sleep(0.01)
            (self.folder / f"began-{os.getpid()}").write_text(str(time.time()))
        found = judged(model, batch)
        (self.folder / f"last-{os.getpid()}").write_text(str(time.process_time()))
        return found


def spent(
    model: nn.Module, batches: Batches, rows: int, processes: int
) -> tuple[float, float, float]:
    """Measure one landscape.

    Returns:
        Processor time that the busier process spends on points, wall time with both processes, and
        processor time to start the second.
    """
    generator = torch.Generator().manual_seed(0)
    directions = [filter_direction(model, generator) for _ in range(2)]
    with tempfile.TemporaryDirectory() as name:
        folder, how = Path(name), Execution(processes=processes)
        loss_plane(
            model,
            Clocked(folder, processes),
            batches,
            directions,
            axis(POINTS, 1.0),
            axis(rows, 1.0),
            how,
        )
        end = time.time()
        first, began, last = (
            {
                int(path.name.partition("-")[2]): float(path.read_text())
                for path in folder.glob(f"{part}-*")
            }
            for part in ("first", "began", "last")
        )
    busier = max(last[pid] - first[pid] for pid in first)
    return (
        busier,
        end - max(began.values()),
        max((first[pid] for pid in first if pid != os.getpid()), default=0.0),
    )


def report_processes(case: str, count: int, rows: int, repeats: int) -> None:
    model, pixels = built(case)
    batches = images(model, pixels, count)
    pairs = [
        [spent(model, batches, rows, processes) for processes in (1, 2)] for _ in range(repeats)
    ]
    cpu, wall = (sorted(one[place] / two[place] for one, two in pairs) for place in (0, 1))
    ratio = statistics.median(cpu)
    verdict = "meets" if ratio >= TARGET_PROCESSES else "MISSES"
    print(
        f"\n{case}, {rows} rows of {POINTS} points, {count} images, two processes: {ratio:.2f} "
        f"[{cpu[0]:.2f}, "
        f"{cpu[-1]:.2f}] x as fast by processor time ({verdict} {TARGET_PROCESSES}), "
        f"{statistics.median(wall):.2f} by "
        f"wall time; the other is there after {pairs[-1][1][2]:.1f} s of processor time, which "
        "is not in it",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["vit32", "resnet18"])
    parser.add_argument(
        "--settings", nargs="+", choices=["point", "processes"], default=["point", "processes"]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument(
        "--rows", type=int, default=41, help="rows of the grid that two processes share"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
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
    print(f"1 thread, {args.repeats} repetitions; {' '.join(sys.argv[1:])}", flush=True)
    for case in args.cases:
        if "point" in args.settings:
            report(case, args.images, args.repeats)
    if (
        "processes" in args.settings
    ):  # one network is enough: this takes minutes and depends little on it
        report_processes(args.cases[0], max(1, args.images // 4), args.rows, 1)


if __name__ == "__main__":
    main()
