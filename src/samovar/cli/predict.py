"""`samovar predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samovar.cli import early
from samovar.cli.export import CHECKPOINT, MODEL
from samovar.cli.flags import COUNT, DIR, SWITCH, TRUST, Flag, Kind, flag_lines, read
from samovar.cli.named_run import run_path

FLAGS = (
    Flag("--top-k", COUNT, "classes per image, the likeliest first", 5),
    Flag("--json", SWITCH, "print JSON lines, an object an image, instead of a table"),
    Flag(
        "--csv", Kind("FILE", "a path"), "write a row an image instead of a table; - is stdout", ""
    ),
    Flag("--copy-to", DIR, "copy each image into DIR/CLASS; replaces nothing"),
    CHECKPOINT,
    Flag("--batch-size", COUNT, "images per forward pass", 64),
    Flag("--device", Kind("DEVICE", "a device"), "auto, cpu, cuda, cuda:1 or mps", "auto"),
    MODEL,
    TRUST,
)

HELP = f"""\
usage: samovar predict RUN IMAGE... [--flags]

Predict the classes of images. RUN is a run folder, an exported timm or onnx folder, a timm name
with pretrained weights, or a file. An IMAGE is a file, a folder with all below it, or a pattern.
Images are prepared as in the run's own evaluation.

{flag_lines(FLAGS)}

Probabilities are softmax. A run trained by the sigmoid loss has one probability per class, and they
need not add up to 1. Images in subfolders that are named after classes give an accuracy. Images
that cannot be read are named on stderr; the others are predicted, and the exit code is 2.

examples:
  samovar predict runs/NAME photo.jpg
  samovar predict runs/NAME photos --copy-to sorted
  samovar predict runs/NAME photos 'more/*.png' --top-k 1 --csv classes.csv
"""


@dataclass(frozen=True)
class PredictCommand:
    """A `samovar predict` command line, read and checked."""

    what: str
    """A run folder, an exported folder, a file or a timm name."""
    images: tuple[str, ...]
    """Files, folders and patterns."""
    top_k: int
    as_json: bool
    csv_file: str
    """File of the CSV, - for stdout; empty writes none."""
    copy_to: Path | None
    """Folder for copies of the images by class; None copies nothing."""
    checkpoint: str
    batch_size: int
    device: str
    model: str


def parse(args: Sequence[str]) -> PredictCommand:
    """Return what a command line asks for.

    Raises:
        ValueError: no model, no images, an unknown flag, a number that does not fit."""
    line = read(args, FLAGS, "predict")
    if len(line.words) < 2:
        missing = "images" if line.words else "a run folder or a model, and images"
        raise ValueError(f"predict needs {missing}; see `samovar predict --help`")
    if line["--json"] and line["--csv"]:
        raise ValueError("--json and --csv exclude each other; give one of them")
    what, *images = line.words
    return PredictCommand(
        run_path(what, models=True),
        tuple(images),
        top_k=line["--top-k"],
        as_json=line["--json"],
        csv_file=line["--csv"],
        copy_to=line["--copy-to"],
        checkpoint=line["--checkpoint"],
        batch_size=line["--batch-size"],
        device=line["--device"],
        model=line["--model"],
    )


def run(args: Sequence[str]) -> None:
    """Predict the classes of images."""
    command = parse(args)
    early.check_weights(command.what, command.model)
    from samovar.export.predict import show

    show(
        command.what,
        command.images,
        checkpoint=command.checkpoint,
        name=command.model,
        device=command.device,
        top_k=command.top_k,
        batch_size=command.batch_size,
        as_json=command.as_json,
        csv_file=command.csv_file,
        copy_to=command.copy_to,
    )
