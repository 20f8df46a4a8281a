"""`train` and `tune`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from samovar import config as configs
from samovar import recipes
from samovar.cli.flags import count, parse_flags, peek, take, take_last
from samovar.cli.texts import TRAIN_HELP, TUNE_HELP
from samovar.config import Config
from samovar.data.catalog import can_count, count_images
from samovar.studies.tune.search import AXES, Search, make, parse_values


def parse_train(args: list[str]) -> tuple[Config, Path | None]:
    """The config a `train` command line asks for, and the run folder it resumes, if any.

    Raises:
        ValueError: an unknown recipe or flag, a value that does not fit."""
    resumed = take(args, "--resume")
    if resumed and peek(args, "--config"):
        raise ValueError("--resume and --config exclude each other; give one of them")
    if resumed:
        path = Path(resumed) / "config.json"
        if not path.is_file():
            raise ValueError(f"--resume {resumed} is not a run: it has no config.json")
        base, start = configs.load(path), ["--resume", resumed]
    else:
        base, start = _start(
            args, "train needs a recipe, --config or --resume; see `samovar list recipes`"
        )
    config = parse_flags(base, args, f"samovar train {' '.join(start)}")
    configs.validate(config)
    return config, Path(resumed) if resumed else None


def _start(args: list[str], complaint: str) -> tuple[Config, list[str]]:
    """Take the recipe or the saved config off a command line: its settings, and the words that
    named it."""
    replayed = take(args, "--config")
    if replayed:
        return configs.load(Path(replayed)), ["--config", replayed]
    if not args or args[0].startswith("-"):
        raise ValueError(complaint)
    name = args.pop(0)
    return recipe_config(name, args), [name]


def recipe_config(name: str, args: list[str]) -> Config:
    """A recipe's settings, those that follow from the number of images included."""
    base = recipes.get(name).config()
    if name in _BY_NUMBER and "--help" not in args and "-h" not in args:
        source = peek(args, "--data.source") or base.data.source
        share = float(peek(args, "--data.val-share") or base.data.val_share)
        fraction = float(peek(args, "--data.fraction") or base.data.fraction)
        if name == "transfer" and not can_count(source):
            return base
        base = replace(_BY_NUMBER[name](count_images(source, share, fraction)), recipe=name)
    return base


_BY_NUMBER: dict[str, Callable[[int], Config]] = {
    "photos": recipes.photos,
    "transfer": recipes.transfer,
}
"""Recipes whose settings follow from the number of images, which only the flags say where to
find."""


def train(args: list[str]) -> None:
    """Train a recipe, a saved config, or on from a checkpoint."""
    if args in (["-h"], ["--help"]):
        print(TRAIN_HELP, end="")
        return
    ranks = take_rehearsal(args)
    config, resumed = parse_train(args)
    if ranks:
        from samovar.train.dry_run import dry_run

        print("\n".join(dry_run(config, ranks)))
        return
    from samovar.train.command import train

    train(config, resumed)


def take_rehearsal(args: list[str]) -> int:
    """Take `--dry-run` with its `--ranks` off a command line; the number of ranks, 0 without
    `--dry-run`.

    Raises:
        ValueError: ranks that are no number, or without `--dry-run`."""
    if "--dry-run" not in args:
        if peek(args, "--ranks"):
            raise ValueError(
                "--ranks is of --dry-run; torchrun's --nproc-per-node says how many there are in earnest"
            )
        return 0
    args.remove("--dry-run")
    return count(args, "--ranks")


def parse_tune(args: list[str]) -> tuple[Config, Search, list[str], Config, float | None, int]:
    """What a `tune` command line asks for: the config, the search, the words that name the recipe
    and its settings without flags, the share of images to compare on, the runs at a time.

    Raises:
        ValueError: as `parse_train`; a list that is none, numbers that do not fit, nothing to
            compare."""
    values = {}
    for name, axis in AXES.items():
        flag = "--" + name.replace("_", "-")
        text = take_last(args, flag, "values, such as 0.1,0.2")
        if text is not None:
            values[name] = parse_values(flag, text, axis)
            fixed = "--" + axis.setting.replace("_", "-")
            if peek(args, fixed) is not None:
                raise ValueError(f"{fixed} is what {flag} searches; leave one of them out")
    seeds, jobs = (count(args, flag) for flag in ("--seeds", "--jobs"))
    share = _share(args)
    full = "--full" in args
    args[:] = [arg for arg in args if arg != "--full"]
    base, start = _start(args, "tune needs a recipe or --config; see `samovar list recipes`")
    config = parse_flags(base, args, f"samovar tune {' '.join(start)}", _TUNE_FLAGS)
    configs.validate(config)
    config, search = make(config, values, seeds=seeds, full=full)
    return config, search, start, base, share, jobs


_TUNE_FLAGS = (
    "--rho",
    "--lr",
    "--weight-decay",
    "--seeds",
    "--full",
    "--share",
    "--jobs",
    "--config",
)


def _share(args: list[str]) -> float | None:
    text = take_last(args, "--share", "a share, such as 0.1")
    if text is None:
        return None
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 0.9:
        raise ValueError(
            f"--share {text} is out of range; give a share of the training images from 0 to 0.9"
        )
    return share


def tune(args: list[str]) -> None:
    """Search for the best settings of a recipe."""
    if "-h" in args or "--help" in args:
        print(TUNE_HELP, end="")
        if args in (["-h"], ["--help"]):
            return
    words = ["samovar", "tune", *args]
    config, search, start, base, share, jobs = parse_tune(args)
    from samovar.studies.tune.command import tune
    from samovar.studies.tune.view import TuneRequest

    take_last(words, "--name", "a name")
    tune(
        config,
        search,
        TuneRequest(tuple(words), ("samovar", "train", *start), base),
        share=share,
        jobs=jobs,
    )
