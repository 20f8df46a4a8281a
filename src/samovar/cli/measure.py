"""`samovar measure`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from samovar import config as configs
from samovar.cli.flags import SWITCH, TRUST, Flag, flag_lines, lines, read
from samovar.cli.named_run import is_step, run_path
from samovar.cli.settings import parse_settings
from samovar.config import MeasureConfig
from samovar.measure import catalog
from samovar.models.known import SUFFIXES, refuse_unknown_model
from samovar.words import suggest

DEFAULT = ("hessian", "flatness")
"""Measurements where the command line names none."""


def _rows(split: str) -> str:
    return lines(
        {
            f"{name:<11}": each.help  # both lists have one width
            for name, each in catalog.CATALOG.items()
            if each.split == split
        }
    )


FLAGS = (
    Flag("--wait", SWITCH, "wait while another command measures into the same folder"),
    TRUST,
)

_ADDED = [name for name in catalog.names() if name not in catalog.CATALOG]

HELP = f"""\
usage: samovar measure RUN|MODEL [NAME...] [--wait] [--flags]

Measure a run at its best checkpoint, or a model: a name of `samovar list models`, any timm name, a
file of weights or module:function. Without a NAME: {" ".join(DEFAULT)}.

on the training images:
{_rows("train")}

on the held-out images:
{_rows("val")}
{f"{chr(10)}added by installed packages: {', '.join(_ADDED)}{chr(10)}" if _ADDED else ""}
{flag_lines(FLAGS)}

Networks are measured in eval mode, without augmentation, with softmax cross-entropy. Flags change
each of these, and every record states them. An interrupted command goes on where it stopped.
`samovar measure RUN --help` lists all flags with their defaults.

examples:
  samovar measure runs/NAME
  samovar measure runs/NAME hessian landscape --images 1000
  samovar measure vit_base_patch16_224 robustness --checkpoint pretrained --source imagenet:PATH
"""


class MeasureCommand(NamedTuple):
    """A `samovar measure` command line, read and checked."""

    subject: str
    """A run folder, a file of weights or the name of a model."""
    names: tuple[str, ...]
    """Measurements, in the order in which they are made."""
    config: MeasureConfig
    wait: bool = False
    """Wait for another process that measures into the same folder."""


def parse(args: Sequence[str]) -> MeasureCommand:
    """Return what a command line asks for.

    Raises:
        ValueError: no subject or one that is not there, an unknown measurement or flag, a value
            that does not fit."""
    line = read(args, FLAGS, "measure", settings=True)
    if not line.words:
        place = " before the flags" if line.settings else ""
        raise ValueError(
            f"measure needs a run folder or a model{place}; see `samovar measure --help`"
        )
    subject, *names = line.words
    for name in names:
        catalog.get(name)
    config = parse_settings(MeasureConfig(), line.settings, f"measure {subject}", FLAGS)
    configs.validate_measure(config)
    subject = run_path(subject, models=True)
    _refuse_missing(subject)
    _refuse_other(config.other, subject)
    return MeasureCommand(subject, tuple(names) or DEFAULT, config, line["--wait"])


def _refuse_missing(subject: str) -> None:
    """Raise ValueError for a path where nothing is; names of models have no slash."""
    # a colon marks module:function and timm's hf-hub:USER/NAME
    path = Path(subject)
    if ":" in subject or path.exists():
        return
    if "/" not in subject:
        if path.suffix.lower() not in SUFFIXES:
            refuse_unknown_model(subject)
        return
    runs = [str(found.parent) for found in path.parent.glob("*/config.json")]
    what_to_do = "give a folder that `samovar train` made, or a name of `samovar list models`"
    raise ValueError(
        f"no run folder {subject} and no model of that name; "
        f"{suggest(subject, runs, instead=what_to_do)}"
    )


def _refuse_other(other: str, subject: str) -> None:
    """Raise ValueError for an `--other` that is neither a run nor a step."""
    if other and not is_step(other) and not (Path(other) / "config.json").is_file():
        raise ValueError(
            f"--other {other} is no run folder and no step of {subject}; give one of the two"
        )


def explained(args: Sequence[str]) -> MeasureConfig:
    """Return the settings whose flags `samovar measure RUN --help` lists."""
    return MeasureConfig()


def run(args: Sequence[str]) -> None:
    """Measure a run or a model."""
    asked = parse(args)
    from samovar.measure import command

    command.run(asked.subject, asked.names, asked.config, wait=asked.wait)
