"""The verbs that use a trained model elsewhere: `export` and `predict`. Their parsing imports no
torch."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

EXPORT_HELP = """\
usage: samovar export RUN --format timm|onnx|torch [--flags]

  --format FORMAT    timm: a folder for timm.create_model and the Hugging Face hub
                     onnx: one file for onnxruntime and others (pip install samovar[onnx])
                     torch: a program of torch.export, which needs torch alone
  --output DIR       folder of the copy; without it RUN/export-FORMAT
  --checkpoint WHICH best, last or step-N; without it best
  --title NAME       heading of the model card; without it the run's name
  --model NAME       the network, where RUN is a bare file of weights

RUN is a run folder, a timm name with pretrained weights, an exported folder or a file. A copy takes images of any
number; it is loaded, compared with the run's logits on random images and kept only if they are the same. README.md
beside it is a model card with the run's accuracy, sharpness and settings. Writes over an earlier export.
"""

PREDICT_HELP = """\
usage: samovar predict RUN IMAGES... [--flags]

  --top-k N          classes of each image; without it 5
  --json             an object a line instead of a table
  --csv FILE         a row an image instead of a table; - is stdout
  --checkpoint WHICH best, last or step-N; without it best
  --batch-size N     images per forward pass; without it 64
  --device DEVICE    auto, cpu, cuda, cuda:1 or mps
  --model NAME       the network, where RUN is a bare file of weights

RUN is a run folder, an exported timm or onnx folder, a timm name with pretrained weights, or a file; IMAGES are files,
folders with all below them, or patterns. Images are prepared as the run's own evaluation does. Probabilities are by
softmax; of a run trained by the sigmoid loss each class has its own, and they need not add up to 1. An image that
cannot be read is named, the others are predicted, and the exit code is 2.
"""

FORMATS = ("timm", "onnx", "torch")


@dataclass(frozen=True)
class ExportCommand:
    """What an `export` command line asks for."""

    what: str
    kind: str
    output: Path | None
    checkpoint: str
    title: str
    model: str


@dataclass(frozen=True)
class PredictCommand:
    """What a `predict` command line asks for."""

    what: str
    images: tuple[str, ...]
    checkpoint: str
    model: str
    device: str
    top_k: int
    batch_size: int
    as_json: bool
    csv_file: str


def parse_export(args: Sequence[str]) -> ExportCommand:
    """What the command line asks for.

    Raises:
        ValueError: no model, no format or an unknown one, an unknown flag."""
    parser = _parser("--format", "--output", "--checkpoint", "--title", "--model")
    parser.add_argument("what", nargs="*")
    found = _parse(parser, args)
    if len(found.what) != 1:
        given = f"{len(found.what)} were given" if found.what else "see `samovar export --help`"
        raise ValueError(f"export needs one run folder or model; {given}")
    if found.format not in FORMATS:
        said = f"--format {found.format} is unknown" if found.format else "export needs --format"
        raise ValueError(f"{said}; give timm, onnx or torch")
    output = Path(found.output) if found.output else None
    return ExportCommand(
        found.what[0], found.format, output, found.checkpoint or "best", found.title, found.model
    )


def parse_predict(args: Sequence[str]) -> PredictCommand:
    """What the command line asks for.

    Raises:
        ValueError: no model, no images, an unknown flag, a number that is none."""
    parser = _parser("--top-k", "--csv", "--checkpoint", "--batch-size", "--device", "--model")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("words", nargs="*")
    found = _parse(parser, args)
    if len(found.words) < 2:
        missing = "images" if found.words else "a run folder or a model, and images"
        raise ValueError(f"predict needs {missing}; see `samovar predict --help`")
    if found.json and found.csv:
        raise ValueError("--json and --csv exclude each other; give one of them")
    what, *images = found.words
    return PredictCommand(
        what, tuple(images), found.checkpoint or "best", found.model, found.device or "auto",
        _count("--top-k", found.top_k or "5"), _count("--batch-size", found.batch_size or "64"), found.json, found.csv,
    )  # fmt: skip


def export(args: list[str]) -> None:
    """Write a copy that works elsewhere."""
    if "-h" in args or "--help" in args:
        print(EXPORT_HELP, end="")
        return
    asked = parse_export(args)
    from samovar.export import export as write

    path = write(
        asked.what,
        asked.kind,
        output=asked.output,
        checkpoint=asked.checkpoint,
        name=asked.model,
        title=asked.title,
    )
    print(f"{asked.kind}: {path}")


def predict(args: list[str]) -> None:
    """Predict the classes of images."""
    if "-h" in args or "--help" in args:
        print(PREDICT_HELP, end="")
        return
    asked = parse_predict(args)
    from samovar.export.predict import show

    show(
        asked.what, asked.images, checkpoint=asked.checkpoint, name=asked.model, device=asked.device,
        top_k=asked.top_k, batch_size=asked.batch_size, as_json=asked.as_json, csv_file=asked.csv_file,
    )  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print with its usage."""
        raise ValueError(message.removeprefix("argument "))


def _parser(*flags: str) -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(flag, default="")
    return parser


def _parse(parser: _Parser, args: Sequence[str]) -> Any:
    found, strange = parser.parse_known_intermixed_args(list(map(_dashed, args)))
    if strange:
        flag = strange[0].partition("=")[0]
        known = [flag for action in parser._actions for flag in action.option_strings]
        near = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"give one of: {', '.join(known)}"
        raise ValueError(f"unknown flag {flag}; {hint}")
    return found


def _dashed(arg: str) -> str:
    """`--top_k=3` as `--top-k=3`; what is no flag stays."""
    flag, equals, value = arg.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}" if arg.startswith("--") else arg


def _count(flag: str, text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"{flag} {text} is out of range; give a whole number, 1 or more")
    return int(text)
