"""The rows of a landscape's grid, computed by one process, by several on a CPU, or by ranks.

`runtime.workers`, the process pool of training jobs, does not fit here. Its parent only waits,
whereas here the parent computes rows too, and decides after the first one whether other processes
pay; a model that cannot be sent to them is computed by the parent alone; the rows of a worker that
was killed are computed by the others; and a library call must work outside the main thread, where
no signal handler can be set.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from samovar.config import cores
from samovar.curvature.graphs import free_bytes
from samovar.measure.grid import Execution, GridRow, LandscapeGrid, fill, torch_threads
from samovar.measure.grid_rows import GridRows

WORTH_SECONDS = 20.0
"""Work of one process below which others do not pay: their imports take some 5 to 10 s."""
JOIN_SECONDS = 1.0
"""Longest wait for a worker between two calls of `progress`."""
COPIES = 6
"""Copies of the weights that a process needs at most: its own, that at the centre, that of a row,
two directions, and a spare one."""


def compute(grid: LandscapeGrid, how: Execution) -> list[GridRow]:
    """Compute the rows of a grid, in order; the model is in eval mode inside and restored on exit.

    Raises:
        ValueError: `how` asks for processes where there can be none, the loss function returns no
            loss, or another process failed."""
    most = _num_processes(how, grid)
    if how.distributed:
        return _compute_by_ranks(grid, how)
    with ExitStack() as stack:
        folder = how.folder
        if folder is None and most > 1:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = GridRows(folder, grid).open()
        if rows.missing():
            _compute_by_processes(grid, rows, how, most)
        return rows.in_order()


def _num_processes(how: Execution, grid: LandscapeGrid) -> int:
    """Return the most processes that may share the rows."""
    alone = how.distributed or grid.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if how.processes > 1 and alone:
        raise ValueError(
            f"processes={how.processes} works only on a CPU, outside of autocast and of a process "
            "group; give processes=1, and on GPUs start one process each with torchrun"
        )
    if how.processes or alone:
        return how.processes or 1
    copies = COPIES * sum(param.nbytes for param in grid.model.parameters())
    return max(1, min(cores(), free_bytes(grid.device) // max(1, copies)))


def _compute_by_processes(grid: LandscapeGrid, rows: GridRows, how: Execution, most: int) -> None:
    """Compute the missing rows in this process, and in workers where these pay."""
    todo = rows.missing()
    alone = how.processes == 1 or grid.device.type != "cpu"
    with torch_threads(None if alone else 1) as threads, _Workers(rows, threads) as workers:

        def numbers() -> Iterator[int]:
            if how.processes > 1:
                workers.start(grid, todo, min(most, len(todo)) - 1)
            start = time.perf_counter()
            for done, number in enumerate(_take(todo, workers.taken), start=1):
                yield number
                # the first row has been timed: the rest of the grid takes this process `left`
                left = (time.perf_counter() - start) * (len(todo) - 1)
                if done == 1 and how.processes == 0 and left > WORTH_SECONDS:
                    workers.start(grid, todo, min(most, len(todo) - 1) - 1)
                workers.ended()
                _report(how, rows)

        fill(grid, numbers(), rows.keep)
        while rows.missing() and not workers.ended(JOIN_SECONDS):
            _report(how, rows)
        fill(grid, rows.missing(), rows.keep)  # none, unless a worker was killed from outside
        _report(how, rows)


def _report(how: Execution, rows: GridRows) -> None:
    if how.progress:
        how.progress(len(rows.found), len(rows.grid.rows))


# --- worker processes


def _take(todo: Sequence[int], taken: Any) -> Iterator[int]:
    """Yield the next row that no process has taken, until there is none."""
    while True:
        with taken.get_lock():
            place = taken.value
            taken.value += 1
        if place >= len(todo):
            return
        yield todo[place]


class _Workers:
    """Worker processes: none until `start`, and terminated on exit of the `with` block."""

    def __init__(self, rows: GridRows, threads: int) -> None:
        self.rows, self.threads = rows, threads
        self.taken = multiprocessing.get_context("spawn").Value("q", 0)
        """How many of the missing rows any process has taken."""
        self._context: ProcessContext | None = None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._context.processes if self._context else ():
            process.terminate()
            process.join()
        if self.rows.folder:
            (self.rows.folder / "grid.pt").unlink(missing_ok=True)

    def start(self, grid: LandscapeGrid, todo: list[int], count: int) -> None:
        """Start `count` workers, or none, with a line on stderr, if the grid cannot be sent."""
        if count < 1:
            return
        assert self.rows.folder is not None
        path = self.rows.folder / "grid.pt"
        try:
            torch.save(grid, path)  # a file and not a pipe: all who map it share its pages
        except Exception as error:
            _print(
                f"the grid cannot be sent to other processes ({_last_line(error)}); "
                "this process computes all of it"
            )
            torch.set_num_threads(self.threads)
            return
        with _interrupts_ignored():
            args = (path, todo, self.taken, torch.get_default_dtype())
            self._context = start_processes(_work, args, count, join=False, daemon=True)  # type: ignore[no-untyped-call]

    def ended(self, seconds: float = 0.0) -> bool:
        """Read the rows that workers have written; return True if no worker is left.

        Args:
            seconds: longest wait for a worker to end.

        Raises:
            ValueError: a worker has failed."""
        if self._context is None:
            return True
        try:
            done = bool(self._context.join(seconds))
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise ValueError(
                f"a process that computes rows failed: {_last_line(error)}; finished rows are kept "
                "in the folder, if one was given. Give processes=1 to do without other processes"
            ) from error
        self.rows.read()
        return done


def _work(_: int, path: Path, todo: list[int], taken: Any, dtype: torch.dtype) -> None:
    """Run a worker: write rows into files until all are taken."""
    # ctrl-C, or the end of the parent: there is nothing to save, and no traceback to print
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    try:
        # the parent has just written this file, so unpickling it is safe
        grid: LandscapeGrid = torch.load(path, mmap=True, weights_only=False)
    except Exception as error:
        _print(
            f"a new process cannot read the grid ({_last_line(error)}); the others go on without it"
        )
        return
    parent = multiprocessing.parent_process()
    numbers = takewhile(lambda _: parent is None or parent.is_alive(), _take(todo, taken))
    fill(grid, numbers, GridRows(path.parent, grid).keep)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore ctrl-C inside: processes inherit that while they start, and print no traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _last_line(error: BaseException) -> str:
    """Return the last line of an error, which is the cause where another process raised it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _print(message: str) -> None:
    print(f"samovar: {message}", file=sys.stderr)


# --- ranks of a process group


def _compute_by_ranks(grid: LandscapeGrid, how: Execution) -> list[GridRow]:
    """Compute the rows by the processes of a group; rank 0 alone reads the files.

    Finished rows travel over the group, so the ranks need no common file system."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    rows, failure = GridRows(how.folder, grid), None
    known = [rows.open().found if rank == 0 else {}]
    dist.broadcast_object_list(known, src=0)
    rows.found = known[0]
    mine = rows.missing()[rank::world_size]

    def keep(number: int, row: GridRow) -> None:
        rows.keep(number, row)
        _report(how, rows)

    try:
        fill(grid, mine, keep)
    except Exception as error:
        failure = error
    # a rank that has failed still takes part here, else the others would wait for it forever
    answers: list[Any] = [None] * world_size
    finished = {number: rows.found[number] for number in mine if number in rows.found}
    dist.all_gather_object(answers, (finished, failure and _last_line(failure)))
    if failure:
        raise failure
    for other, (found, complaint) in enumerate(answers):
        if complaint:
            raise ValueError(f"rank {other} failed: {complaint}; finished rows are kept")
        rows.found |= found
    return rows.in_order()
