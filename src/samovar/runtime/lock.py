"""Locks of folders: one process at a time trains a run, measures it, or tunes in a folder.

A lock is a file that the system unlocks when its process ends, however it ends. The file also names
its owner: host, process and time. On file systems without locks, and on Windows, this name alone
keeps others out, as long as its process lives."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from samovar.runtime import heartbeat

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Work = Literal["train", "measure", "study"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that have no locks."""
_POLL = 0.5
"""Seconds between two tries of a process that waits."""
_last: list[Path] = []
"""The folder that this process locked last."""
_DOES = {"train": "trained", "measure": "measured", "study": "worked on"}


class Locked(ValueError):
    """Another process has the lock."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    host: str
    pid: int
    since: str
    """Time in UTC."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def file_of(folder: Path, work: Work = "train") -> Path:
    """Return the path of a lock's file in a run folder."""
    return folder / f"{work}.lock"


@contextlib.contextmanager
def locked(folder: Path, work: Work = "train", *, wait: bool = False) -> Iterator[None]:
    """Hold a lock of a run folder inside.

    Args:
        wait: until the other process has ended, with a line that says so.

    Raises:
        Locked: another process holds it; names it. Not under `wait`."""
    told = False
    while True:
        # opened anew for each try: the file of an owner that has ended may have been replaced
        with file_of(folder, work).open("a+", encoding="utf-8") as file:
            if _take(file):
                _name_owner(file)
                _last[:] = [folder]
                try:
                    yield
                finally:
                    file.truncate(0)
                return
            owner = _owner(file)
        by = str(owner) if owner else "another process"
        if not wait:
            raise Locked(
                f"{folder} is being {_DOES[work]} by {by}; "
                f"wait for its end{'' if work == 'study' else ' (--wait)'} or stop it"
            )
        if not told:
            print(f"samovar: waiting for {by}, which has {folder}", file=sys.stderr, flush=True)
            told = True
        with heartbeat.doing(f"waiting for {by}"):
            time.sleep(_POLL)


def last_folder() -> Path | None:
    """Return the folder that this process has locked last; None before the first."""
    return _last[0] if _last else None


def forget_last() -> None:
    """Forget the folder that was locked last, as a new command begins."""
    _last.clear()


def is_locked(folder: Path, work: Work = "train") -> bool:
    """Return whether a process has a lock of the folder."""
    if not file_of(folder, work).is_file():
        return False
    try:
        with locked(folder, work):
            return False
    except Locked:
        return True


def _take(file: IO[str]) -> bool:
    """Return whether the lock of an open file is this process's now."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
    owner = _owner(file)
    # a process of another host cannot be asked for; one of this host that has ended left the name
    return owner is None or (owner.host == socket.gethostname() and not _lives(owner.pid))


def _name_owner(file: IO[str]) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    file.truncate(0)
    file.write(json.dumps(asdict(Owner(socket.gethostname(), os.getpid(), now))) + "\n")
    file.flush()


def _owner(file: IO[str]) -> Owner | None:
    """Return the process that a lock's file names; None if it names none, or is being written."""
    file.seek(0)
    try:
        return Owner(**json.loads(file.read()))
    except (ValueError, TypeError):
        return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
