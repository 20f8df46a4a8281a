"""`samovar train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from samovar import config as configs
from samovar import recipes
from samovar.cli.flags import COUNT, SWITCH, Flag, Line, flag_lines, path, read
from samovar.cli.settings import CONFIG, Start, parse_settings, start
from samovar.config import Config

FLAGS = (
    Flag("--config", CONFIG.kind, "replay the settings of a run, saved in its config.json"),
    Flag("--resume", path("RUN"), "continue an interrupted run, bit for bit"),
    Flag(
        "--dry-run", SWITCH,
        "print schedule, ascent groups, memory and FLOPs, and take 3 steps on made-up data",
    ),
    Flag("--ranks", COUNT, "ranks that --dry-run plans for", shown="1"),
)  # fmt: skip

HELP = f"""\
usage: samovar train RECIPE [--flags]
       samovar train --config RUN/config.json [--flags]
       samovar train --resume RUN [--flags]

Train a network by a recipe of `samovar list recipes`. Checkpoints and records go into a new folder
below --output (default: runs).

{flag_lines(FLAGS)}

All other flags change a setting, such as --sam.rho 0.1. `samovar train RECIPE --help` lists them
with their values in that recipe.

examples:
  samovar train vit-cifar10-sam --seed 1
  samovar train photos --data.source folder:my/photos
  samovar train --config runs/NAME/config.json --sam.rho 0.1
  samovar train --resume runs/NAME
  samovar train vit-b16-imagenet-sam --dry-run --ranks 128
  torchrun --nproc-per-node 8 -m samovar train vit-b16-imagenet-sam
"""


class TrainCommand(NamedTuple):
    """A `samovar train` command line, read and checked."""

    config: Config
    resumed: Path | None
    """The run folder to continue."""
    ranks: int
    """Ranks of a dry run; 0 trains."""


def parse(args: Sequence[str]) -> TrainCommand:
    """Return what a command line asks for.

    Raises:
        ValueError: an unknown recipe or flag, a value that does not fit, flags that exclude each
            other."""
    line = read(args, FLAGS, "train", settings=True)
    dry_run, ranks = line["--dry-run"], line["--ranks"]
    if ranks and not dry_run:
        raise ValueError(
            "--ranks only works with --dry-run; real runs take torchrun --nproc-per-node"
        )
    base, words = _start(line)
    config = parse_settings(base, line.settings, f"train {' '.join(words)}", FLAGS)
    configs.validate(config)
    return TrainCommand(config, line["--resume"], (ranks or 1) if dry_run else 0)


def _start(line: Line) -> Start:
    resumed = line["--resume"]
    if resumed is None:
        return start(line, "train", FLAGS)
    if line["--config"]:
        raise ValueError("--resume and --config exclude each other; give one of them")
    if line.words:
        raise ValueError(
            f"--resume takes the recipe from the run; leave {' '.join(line.words)} out"
        )
    saved = resumed / "config.json"
    if not saved.is_file():
        raise ValueError(
            f"--resume {resumed} is not a run: it has no config.json; give the folder of a run"
        )
    return Start(configs.load(saved), ("--resume", str(resumed)))


def explained(args: Sequence[str]) -> Config:
    """Return the settings whose flags `samovar train RECIPE --help` lists."""
    line = read(args, FLAGS, "train", settings=True)
    if line["--config"] or line["--resume"]:
        return _start(line).base
    return recipes.get(next(iter(line.words), "")).config()


def run(args: Sequence[str]) -> None:
    """Train, or print a dry run."""
    command = parse(args)
    # torch takes seconds to import, so work is imported once the command line is known to be right
    if command.ranks:
        from samovar.train.dry_run import dry_run

        print("\n".join(dry_run(command.config, command.ranks)))
        return
    from samovar.train.command import train

    train(command.config, command.resumed)
