"""Declare, read and list the flags of a verb.

A verb declares its own flags as `Flag`s and hands its arguments to `read`. `samovar.cli.settings`
reads what `read` leaves over: the flags of the frozen dataclasses in `samovar.config`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samovar.models import trust
from samovar.words import suggest

WIDTH = 100
"""Columns of a help text."""
ALIASES = {
    "--lr": "--optim.lr",
    "--batch-size": "--data.batch-size",
    "--image-size": "--data.image-size",
    "--rho": "--sam.rho",
    "--device": "--run.device",
    "--precision": "--run.precision",
    "--workers": "--data.workers",
}
"""Short names of settings of a run; `--epochs`, `--steps` and `--seed` are short already.

A flag that a verb declares itself takes precedence, such as `--rho A,B` of `tune`."""


@dataclass(frozen=True)
class Kind:
    """A type of value that a flag takes."""

    placeholder: str
    """Stands for the value in help texts; empty for a switch, which takes none."""
    wanted: str = ""
    """Names the value where it is missing, as in `--jobs needs a number`."""
    convert: Callable[[str, str], Any] = lambda flag, text: text
    """Turns flag and text into the value; raises ValueError for a text that does not fit."""
    alone: Any = None
    """Value of a flag that stands without one; None refuses that."""


@dataclass(frozen=True)
class Flag:
    """A flag of a verb's own, beside those of the settings."""

    name: str
    """Its spelling, such as `--jobs`."""
    kind: Kind
    help: str
    """Plain text; `flag_lines` adds the default."""
    default: Any = None
    """Value where the flag is absent; of a switch, always False."""
    shown: str = ""
    """The default as help texts show it; empty shows `default` itself."""
    short: str = ""
    """A second spelling, such as `-o`."""
    collects: bool = False
    """Returns a tuple of all values of a repeated flag, where others return the last."""


@dataclass(frozen=True)
class Line:
    """The arguments of a verb, taken apart."""

    values: dict[str, Any]
    """The value of each declared flag by name, given or not."""
    words: tuple[str, ...]
    """Arguments that are neither flags nor their values, in order."""
    settings: tuple[str, ...]
    """Flags that the verb does not declare, with their values, in order."""

    def __getitem__(self, name: str) -> Any:
        """Return the value of a declared flag."""
        return self.values[name]


# --- kinds of values


def whole(flag: str, text: str, least: int = 1) -> int:
    """Convert text to a whole number.

    Raises:
        ValueError: the text is no whole number, or one below `least`."""
    if not (text.isdecimal() and int(text) >= least):
        raise ValueError(f"{flag} {text} is out of range; give a whole number, {least} or more")
    return int(text)


def path(placeholder: str) -> Kind:
    """Return the kind of a flag that takes a path."""
    return Kind(placeholder, "a path", lambda flag, text: Path(text))


def one_of(placeholder: str, choices: Iterable[str]) -> Kind:
    """Return the kind of a flag that takes one of a few names."""
    allowed = f"one of: {', '.join(choices)}"

    def convert(flag: str, text: str) -> str:
        if text not in choices:
            raise ValueError(f"{flag} {text} is unknown; give {allowed}")
        return text

    return Kind(placeholder, allowed, convert)


def names(example: str) -> Kind:
    """Return the kind of a flag that takes names with commas between them."""
    convert = lambda flag, text: tuple(filter(None, text.split(",")))  # noqa: E731
    return Kind("A,B,...", f"names, such as {example}", convert)


SWITCH = Kind("")
COUNT = Kind("N", "a number", whole)
DIR = path("DIR")
FILE = path("FILE")
NAME = Kind("NAME", "a name")
TRUST = Flag(
    trust.FLAG,
    SWITCH,
    "import the module:function that a run or a config names; it runs their code",
)


# --- reading


def read(
    args: Sequence[str],
    flags: Sequence[Flag],
    verb: str,
    *,
    settings: bool = False,
    aliases: Mapping[str, str] | None = None,
) -> Line:
    """Take a verb's own flags off its arguments.

    Args:
        args: `--flag value` and `--flag=value` mean the same, and so do `--a-b` and `--a_b`.
        verb: for messages, such as `train`.
        settings: keep flags that are not declared, for `samovar.cli.settings`; otherwise they are
            unknown.
        aliases: full names of settings by short name, such as `ALIASES`.

    Raises:
        ValueError: one line about the first flag that is unknown, lacks its value, takes none or
            has one that does not fit."""
    spelled = {each: flag for flag in flags for each in (flag.name, flag.short) if each}
    found: dict[str, list[Any]] = {flag.name: [] for flag in flags}
    words: list[str] = []
    others: list[str] = []
    # A plain word behind a flag of the settings is its value: only tyro knows how many it takes.
    target = words
    left = list(args)
    while left:
        arg = left.pop(0)
        if not is_flag(arg):
            target.append(arg)
        elif flag := spelled.get(spelling(arg)):
            found[flag.name].append(_value(flag, arg, left))
            target = words
        elif settings and arg != "--":
            others.append(_full(arg, aliases or {}))
            target = others
        else:
            raise ValueError(unknown_flag(arg, spelled, verb))
    values = {
        flag.name: tuple(given) if flag.collects else given[-1] if given else _absent(flag)
        for flag, given in zip(flags, found.values(), strict=True)
    }
    return Line(values, tuple(words), tuple(others))


def is_flag(arg: str) -> bool:
    """Return whether an argument is a flag; `-` alone and negative numbers are values."""
    return bool(re.match(r"-[^\d.]", arg))


def spelling(arg: str) -> str:
    """Return a flag as it is declared: without `=value`, with dashes for underscores."""
    return arg.partition("=")[0].replace("_", "-")


def unknown_flag(arg: str, known: Iterable[str], verb: str) -> str:
    """Return the message about a flag that is not among those known."""
    if arg == "--":
        return f"-- has no meaning here; leave it out, see `samovar {verb} --help`"
    hint = suggest(spelling(arg), known, count=1, instead=f"see `samovar {verb} --help`")
    return f"unknown flag {arg.partition('=')[0]}; {hint}"


def without(args: Sequence[str], name: str) -> list[str]:
    """Return arguments without a flag and its value."""
    kept, left = [], list(args)
    while left:
        arg = left.pop(0)
        if spelling(arg) != name:
            kept.append(arg)
        elif "=" not in arg and left:
            left.pop(0)
    return kept


def _value(flag: Flag, arg: str, left: list[str]) -> Any:
    """Return the value of a flag, which may be the next of the arguments left."""
    given, equals, text = arg.partition("=")
    if flag.kind is SWITCH:
        if equals:
            raise ValueError(f"{given} takes no value, not even {text!r}; give {given} alone")
        return True
    if not equals:
        if not left or is_flag(left[0]):
            if flag.kind.alone is not None:
                return flag.kind.alone
            raise ValueError(f"{given} needs {flag.kind.wanted}")
        text = left.pop(0)
    return flag.kind.convert(flag.name, text)


def _full(arg: str, aliases: Mapping[str, str]) -> str:
    """Return a flag with its full name in place of a short one."""
    _, equals, text = arg.partition("=")
    full = aliases.get(spelling(arg))
    return f"{full}{equals}{text}" if full else arg


def _absent(flag: Flag) -> Any:
    return False if flag.kind is SWITCH else flag.default


# --- help texts


def flag_lines(flags: Iterable[Flag]) -> str:
    """Return an aligned line per flag, with its default, for a help text."""
    rows = {}
    for flag in flags:
        spellings = f"{flag.short}, {flag.name}" if flag.short else flag.name
        default = flag.shown or ("" if flag.default is None else str(flag.default))
        rows[f"{spellings} {flag.kind.placeholder}".rstrip()] = flag.help + (
            f" (default: {default})" if default else ""
        )
    return lines(rows)


def lines(rows: dict[str, str]) -> str:
    """Return two aligned columns, the second wrapped at `WIDTH`, for a help text."""
    width = max(map(len, rows)) + 2
    return "\n".join(
        textwrap.fill(
            text,
            WIDTH,
            initial_indent=f"  {key:<{width}}",
            subsequent_indent=" " * (width + 2),
            break_on_hyphens=False,
        )
        for key, text in rows.items()
    )
