"""Say in one line why a command did not end well."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from samovar.cli.named_run import run_path
from samovar.runtime import lock
from samovar.words import visible

FILE = "error.txt"
"""File of a run's folder with the traceback of what ended a command."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_INTERRUPTED = 130
_LONGEST = 4000
"""Most characters of a line; a message may hold a value of any length."""


def tell(error: BaseException, args: Sequence[str]) -> int:
    """Print a line about what ended a command, and return the exit code.

    Args:
        error: what was raised.
        args: the command line."""
    rank = os.environ.get("RANK", "0")
    line, code = _line(error, args, rank)
    speaker = "samovar" if rank == "0" else f"samovar [rank {rank}]"
    shown = visible(line)
    if len(shown) > _LONGEST:
        shown = f"{shown[: _LONGEST // 2]}…{shown[-_LONGEST // 2 :]}"
    print(f"{speaker}: {shown}", file=sys.stderr)
    return code


def _line(error: BaseException, args: Sequence[str], rank: str) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", _INTERRUPTED
    if isinstance(error, (ValueError, TypeError)):
        return str(error), 2
    if isinstance(error, OSError):
        return _of_system(error, args), 1
    kind = type(error).__name__
    reason = next(iter(str(error).splitlines()), "") or "no reason is given"
    if isinstance(error, MemoryError):
        kind, reason = "MemoryError", "the memory is full"
    where = _keep_traceback(error, args, rank)
    kept = f"the traceback is in {where}; please open an issue with it" if where else ""
    return f"stopped by a fault of its own, {kind}: {reason}" + (kept and f"; {kept}"), 1


def _of_system(error: OSError, args: Sequence[str]) -> str:
    """Return the line about an error of the file system."""
    place = f" {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _FULL:
        todo = "make room"
    elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
        todo = "give a folder that can be written to, or change its permissions"
    elif isinstance(error, FileNotFoundError):
        todo = "bring it back or give another path"
    else:
        todo = "mend that"
    again = shlex.join(["samovar", *args])
    return f"{reason}{place and ':'}{place}; what was finished is kept; {todo}, then {again}"


def _keep_traceback(error: BaseException, args: Sequence[str], rank: str) -> Path | None:
    """Write the traceback into the run's folder, else into a temporary file; return its path."""
    command = shlex.join(["samovar", *args])
    text = f"{command}\n\n{''.join(traceback.format_exception(error))}"
    name = FILE if rank == "0" else f"error-rank{rank}.txt"
    for folder in [*_runs(args), Path(tempfile.gettempdir())]:
        path = folder / name
        try:
            if folder == Path(tempfile.gettempdir()):
                handle, made = tempfile.mkstemp(suffix=".txt", prefix="samovar-error-")
                os.close(handle)
                path = Path(made)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return path
        except OSError:
            continue
    return None


def _runs(args: Sequence[str]) -> list[Path]:
    """Return the folder of the run that a command worked on; none where that is not known."""
    named = [Path(run_path(word)) for word in args[1:] if not word.startswith("-")]
    return [folder for folder in (lock.last_folder(), *named) if folder and _is_run(folder)][:1]


def _is_run(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file()
    except OSError:
        return False
