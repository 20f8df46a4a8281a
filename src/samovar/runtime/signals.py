"""Handle SIGINT and SIGTERM inside a `with` block, and restore the earlier handlers after it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a process to end: ctrl-C, and what `kill` and job schedulers send."""


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Call `handler` on SIGINT and SIGTERM inside; restore the earlier handlers on exit."""
    earlier = {signum: signal.getsignal(signum) for signum in STOPPING}
    try:
        for signum in STOPPING:
            signal.signal(signum, handler)
        yield
    finally:
        for signum, before in earlier.items():
            signal.signal(signum, before)


@contextmanager
def ignored_sigint() -> Iterator[None]:
    """Ignore SIGINT inside, and in processes that are started inside; main thread only."""
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


@dataclass
class StopRequest:
    """A request to stop at the next good moment."""

    signum: int = 0
    """Number of the signal that made the request; 0 while there is none."""


@contextmanager
def noted() -> Iterator[StopRequest]:
    """Yield a request that the first SIGINT or SIGTERM fills in, in place of acting at once."""
    request = StopRequest()
    earlier = {int(signum): signal.getsignal(signum) for signum in STOPPING}

    def note(signum: int, frame: FrameType | None) -> None:
        request.signum = signum
        signal.signal(signum, earlier[signum])  # an impatient second ctrl-C acts at once

    with handled_by(note):
        yield request
