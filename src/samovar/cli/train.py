"""`samovar train`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from samovar import config as configs
from samovar import recipes
from samovar.cli import early
from samovar.cli.flags import (
    ALIASES,
    COUNT,
    SWITCH,
    TRUST,
    Flag,
    Kind,
    Line,
    flag_lines,
    lines,
    read,
)
from samovar.cli.folder import Choice, choose, is_folder, no_recipe, why_lines
from samovar.cli.given_length import chosen, timed, with_length
from samovar.cli.named_run import run_path
from samovar.cli.saved_run import last_unfinished, of_run, refuse_code
from samovar.cli.settings import CONFIG, Start, given_settings, parse_settings, start
from samovar.config import Config, GridConfig
from samovar.config.derived import Shorten
from samovar.recipes.replay import BY_NUMBER
from samovar.runs.records import RunDir

FLAGS = (
    replace(CONFIG, help="replay the settings of a run, or settings in JSON, YAML or TOML"),
    Flag(
        "--resume", Kind("[RUN|auto]", "a path", lambda flag, text: Path(text), Path()),
        "continue an interrupted run, bit for bit; alone: the last unfinished one below --output; "
        "auto: the run of --name if it was begun, else start it",
    ),
    Flag(
        "--branch", Kind("RUN@STEP", "a run and a step", lambda flag, text: _at(text)),
        "start a new run from a checkpoint of a run; SAM, decay and length may change",
    ),
    Flag(
        "--dry-run", SWITCH,
        "print schedule, ascent groups, memory and FLOPs, and take 3 steps on made-up data",
    ),
    Flag("--wait", SWITCH, "wait while another command trains the same run"),
    Flag("--scratch", SWITCH, "train from scratch, however few images FOLDER holds"),
    Flag("--ranks", COUNT, "ranks that --dry-run plans for", shown="1"), TRUST,
)  # fmt: skip

HELP = f"""\
usage: samovar train RECIPE [--flags]
       samovar train FOLDER [--init NAME|RUN|FILE] [--scratch] [--flags]
       samovar train --config RUN/config.json [--flags]
       samovar train --resume [RUN] [--flags]
       samovar train RECIPE --name NAME --resume auto [--flags]
       samovar train --branch RUN@STEP [--sam.* --optim.decay-* --steps N]

Train a network by a recipe of `samovar list recipes`. Checkpoints and records go into a new folder
below --output (default: runs).

FOLDER holds your images, one folder a class: FOLDER/CLASS/*.jpg, or FOLDER/train/CLASS and
FOLDER/val/CLASS. With fewer than {recipes.ENOUGH:,} training images pretrained weights are
fine-tuned (recipe transfer), else a network is trained from scratch (recipe photos). Batch, steps,
warm-up and learning rates follow from the number of images; a plan with its cost is printed first.

{flag_lines(FLAGS)}

All other flags change a setting, such as --sam.rho 0.1. `samovar train RECIPE --help` lists the
first of them with their values in that recipe, --help-all lists all. Short names, here and in
`tune` and `compare`:

{lines(ALIASES)}

examples:
  samovar train vit-cifar10-sam --seed 1
  samovar train my/photos
  samovar train my/photos --init model.safetensors --model.name resnet18 --image-size 64
  samovar train photos --data.source folder:my/photos
  samovar train --config runs/NAME/config.json --sam.rho 0.1
  samovar train --resume runs/NAME
  samovar train --resume
  samovar train --branch runs/NAME@last --sam.rho 0.1
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
    shorten: Shorten | None = None
    """Fits warm-up to a length that flags gave; None for a run that goes on."""
    again: Callable[[RunDir], Config] | None = None
    """Under `--resume auto` the settings of the run if it was begun."""
    wait: bool = False
    """Wait for another process that trains the run."""
    origin: tuple[Path, str] | None = None
    """The run and the step, or `last`, at which a branch starts."""
    why: tuple[str, ...] = ()
    """Lines on what was chosen for a folder of images."""


def parse(args: Sequence[str]) -> TrainCommand:
    """Return what a command line asks for.

    Raises:
        ValueError: an unknown recipe or flag, a value that does not fit, flags that exclude each
            other."""
    line = read(args, FLAGS, "train", settings=True, aliases=ALIASES)
    dry_run, ranks = line["--dry-run"], line["--ranks"]
    if ranks and not dry_run:
        raise ValueError(
            "--ranks only works with --dry-run; real runs take torchrun --nproc-per-node"
        )
    resumed = line["--resume"]
    if line["--branch"]:
        return _branch(line)
    if resumed == Path():
        resumed = last_unfinished(line, FLAGS)
    auto = resumed == AUTO
    if resumed is not None and not auto:
        resumed = Path(run_path(str(resumed)))
    choice = None
    if resumed is None or auto:
        choice = _folder(line)
        begun = Start(choice.base, line.words) if choice else start(line, "train", FLAGS)
    else:
        begun = of_run(resumed, line)
    base, words = begun
    config = parse_settings(base, line.settings, f"train {' '.join(words)}", FLAGS)
    planned = (ranks or 1) if dry_run else 0
    if resumed is not None and not auto:
        configs.validate(config)
        return TrainCommand(config, resumed, planned, wait=line["--wait"])
    given = frozenset(given_settings(base, line.settings))
    config = chosen(timed(config, given), given)
    configs.validate(config)
    if auto and not config.name:
        raise ValueError("--resume auto finds a run by its name; give --name")

    def shorten(config: Config, num_train: int) -> tuple[Config, tuple[str, ...]]:
        return configs.shorten(config, with_length(config, base), num_train, given)

    def again(run: RunDir) -> Config:
        return _begun(run, line, base.recipe)

    why = why_lines(choice, shorten(config, choice.num_images)[0]) if choice else ()
    again_if = again if auto else None
    return TrainCommand(config, None, planned, shorten, again_if, wait=line["--wait"], why=why)


AUTO = Path("auto")
"""Value of `--resume` that continues a run or starts it."""


def _at(text: str) -> tuple[Path, str]:
    """Return run and step of `RUN@STEP`.

    Raises:
        ValueError: one of the two is missing."""
    run, _, step = text.rpartition("@")
    if not (run and step):
        raise ValueError(
            f"--branch {text} names no step; give RUN@STEP, such as {text.strip('@')}@last"
        )
    return Path(run_path(run)), step


def _branch(line: Line) -> TrainCommand:
    """Return the branch that a command line asks for.

    Raises:
        ValueError: not a run, or flags that do not go with a branch."""
    for other in ("--resume", "--config", "--dry-run"):
        if line[other]:
            raise ValueError(f"--branch and {other} exclude each other; give one of them")
    origin = line["--branch"]
    base, words = _branched(origin, line)
    config = parse_settings(base, line.settings, f"train {' '.join(words)}", FLAGS)
    config = timed(config, frozenset(given_settings(base, line.settings)))
    configs.validate(config)
    return TrainCommand(config, None, 0, origin=origin)


def _branched(origin: tuple[Path, str], line: Line) -> Start:
    """Return the settings before flags of a branch: those of the run, in a folder beside it."""
    run, step = origin
    saved = of_run(run, line, "--branch").base
    # the grid has chosen the rate
    base = replace(saved, name="", output=run.resolve().parent, grid=GridConfig())
    if not run.is_absolute():
        base = replace(base, output=run.parent)
    return Start(base, ("--branch", f"{run}@{step}"))


def _folder(line: Line) -> Choice | None:
    """Return the settings for the folder of images that a command line names; None for a recipe.

    Raises:
        ValueError: as `choose`; `--scratch` without a folder."""
    scratch = line["--scratch"]
    if len(line.words) > 1:
        raise ValueError(
            f"train takes one recipe, not {' and '.join(line.words)}, or one folder of images; "
            "quote a path with spaces"
        )
    if len(line.words) == 1 and not line["--config"]:
        word = line.words[0]
        if is_folder(word):
            return choose(word, line, FLAGS, scratch=scratch)
        if word not in recipes.RECIPES:
            raise no_recipe(word)
    if scratch:
        raise ValueError("--scratch goes with a folder of images; a recipe without --init does it")
    return None


def _begun(run: RunDir, line: Line, recipe: str) -> Config:
    """Return the settings of a run that was begun, changed by the flags of a command line.

    Raises:
        ValueError: the run is one of another recipe, or is damaged."""
    saved = configs.load(run.config_path)
    if saved.recipe != recipe:
        raise ValueError(
            f"--resume auto finds {run.path}, a run of {saved.recipe}, not of {recipe}; "
            "give another --name"
        )
    config = parse_settings(saved, line.settings, f"train {recipe}", FLAGS)
    given = frozenset(given_settings(saved, line.settings))
    config = chosen(timed(config, given), given)
    # the grid has chosen the rate since
    if saved.grid.lr:
        config = replace(config, optim=replace(config.optim, lr=saved.optim.lr))
    refuse_code(config, run.path)
    configs.validate(config)
    return config


def explained(args: Sequence[str]) -> Config:
    """Return the settings whose flags `samovar train RECIPE --help` lists."""
    line = read(args, FLAGS, "train", settings=True, aliases=ALIASES)
    resumed = line["--resume"]
    if resumed not in (None, Path(), AUTO):
        return of_run(Path(run_path(str(resumed))), line).base
    if line["--branch"]:
        return _branched(line["--branch"], line).base
    if line["--config"]:
        return start(line, "train", FLAGS).base
    if choice := _folder(line):
        return choice.base
    return recipes.get(next(iter(line.words), "")).config()


def run(args: Sequence[str]) -> None:
    """Train, or print a dry run."""
    command = parse(args)
    refuse_code(command.config, command.resumed or (command.origin and command.origin[0]))
    if command.resumed is None and not command.again:
        early.check(command.config, download=not command.ranks, data=not command.ranks)
    # torch takes seconds to import, so work is imported once the command line is known to be right
    if command.ranks:
        from samovar.train.dry_run import dry_run

        print("\n".join(dry_run(command.config, command.ranks, command.shorten)))
        return
    from samovar.train.command import train

    train(
        command.config,
        command.resumed,
        shorten=command.shorten,
        again=command.again,
        wait=command.wait,
        origin=command.origin,
        why=command.why,
        plan=command.config.recipe in BY_NUMBER,
    )
