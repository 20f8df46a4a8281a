"""`samovar export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samovar.cli import early
from samovar.cli.flags import DIR, NAME, TRUST, Flag, Kind, flag_lines, lines, one_of, read
from samovar.cli.named_run import run_path

FORMATS = {
    "timm": "a folder for timm.create_model and the Hugging Face hub",
    "onnx": "one file for onnxruntime and others; needs pip install samovar[onnx]",
    "torch": "a program of torch.export, which needs torch alone",
}
# `predict` has these two as well
CHECKPOINT = Flag("--checkpoint", Kind("WHICH", "a checkpoint"), "best, last or step-N", "best")
MODEL = Flag("--model", NAME, "name of the network, where RUN is a bare file of weights", "")
FLAGS = (
    Flag("--format", one_of("FORMAT", FORMATS), "see above"),
    Flag("--output", DIR, "folder of the copy", shown="RUN/export-FORMAT"),
    CHECKPOINT,
    Flag("--title", Kind("TITLE", "a title"), "heading of the model card", "", "the run's name"),
    Flag("--license", Kind("ID", "a licence"), "of the model card, such as apache-2.0", "unknown"),
    MODEL,
    TRUST,
)

HELP = f"""\
usage: samovar export RUN --format timm|onnx|torch [--flags]

Write a copy of a trained network for use elsewhere, with a model card (README.md) that states its
accuracy, sharpness and settings. RUN is a run folder, a timm name with pretrained weights, an
exported folder or a file. The copy is loaded again, compared with the run's logits on random images
and kept only if they agree. An earlier export is replaced.

FORMAT:
{lines(FORMATS)}

{flag_lines(FLAGS)}

examples:
  samovar export runs/NAME --format timm
  samovar export runs/NAME --format onnx --checkpoint last --output my-model
"""


@dataclass(frozen=True)
class ExportCommand:
    """A `samovar export` command line, read and checked."""

    what: str
    """A run folder, an exported folder, a file or a timm name."""
    kind: str
    """A name of `FORMATS`."""
    output: Path | None
    """Folder of the copy; None is one below the run."""
    checkpoint: str
    title: str
    license: str
    model: str


def parse(args: Sequence[str]) -> ExportCommand:
    """Return what a command line asks for.

    Raises:
        ValueError: no model or several, no format or an unknown one, an unknown flag."""
    line = read(args, FLAGS, "export")
    if len(line.words) != 1:
        given = f"{len(line.words)} were given" if line.words else "see `samovar export --help`"
        raise ValueError(f"export needs one run folder or model; {given}")
    if line["--format"] is None:
        raise ValueError(f"export needs --format; give one of: {', '.join(FORMATS)}")
    return ExportCommand(
        run_path(line.words[0], models=True),
        kind=line["--format"],
        output=line["--output"],
        checkpoint=line["--checkpoint"],
        title=line["--title"],
        license=line["--license"],
        model=line["--model"],
    )


def run(args: Sequence[str]) -> None:
    """Write a copy that works elsewhere."""
    command = parse(args)
    early.check_weights(command.what, command.model)
    from samovar.export import export as write

    path = write(
        command.what,
        command.kind,
        output=command.output,
        checkpoint=command.checkpoint,
        name=command.model,
        title=command.title,
        license=command.license,
    )
    print(f"{command.kind}: {path}")
