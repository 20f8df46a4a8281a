"""Flags off a command line."""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Iterable, Sequence
from typing import TypeVar

from samovar import config as configs
from samovar.config import Config, CorruptConfig, MeasureConfig

Settings = TypeVar("Settings", Config, MeasureConfig, CorruptConfig)


def parse_flags(
    base: Settings, args: list[str], title: str, others: Sequence[str] = ()
) -> Settings:
    """`base` overridden by flags; `others` are flags of the command that were taken off before.

    Raises:
        ValueError: one line on the first flag that is unknown or does not fit."""
    import tyro

    known: list[str] = _known_flags(base)
    words = [*known, *others]
    for arg in args:
        flag = arg.split("=")[0].replace("_", "-")
        if arg.startswith("--") and flag not in known and flag != "--help":
            raise ValueError(f"unknown flag {arg.split('=')[0]}; {nearest(flag, words)[:200]}")
    if "-h" in args or "--help" in args:
        tyro.cli(type(base), default=base, args=["--help"], prog=title)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
            return tyro.cli(type(base), default=base, args=args, prog=title)
    except SystemExit:
        raise ValueError(f"{_first_sentence(complaint.getvalue())}; see `{title} --help`") from None


def _known_flags(base: Config | MeasureConfig | CorruptConfig) -> list[str]:
    known = []
    for name, value in configs.flatten(base).items():
        if name == "recipe":
            continue
        dashed = name.replace("_", "-")
        known.append(f"--{dashed}")
        if isinstance(value, bool):
            head, _, last = dashed.rpartition(".")
            known.append(f"--{head}.no-{last}" if head else f"--no-{last}")
    return known


def _first_sentence(box: str) -> str:
    """The message in the box that tyro draws around an error, whose sections are parted by
    rules."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ \t")
        if text and set(text) <= set("─-"):
            sections.append([])
        elif text and text[0] not in "╭╰":
            sections[-1].append(text)
    first = (
        0 if "╭" in box else min(1, len(sections) - 1)
    )  # without a frame the title is a section of its own
    return " ".join(sections[first]).rstrip(".") or box.strip()


def take(args: list[str], flag: str, what: str = "a path") -> str | None:
    """Remove `flag VALUE` or `flag=VALUE` from the arguments and return the value."""
    for index, arg in enumerate(args):
        if arg.startswith(f"{flag}="):
            del args[index]
            return arg.partition("=")[2]
        if arg == flag:
            if index + 1 == len(args):
                raise ValueError(f"{flag} needs {what}")
            _, value = args.pop(index), args.pop(index)
            return value
    return None


def take_last(args: list[str], flag: str, what: str) -> str | None:
    """As `take`, of a flag that is given again the last, as with all other flags."""
    last = None
    while (text := take(args, flag, what)) is not None:
        last = text
    return last


def peek(args: list[str], flag: str) -> str | None:
    """The value that `take` would take."""
    return take(list(args), flag)


def count(args: list[str], flag: str) -> int:
    """Take a whole number, 1 without the flag."""
    text = take_last(args, flag, "a number") or "1"
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"{flag} {text} is out of range; give a whole number, 1 or more")
    return int(text)


def nearest(word: str, words: Iterable[str]) -> str:
    """Advice on a word that is none of `words`."""
    words = list(words)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"give one of: {', '.join(words)}"
