"""Heartbeat: a command that has printed nothing for ten seconds says what it is doing.

Code that may take long marks its work by `doing` or `counted`, which cost nothing and print
nothing. The command line runs inside `beating`, whose thread prints a line whenever no line was
printed for a period. Nothing in this file needs torch."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from samovar.words import duration

VARIABLE = "SAMOVAR_HEARTBEAT"
"""Environment variable with the period in seconds; 0 switches the heartbeat off."""
PERIOD = 9.0
"""Seconds without a line after which one is printed, unless the environment says otherwise.

With the start of the process and a busy machine no silence is then longer than ten seconds."""

T = TypeVar("T")


@dataclass(eq=False)
class Activity:
    """Something that a command is doing, and how far it is."""

    what: str
    total: int = 0
    """Number of units of the whole; 0 where it is not known."""
    unit: str = ""
    done: int = 0
    first: int = 0
    """Units that were done before this command began, and took none of its time."""
    since: float = field(default_factory=time.monotonic)

    def advance(self, count: int = 1) -> None:
        """Note that so many more units are done."""
        self.done += count

    def seconds_left(self) -> float:
        """Estimate the seconds to the end from the pace so far; NaN where it cannot be known."""
        done = self.done - self.first
        if done <= 0 or not self.total:
            return float("nan")
        return (time.monotonic() - self.since) / done * (self.total - self.done)

    def __str__(self) -> str:
        """Describe the activity, such as `val images: 1,024 of 5,000`."""
        if not self.total:
            return self.what
        unit = f" {self.unit}" if self.unit else ""
        left = self.seconds_left()
        eta = f", ETA {duration(left)}" if left == left else ""
        return f"{self.what}: {self.done:,} of {self.total:,}{unit}{eta}"


_current: list[Activity] = []
"""What is being done, the outermost first."""
_last_line = time.monotonic()
"""Time of the last line that was printed."""


@contextlib.contextmanager
def doing(what: str, total: int = 0, unit: str = "", done: int = 0) -> Iterator[Activity]:
    """Mark the work inside; yield the activity, to count what is done.

    Args:
        what: the work in a few words, such as `reading the images`.
        total: units of the whole, where their number is known.
        unit: what is counted, such as `images`.
        done: units done before."""
    activity = Activity(what, total, unit, done, done)
    _current.append(activity)
    try:
        yield activity
    finally:
        # by identity: generators may be closed in any order
        _current.remove(activity)


def counted(items: Iterable[T], what: str, total: int, unit: str = "") -> Iterator[T]:
    """Yield the items, and count them as done."""
    with doing(what, total, unit) as activity:
        for item in items:
            yield item
            activity.advance()


def said() -> None:
    """Note that a line was printed just now."""
    global _last_line
    _last_line = time.monotonic()


def silence() -> float:
    """Return the seconds since the last line."""
    return time.monotonic() - _last_line


def period() -> float:
    """Return the seconds without a line after which one is printed; 0 for never."""
    try:
        return max(0.0, float(os.environ.get(VARIABLE, PERIOD)))
    except ValueError:
        raise ValueError(
            f"{VARIABLE}={os.environ[VARIABLE]} is no number; give seconds, 0 for no heartbeat"
        ) from None


@contextlib.contextmanager
def beating(command: str) -> Iterator[None]:
    """Print a line on stderr whenever the work inside has printed none for a period.

    Of several ranks only the main one prints.

    Args:
        command: what is done where nothing more is known, such as `samovar train`."""
    every = period()
    if not every or os.environ.get("RANK", "0") != "0":
        yield
        return
    over = threading.Event()
    begun = time.monotonic()

    def beat() -> None:
        while not over.wait(max(0.01, min(every, every - silence()))):
            if silence() >= every:
                work = ", ".join(map(str, list(_current))) or command
                # one write, so that no other line comes between a line and its end
                sys.stderr.write(f"... {work}, {duration(time.monotonic() - begun)} so far\n")
                sys.stderr.flush()
                said()

    said()
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
