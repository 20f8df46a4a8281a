"""Read the flags of settings: what a verb leaves of its arguments, over a recipe or a saved run.

The flags are those of the frozen dataclasses in `samovar.config`, by tyro. No file of this folder
imports torch before the work starts."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from samovar import config as configs
from samovar import recipes
from samovar.cli.flags import ALIASES, Flag, Kind, Line, is_flag, spelling, unknown_flag
from samovar.cli.named_run import Settings, config_path, named_runs
from samovar.config import Config, CorruptConfig, DataConfig, MeasureConfig
from samovar.data.catalog import can_count, count_images
from samovar.ranges import ranges_of
from samovar.recipes.replay import BY_NUMBER


@dataclass(frozen=True)
class StudySettings(Config):
    """Settings of all runs of a study, with those of its measurements as `--measure.NAME`."""

    measure: MeasureConfig = field(default_factory=MeasureConfig)


def parse_settings(
    base: Settings, args: Sequence[str], command: str, own: Sequence[Flag] = ()
) -> Settings:
    """Return settings changed by flags.

    Args:
        base: the settings where no flag is given.
        command: for messages, such as `train vit-digits`.
        own: flags of the verb, which are suggested in place of a misspelt one as well.

    Raises:
        ValueError: one line about the first flag that is unknown or has a value that does not
            fit."""
    import tyro

    _refuse(base, args, command, own)
    title = f"samovar {command}"
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
            found = tyro.cli(type(base), default=base, args=list(args), prog=title)
    except SystemExit:
        said = _first_sentence(complaint.getvalue())
        raise ValueError(f"{_with_range(said, base)}; see `{title} --help`") from None
    return named_runs(found, base)


def _refuse(
    base: Config | MeasureConfig | CorruptConfig,
    args: Sequence[str],
    command: str,
    own: Sequence[Flag],
) -> None:
    """Raise ValueError for an unknown flag or a missing value, in the words of all other flags."""
    known, values = flag_names(base), configs.flatten(base)
    for arg, after in pairwise([*args, "--"]):
        if not is_flag(arg):
            continue
        if spelling(arg) not in known:
            short = [alias for alias, full in ALIASES.items() if full in known]
            spellings = [*known, *short, *(flag.name for flag in own)]
            raise ValueError(unknown_flag(arg, spellings, command))
        # a switch takes no value, and a list may be empty
        one_value = not isinstance(values[known[spelling(arg)]], bool | tuple)
        if one_value and "=" not in arg and is_flag(after):
            raise ValueError(f"{arg} needs a value; see `samovar {command} --help`")


def print_flags(base: Config | MeasureConfig | CorruptConfig, command: str) -> None:
    """Print every flag of settings with its value in `base`."""
    import tyro

    with contextlib.suppress(SystemExit):
        tyro.cli(type(base), default=base, args=["--help"], prog=f"samovar {command}")


def given_settings(base: Config, args: Sequence[str]) -> Iterator[str]:
    """Yield the dotted names of the settings that flags name."""
    known = flag_names(base)
    return (known[spelling(arg)] for arg in args if is_flag(arg) and spelling(arg) in known)


def given_values(
    base: Config, args: Sequence[str], command: str, own: Sequence[Flag]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what flags change in all runs of a study, and in all of its measurements.

    Both are values by dotted name, those equal to the defaults included: a flag that is given
    holds, whatever a study would choose.

    Raises:
        ValueError: as `parse_settings`."""
    whole = _for_study(base)
    flat = configs.flatten(parse_settings(whole, args, command, own))
    given = {name: flat[name] for name in given_settings(whole, args)}
    measure = {
        name.removeprefix("measure."): value
        for name, value in given.items()
        if name.startswith("measure.")
    }
    return {k: v for k, v in given.items() if not k.startswith("measure.")}, measure


def _for_study(base: Config) -> StudySettings:
    return StudySettings(**{item.name: getattr(base, item.name) for item in fields(base)})


def flag_names(base: Config | MeasureConfig | CorruptConfig) -> dict[str, str]:
    """Return the dotted name of the setting behind each flag."""
    known = {}
    for name, value in configs.flatten(base).items():
        if name == "recipe":  # follows from the command
            continue
        dashed = name.replace("_", "-")
        known[f"--{dashed}"] = name
        if isinstance(value, bool):
            section, dot, last = dashed.rpartition(".")
            known[f"--{section}{dot}no-{last}"] = name
    return known


def _with_range(said: str, base: Settings) -> str:
    """Return what tyro says of a value, and the range of the setting where it has one."""
    found = re.match(r"Error parsing (--[\w.-]+):", said)
    *path, last = (flag_names(base).get(found[1], "") if found else "").split(".")
    section: Any = base
    for part in path:
        section = getattr(section, part)
    kind: type = type(section)
    limit = ranges_of(kind).get(last)
    return f"{said}; give {limit.give}" if limit else said


def _first_sentence(box: str) -> str:
    """Return the message in the box that tyro draws around an error, without its other sections."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ \t")
        if text and set(text) <= set("─-"):
            sections.append([])
        elif text and text[0] not in "╭╰":
            sections[-1].append(text)
    # where the terminal cannot draw a frame, the title is a section of its own
    first = 0 if "╭" in box else min(1, len(sections) - 1)
    text = " ".join(sections[first])
    # where a flag takes words or numbers, what each kind of value says of it
    return text.partition(" Got errors:")[0].rstrip(".") or box.strip()


# --- where settings start from

CONFIG = Flag(
    "--config",
    Kind("RUN|FILE", "a path", lambda flag, text: Path(config_path(text))),
    "settings to use in place of a recipe: those of a run, or JSON, YAML or TOML by hand",
)


class Start(NamedTuple):
    """Settings before flags, and the words of the command line that name them."""

    base: Config
    words: tuple[str, ...]


def start(line: Line, verb: str, own: Sequence[Flag]) -> Start:
    """Return the settings of the recipe or of the saved config that a command line names.

    Raises:
        ValueError: it names none or several, or one that is not there."""
    saved = line["--config"]
    if saved is not None:
        if line.words:
            raise ValueError(
                f"{verb} takes a recipe or --config, not both {line.words[0]} and {saved}; "
                "give one of them"
            )
        return Start(configs.load(saved, _by_hand(saved)), ("--config", str(saved)))
    name = recipe_name(line, verb, " or --config")
    return Start(recipe_settings(name, line.settings, verb, own), (name,))


def _by_hand(file: Path) -> Callable[[str], Config]:
    """Return what finds the settings that a file by hand leaves out, given its recipe."""

    def base(name: str) -> Config:
        config = recipes.get(name).config()
        # a recipe whose settings follow from the number of images needs the file's images for it
        if name in BY_NUMBER:
            data = configs.load(file, lambda name: config).data
            given = data.batch_size != config.data.batch_size
            return _for_images(name, config, data, data.batch_size if given else 0)
        return config

    return base


def recipe_name(line: Line, verb: str, otherwise: str = "") -> str:
    """Return the only word of a command line.

    Raises:
        ValueError: there is none, or several."""
    if not line.words:
        place = " before the flags" if line.settings else ""
        raise ValueError(f"{verb} needs a recipe{otherwise}{place}; see `samovar list recipes`")
    if len(line.words) > 1:
        given = " and ".join(line.words)
        raise ValueError(f"{verb} takes one recipe, not {given}; see `samovar {verb} --help`")
    return line.words[0]


def recipe_settings(name: str, args: Sequence[str], verb: str, own: Sequence[Flag] = ()) -> Config:
    """Return the settings of a recipe, including those that follow from the number of images.

    Raises:
        ValueError: an unknown recipe, or flags that do not lead to images."""
    base = recipes.get(name).config()
    if name not in BY_NUMBER:
        return base
    # The flags say where the images are; the caller reads them again over what follows from the
    # number of images. Those of a study's measurements may be among them.
    data = parse_settings(_for_study(base), args, f"{verb} {name}", own).data
    given = "data.batch_size" in given_settings(base, args)
    return _for_images(name, base, data, data.batch_size if given else 0)


def _for_images(name: str, base: Config, data: DataConfig, batch: int) -> Config:
    """Return the settings of a recipe for the number of training images of `data`.

    Args:
        base: the recipe where the number is not known.
        batch: images per step; 0 follows from the number."""
    if name == "transfer" and not can_count(data.source):
        return base
    number = count_images(data.source, data.val_share, data.fraction)
    return replace(BY_NUMBER[name](number, batch), recipe=name)
