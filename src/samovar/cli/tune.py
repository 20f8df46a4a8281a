"""`samovar tune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
    read,
    without,
)
from samovar.cli.named_run import run_path
from samovar.cli.settings import CONFIG, given_settings, parse_settings, start
from samovar.config import Config
from samovar.models import trust
from samovar.studies.tune.search import AXES, Search, make, parse_values


def _share(flag: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 0.9:
        raise ValueError(
            f"{flag} {text} is out of range; give a share of the training images from 0 to 0.9"
        )
    return share


AXIS_FLAGS = {
    name: Flag(
        "--" + name.replace("_", "-"),
        Kind("A,B,...", "values, such as 0.1,0.2", partial(parse_values, axis=axis)),
        f"values of --{axis.setting.replace('_', '-')} to try",
    )
    for name, axis in AXES.items()
}
"""Flags that list the values to try, by axis of the search."""
FLAGS = (
    *AXIS_FLAGS.values(),
    Flag("--seeds", COUNT, "runs per setting, compared by their mean", 1),
    Flag("--full", SWITCH, "train every setting at full length, not only the better half"),
    Flag(
        "--share", Kind("S", "a share, such as 0.1", _share),
        "share of each training class to compare on",
        shown="0.1, or what --data.val-share holds out where the source has no validation split",
    ),
    Flag("--verdict", SWITCH, "say why SAM does not help, from finished runs, and train nothing"),
    Flag("--jobs", COUNT, "runs at a time; they share the cores and take the GPUs in turn", 1),
    CONFIG,
    TRUST,
)  # fmt: skip

HELP = f"""\
usage: samovar tune RECIPE --rho A,B,... [--lr A,B,...] [--weight-decay A,B,...] [--flags]
       samovar tune --config RUN/config.json --rho A,B,... [--flags]
       samovar tune --verdict SEARCH|RUN...

Find the best rho, learning rate or weight decay of a recipe. Lists of several flags are combined.
Short runs of all settings come first, then longer runs of the better half; each has a complete
schedule of its length.

{flag_lines(FLAGS)}

Settings are compared by accuracy on images held out of training, ties by loss. A validation split
that comes with the source is never looked at. The command prints its cost before it starts; at the
end it prints a table and the best settings as a command, and writes a report with the curve. The
same command with the same --name goes on where it stopped.

With --verdict, folders of searches and of finished runs take the place of a recipe. The command
prints SAM's gain over plain training by seed, a paragraph for each cause that its rules find, and
which command measures what is missing. docs/does-sam-help.md explains the rules.

All other flags change a setting of the recipe. `samovar tune RECIPE --help` lists them with their
values in that recipe.

examples:
  samovar tune vit-digits-sam --rho 0.02,0.05,0.1,0.2,0.35
  samovar tune vit-cifar10-sam --rho 0.05,0.1 --lr 0.0005,0.001 --seeds 3 --jobs 4
  samovar tune vit-digits-sam --rho 0,0.05,0.1 --seeds 3 --full --name search
  samovar tune --verdict runs/search
"""


@dataclass(frozen=True)
class TuneCommand:
    """A `samovar tune` command line, read and checked."""

    config: Config
    """The recipe, changed by the flags."""
    search: Search
    base: Config
    """The recipe without flags."""
    words: tuple[str, ...]
    """The words that name the recipe on the command line."""
    share: float | None
    """Share of each training class to compare on; None leaves it to the source."""
    jobs: int
    """Runs at a time."""


@dataclass(frozen=True)
class VerdictCommand:
    """A `samovar tune --verdict` command line, read and checked."""

    folders: tuple[Path, ...]
    """Searches and runs."""


def parse(args: Sequence[str]) -> TuneCommand | VerdictCommand:
    """Return what a command line asks for.

    Raises:
        ValueError: an unknown recipe or flag, a value that does not fit, nothing to compare, a
            folder that does not exist."""
    line = read(args, FLAGS, "tune", settings=True, aliases=ALIASES)
    if line["--verdict"]:
        return VerdictCommand(_verdict_folders(line))
    values = {n: line[flag.name] for n, flag in AXIS_FLAGS.items() if line[flag.name] is not None}
    base, words = start(line, "tune", FLAGS)
    _refuse_fixed(line, base, values)
    config = parse_settings(base, line.settings, f"tune {' '.join(words)}", FLAGS)
    configs.validate(config)
    config, search = make(config, values, seeds=line["--seeds"], full=line["--full"])
    return TuneCommand(config, search, base, words, line["--share"], line["--jobs"])


def _verdict_folders(line: Line) -> tuple[Path, ...]:
    """Return the folders behind `--verdict`; refuse a flag of a search."""
    searching = (flag for flag in FLAGS if flag.name != "--verdict")
    spare = [f.name for f in searching if line[f.name] not in (f.default, None, False)]
    for name in [*spare, *line.settings]:
        raise ValueError(f"--verdict trains nothing, so {name} has no use; leave it out")
    if not line.words:
        raise ValueError("--verdict needs folders of searches or runs, such as runs/search")
    folders = tuple(Path(run_path(word)) for word in line.words)
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; give folders of searches or runs")
    return folders


def _refuse_fixed(line: Line, base: Config, values: dict[str, tuple[float, ...]]) -> None:
    """Raise ValueError where a flag sets what another flag searches."""
    given = set(given_settings(base, line.settings))
    for name in values:
        setting = AXES[name].setting
        if setting in given:
            raise ValueError(
                f"--{setting.replace('_', '-')} is what {AXIS_FLAGS[name].name} searches; "
                "leave one of them out"
            )


def explained(args: Sequence[str]) -> Config:
    """Return the settings whose flags `samovar tune RECIPE --help` lists."""
    line = read(args, FLAGS, "tune", settings=True, aliases=ALIASES)
    if line["--config"]:
        return configs.load(line["--config"])
    return recipes.get(next(iter(line.words), "")).config()


def run(args: Sequence[str]) -> None:
    """Search for the best settings of a recipe, or say why SAM does not help."""
    command = parse(args)
    if isinstance(command, VerdictCommand):
        from samovar.studies.tune.verdict import verdict

        print("\n\n".join(verdict(command.folders)))
        return
    trust.refuse(command.config.model.name, "--config")
    early.check(command.config, download=True)
    from samovar.studies.tune.command import tune
    from samovar.studies.tune.view import TuneRequest

    again = ("samovar", "tune", *without(args, "--name"))
    asked = TuneRequest(again, ("samovar", "train", *command.words), command.base)
    tune(command.config, command.search, asked, share=command.share, jobs=command.jobs)
