"""Handle SIGINT and SIGTERM inside a `with` block, and restore the earlier handlers after it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
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


PATIENCE = 4.0
"""Seconds that a command has to end by itself after a second signal of one kind."""


@contextmanager
def ended_by_second() -> Iterator[None]:
    """End the process a few seconds after a second signal of one kind, whatever it waits for.

    Python calls handlers between its own instructions only. A thread that the system tells of each
    signal also sees those that come while the main one waits for a disk, a lock or a library.
    Outside of the main thread nothing is watched."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(reader, over), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()


def _watch(reader: int, over: threading.Event) -> None:
    """Read the numbers of signals, one a byte, until the other end is closed."""
    counts = Counter[int]()
    with open(reader, "rb", buffering=0) as numbers:
        while got := numbers.read(64):
            counts.update(got)
            again = [signum for signum in STOPPING if counts[signum] > 1]
            if again and not over.wait(PATIENCE):
                _end(again[0])


def _end(signum: int) -> None:
    """End this process and its workers at once."""
    os.write(2, b"samovar: ended by the second signal; what was saved before it is kept\n")
    for process in multiprocessing.active_children():
        process.kill()
    os._exit(128 + signum)
