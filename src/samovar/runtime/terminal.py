"""Write to the terminal: names of others stay text, and a reader that has left ends no training.

A name of a file, class or run may hold characters that move the cursor, colour the screen or turn
the direction of writing. Inside `output` they are printed as escapes such as `\\x1b`. Characters
that the terminal's encoding lacks are replaced, such as ± by +-."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from samovar.words import visible

if TYPE_CHECKING:
    from rich.console import Console

_ERRORS = "samovar.plain"
_PLAIN = {"±": "+-", "…": "...", "–": "-", "−": "-", "×": "x", "∞": "inf", "≥": ">=", "≤": "<="}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks, as a handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in lost), (
        error.end
    )


codecs.register_error(_ERRORS, _plain)


class Stream:
    """A text stream whose reader may leave."""

    def __init__(self, raw: IO[str], *, goes_on: bool, escapes: bool = True) -> None:
        """Wrap a stream.

        Args:
            goes_on: keep silent where the reader of a pipe has left, in place of an error.
            escapes: write control characters as text."""
        self._raw, self._goes_on, self._escapes = raw, goes_on, escapes

    def write(self, text: str) -> int:
        """Write text and return its length."""
        shown = visible(text, keep="\n\t") if self._escapes else text
        self._guarded(lambda: self._raw.write(shown))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        self._guarded(self._raw.flush)

    def for_rich(self) -> Stream:
        """Return the same stream for rich, whose own control characters have to arrive."""
        return Stream(self._raw, goes_on=self._goes_on, escapes=False)

    def _guarded(self, act: Any) -> None:
        try:
            act()
        except BrokenPipeError:
            if not self._goes_on:
                raise
            to_nowhere(self._raw)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def to_nowhere(stream: Any) -> None:
    """Let a stream whose reader has left write to nowhere, also what it still holds."""
    # a stream in memory has no number
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextlib.contextmanager
def output(*, goes_on: bool) -> Iterator[None]:
    """Make standard output and error safe inside, as this module says.

    Args:
        goes_on: the work goes on where the reader of a pipe has left; else `BrokenPipeError`."""
    before = sys.stdout, sys.stderr
    errors = []
    for stream in before:
        errors.append(getattr(stream, "errors", None))
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)
    streams: Any = [Stream(stream, goes_on=goes_on) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream, kept in zip(before, errors, strict=True):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors=kept)


def console(*, stderr: bool = False, columns: int | None = None) -> Console:
    """Return a console of rich that takes text as text, without markup and control characters.

    Args:
        stderr: write to standard error.
        columns: width where the output is no terminal; None leaves it to rich."""
    from rich.console import Console

    class Safe(Console):
        """Escapes every text that it renders."""

        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(visible(text, keep="\n\t"), **options)

    stream: Any = sys.stderr if stderr else sys.stdout
    width = None if columns is None or stream.isatty() else columns
    file: Any = stream.for_rich() if isinstance(stream, Stream) else stream
    return Safe(file=file, width=width, markup=False)
