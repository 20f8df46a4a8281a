"""Lock of a run folder: two processes must not train one run."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that have no locks."""

FILE = "train.lock"
"""Locked file in the run folder. The system unlocks it when the process ends, however it ends."""


class Locked(ValueError):
    """Another process trains the run."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder inside.

    File systems without locks grant it to everybody.

    Raises:
        Locked: another process holds it."""
    if fcntl is None:
        yield
        return
    with (folder / FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(
                f"{folder} is being trained by another process; wait for its end or stop it"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


def is_locked(folder: Path) -> bool:
    """Return whether a process trains the run."""
    if not (folder / FILE).is_file():
        return False
    try:
        with locked(folder):
            return False
    except Locked:
        return True
