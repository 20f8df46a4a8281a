"""Measure the cost of loading: streaming beside PIL, and the resident loader beside a step.

    python benchmarks/loading.py [--rounds 15] [--photos ../shared/data/flowers5/train]

PIL runs with torchvision's v1 transforms. Both sides run in one process on one thread. They take
turns and are timed by processor time, so that the ratios hold on a busy machine. Targets: streaming
loads at least 1.9 times the images/s of PIL; the resident loader takes at most 3 % of the step of
the 32-pixel ViT.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision import transforms as v1

from samovar.config import DataConfig
from samovar.data.draws import Plan
from samovar.data.loader import batches
from samovar.data.sources import open_source
from samovar.data.splits import Arrays, Source
from samovar.data.streaming import IMAGES_PER_TASK, Maker, Task

BATCH = 32
CPU = torch.device("cpu")


def processor_ms(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return 1000 * (time.process_time() - start)


def in_turns(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return milliseconds of processor time of each call; a round calls each function once."""
    for function in functions.values():
        function()  # warm: imports, caches, first allocations
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(processor_ms(function))
    return times


def write_photos(photos: Path, folder: Path) -> float:
    """Write 64 JPEGs of 500 x 375, quality 90, in two class folders; return their mean KiB."""
    files = sorted(photos.glob("*/*.jpg"))
    sizes = []
    for number in range(64):
        if files:
            image = (
                Image.open(files[number * len(files) // 64])
                .convert("RGB")
                .resize((500, 375), Image.Resampling.LANCZOS)
            )
        else:  # smooth noise: about the size on disk of a photo
            coarse = np.random.default_rng(number).integers(0, 256, (47, 63, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        target = folder / f"class{number % 2}" / f"{number:03}.jpg"
        target.parent.mkdir(exist_ok=True)
        image.save(target, quality=90)
        sizes.append(target.stat().st_size / 1024)
    return statistics.mean(sizes)


def pil_batches(folder: str) -> Iterator[torch.Tensor]:
    """Yield batches as most training scripts do: ImageFolder, hence PIL, and v1 transforms."""
    transform = v1.Compose(
        [
            v1.RandomResizedCrop(224, scale=(0.05, 1.0)),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    images = torchvision.datasets.ImageFolder(folder, transform)
    for first in itertools.count(step=BATCH):
        yield torch.stack(
            [images[number % len(images)][0] for number in range(first, first + BATCH)]
        )


def worker_batches(source: Source, config: DataConfig) -> Iterator[list[torch.Tensor]]:
    """Yield the bytes of batches, as a worker decodes them; the training device makes floats."""
    maker, plan = Maker(source.train, config, 0), Plan(0, len(source.train), BATCH)
    for step in itertools.count():
        parts = np.split(plan.positions(step), BATCH // IMAGES_PER_TASK)
        yield [maker[Task(plan.images(positions), positions)].images for positions in parts]


def bench_streaming(photos: Path, rounds: int) -> list[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        kib = write_photos(photos, Path(folder))
        config = DataConfig(
            source=f"folder:{folder}",
            image_size=224,
            batch_size=BATCH,
            crop="inception",
            flip=True,
            workers=0,
        )
        source = open_source(config)
        streams: dict[str, Iterator[object]] = {
            "ImageFolder (PIL) + v1 transforms": pil_batches(folder),
            "streaming, a worker's part": worker_batches(source, config),
            "streaming, floats made on this core too": batches(
                source, config, seed=0, stop=10**9, device=CPU
            ),
            "the same without antialias": batches(
                source, replace(config, antialias=False), seed=0, stop=10**9, device=CPU
            ),
        }
        times = in_turns(
            {name: functools.partial(next, stream) for name, stream in streams.items()}, rounds
        )
    base = next(iter(times.values()))
    rows = [(f"JPEG 500 x 375, {kib:.0f} KiB, to 224 px", "", "")]
    for name, values in times.items():
        ratio = statistics.median(b / v for b, v in zip(base, values, strict=True))
        rows.append((name, f"{statistics.median(values) / BATCH:.3f} ms/image", f"{ratio:.2f} x"))
    return rows


def bench_resident(rounds: int) -> list[tuple[str, str, str]]:
    import timm

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50_000, 3, 32, 32), dtype=np.uint8)
    split = Arrays(rng.integers(0, 10, 50_000), images)
    source = Source("random", tuple("0123456789"), split, split, channels=3, image_size=32)
    config = DataConfig(image_size=32, batch_size=128, crop="pad", flip=True)
    stream = batches(source, config, seed=0, stop=10**9, device=CPU)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=192, depth=9, num_heads=3, num_classes=10
    )
    optimizer = torch.optim.AdamW(model.parameters())
    batch = next(stream)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()

    times = in_turns({"training step": step, "load": lambda: next(stream)}, rounds)
    share = statistics.median(
        load / step for load, step in zip(times["load"], times["training step"], strict=True)
    )
    return [
        ("32-px ViT step, batch 128", f"{statistics.median(times['training step']):.1f} ms", ""),
        (
            "resident batch, pad-crop + flip",
            f"{statistics.median(times['load']):.2f} ms",
            f"{100 * share:.2f} %",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="times each side is run")
    here = Path(__file__).parents[1].parent
    parser.add_argument(
        "--photos", type=Path, default=here / "shared/data/flowers5/train", help="CLASS/*.jpg"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("what", "processor time", "ratio", title="Loading, medians, one thread")
    for row in bench_streaming(args.photos, args.rounds) + bench_resident(max(3, args.rounds // 3)):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow "
        f"{PIL.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()} "
        f"{torch.backends.cpu.get_cpu_capability()}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
