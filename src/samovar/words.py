"""Words that every room says the same way: a suggestion for a misspelt name, a span of time."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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
