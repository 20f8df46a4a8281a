"""What every room says and reads the same way: suggestions, spans of time, and what others wrote.

Names and files of other people are text without control characters, cells that are no formulas,
and regular files of bearable size."""

from __future__ import annotations

import difflib
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters, zero-width characters, marks of writing direction, unpaired surrogates.

A name of somebody else's data must not reorder or break the text around it."""
MOST_BYTES = 2**30
"""Largest file that is read whole."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters by which a spreadsheet takes a cell for a formula, which may run programs."""


def suggest(
    word: str, known: Iterable[str], *, instead: str = "", count: int = 2, cutoff: float = 0.5
) -> str:
    """Suggest the closest valid words, such as `did you mean hessian?`.

    Args:
        word: the misspelt one.
        known: the valid words.
        instead: the advice where no valid word is close; empty lists all valid words.
        count: the most suggestions.
        cutoff: smallest similarity of a suggestion, 0 to 1."""
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(word, known, n=count, cutoff=cutoff)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return instead or f"give one of: {', '.join(known)}"


def duration(seconds: float) -> str:
    """Format seconds as `0.4 s`, `41 s`, `12 min`, `3 h 20 min` or `12 days`."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 100:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours:
        return f"{minutes} min"
    if hours < 100:
        return f"{hours} h {minutes} min"
    return f"{seconds / 86_400:,.0f} days"


@contextmanager
def in_words_of(flag: str) -> Iterator[None]:
    """Put a flag before the line of each ValueError inside, which then says what was given."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{flag} {error}") from error


def visible(text: Any, keep: str = "") -> str:
    r"""Return text whose control characters and marks of direction are escapes such as \x1b.

    Args:
        text: anything; its text is taken.
        keep: characters to leave as they are, such as line feeds; without, the text is one line."""

    def escaped(found: re.Match[str]) -> str:
        sign = found[0]
        return sign if sign in keep else sign.encode("unicode_escape", "surrogatepass").decode()

    return UNSEEN.sub(escaped, str(text))


def csv_cell(value: Any) -> Any:
    """Return the value of a cell of CSV, where no spreadsheet takes text for a formula.

    Such text begins with an apostrophe, which spreadsheets do not show. Numbers stay as they are,
    and so does text that is a number. Control characters are escapes, as in `visible`, since a
    carriage return begins a new cell for some readers."""
    if not isinstance(value, str):
        return value
    shown = visible(value, keep="\n\t")
    if not value.startswith(_FORMULA):
        return shown
    try:
        float(value)
    except ValueError:
        return f"'{shown}"
    return value


def read_regular(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file.

    A pipe or a socket blocks whoever opens it until somebody writes, and a device may never end.

    Args:
        path: the file, or a link to it.
        most: largest size in bytes.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger."""
    # a pipe opens at once in this mode, so that its kind is known before anything waits for it
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:  # noqa: PTH123 (there is no Path of an open file)
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is no regular file")
        if found.st_size > most:
            raise OSError(f"it has {found.st_size:,} bytes, more than {most:,}")
        return file.read()
