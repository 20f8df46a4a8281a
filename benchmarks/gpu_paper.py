"""Reproduce the paper's tables at `cifar10k` on one GPU within a few minutes.

    python benchmarks/gpu_paper.py pack data local/cifar10-part.zip
    python benchmarks/gpu_paper.py run local/cifar10-part.zip --minutes 9 --records records.jsonl

`pack` writes a part of CIFAR-10, lossless, to a file small enough to carry to a machine without
the data: a fifth of the training images (those that `cifar10k` trains on) and all test images in
34 MB, or with `--share 0.5 --test 0.5` half of either in 48 MB. `run` gives the part to `samovar
reproduce` under its own rows of CIFAR-10, so that runs see the batches that they would see at home.
It does many small runs at a time, ends at the given time, writes the records of every run that is
finished by then, and goes on where it stopped when it is called again with the same `--output`.

Runs are in bf16 unless `--precision` says otherwise: their numbers are a scale of their own."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from samovar.config import DataConfig
from samovar.data.sources import open_source
from samovar.data.splits import Arrays, Source, keep_fraction

COLUMN = 500
"""Images above one another in a picture: WebP gains a little by it."""
SOURCE = "cifar10-part"
VARIABLE = "SAMOVAR_CIFAR10_PART"
"""Environment variable with the path of the packed file, which worker processes inherit."""


def pack(data: Path, out: Path, share: float, test: float) -> None:
    """Write a share of the training and of the test images of CIFAR-10 to a file."""
    whole = open_source(DataConfig(source="cifar10", root=data, image_size=32))
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w") as file:
        for name, split, part in (("train", whole.train, share), ("val", whole.val, test)):
            assert isinstance(split, Arrays)
            rows = keep_fraction(split.labels, part, DataConfig().split_seed)
            with file.open(f"{name}.npz", "w") as stream:
                np.savez_compressed(stream, labels=split.labels, rows=rows)
            for start in range(0, len(rows), COLUMN):
                images = split.images[rows[start : start + COLUMN]]
                column = images.transpose(0, 2, 3, 1).reshape(-1, 32, 3)
                buffer = io.BytesIO()
                Image.fromarray(column).save(buffer, "WEBP", lossless=True, quality=80, method=4)
                file.writestr(f"{name}-{start:06d}.webp", buffer.getvalue())
        file.writestr("classes.json", json.dumps(whole.classes))
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")


def _read(file: zipfile.ZipFile, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Any]:
    """Return all labels of a split, the rows that are packed, and their images [n, 3, 32, 32]."""
    with np.load(io.BytesIO(file.read(f"{name}.npz"))) as arrays:
        labels, rows = arrays["labels"], arrays["rows"]
    columns = sorted(each for each in file.namelist() if each.startswith(f"{name}-"))
    pictures = [np.asarray(Image.open(io.BytesIO(file.read(each)))) for each in columns]
    images = np.concatenate(pictures).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
    return labels, rows, images


def open_part(config: DataConfig) -> Source:
    """Open the packed part as the source `cifar10-part`.

    The training split has all rows of CIFAR-10, so that a fraction takes the same rows as of the
    whole; those that are not packed are black.

    Raises:
        ValueError: the fraction takes rows that are not packed."""
    with zipfile.ZipFile(os.environ[VARIABLE]) as file:
        labels, rows, images = _read(file, "train")
        val_labels, val_rows, val_images = _read(file, "val")
        classes = tuple(json.loads(file.read("classes.json")))
    wanted = keep_fraction(labels, config.fraction, config.split_seed)
    if missing := len(np.setdiff1d(wanted, rows)):
        raise ValueError(
            f"--data.fraction {config.fraction:g} takes {missing} images that are not packed; "
            "pack a larger --share"
        )
    all_images = np.zeros((len(labels), 3, 32, 32), np.uint8)
    all_images[rows] = images
    return Source(
        SOURCE,
        classes,
        Arrays(labels, all_images, SOURCE),
        Arrays(val_labels[val_rows], val_images, SOURCE),
        channels=3,
        image_size=32,
    )


def run(args: argparse.Namespace, more: list[str]) -> int:
    """Run `samovar reproduce` on the packed part until the time is up; return its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        # an entry point, as an installed package would have it, reaches the worker processes too
        info = Path(folder) / "samovar_cifar10_part-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Name: samovar-cifar10-part\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            f"[samovar.sources]\n{SOURCE} = gpu_paper:open_part\n"
        )
        paths = [folder, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {
            VARIABLE: str(args.part.resolve()),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        command = [
            sys.executable, "-m", "samovar", "reproduce", *args.tables, "--scale", "cifar10k",
            "--data.source", SOURCE, "--seeds", str(args.seeds), "--jobs", str(args.jobs),
            "--output", str(args.output), "--run.device", args.device,
            "--run.precision", args.precision, *more,
        ]  # fmt: skip
        with subprocess.Popen(command, env=env) as process:
            try:
                status = process.wait(args.minutes * 60)
            except subprocess.TimeoutExpired:
                print(f"{args.minutes:g} minutes are over: stopping", flush=True)
                process.send_signal(signal.SIGINT)  # keeps what is finished
                status = process.wait()
    collect(args.output, args.records)
    return status


def collect(output: Path, records: Path) -> None:
    """Write the records of every run below a folder to one file, each with its run's name."""
    lines = [
        json.dumps({"run": path.parent.name} | json.loads(line))
        for path in sorted(output.rglob("records.jsonl"))
        for line in path.read_text().splitlines()
    ]
    records.write_text("".join(f"{line}\n" for line in lines))
    print(f"{records}: {len(lines)} records")


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack")
    packing.add_argument("data", type=Path, help="folder that holds cifar-10-batches-py")
    packing.add_argument("out", type=Path)
    packing.add_argument("--share", type=float, default=0.2, help="of the training images")
    packing.add_argument("--test", type=float, default=1.0, help="share of the test images")
    running = verbs.add_parser("run", epilog="other flags go to samovar reproduce")
    running.add_argument("part", type=Path)
    running.add_argument("--tables", nargs="+", default=["table1", "table3", "figure2"])
    running.add_argument("--seeds", type=int, default=5)
    running.add_argument("--jobs", type=int, default=12, help="runs at a time on the GPU")
    running.add_argument("--minutes", type=float, default=9)
    running.add_argument("--output", type=Path, default=Path("runs/gpu-paper"))
    running.add_argument("--records", type=Path, default=Path("records.jsonl"))
    running.add_argument("--device", default="cuda")
    running.add_argument("--precision", default="bf16")
    args, more = parser.parse_known_args()
    if args.verb == "run":
        return run(args, more)
    pack(args.data, args.out, args.share, args.test)
    return 0


if __name__ == "__main__":
    sys.exit(main())
