"""The loss on a grid of points around a model's weights: row by row in place, by one process or
several.

A row is kept in a file as soon as it is there, so an interrupted grid goes on where it was. Rows do
not depend on who
computes them: workers run on one thread each, and so does this process while it shares the work."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from samovar.config import cores
from samovar.curvature.borrow import seed
from samovar.curvature.graphs import free_bytes
from samovar.curvature.inputs import fingerprint, num_examples
from samovar.restore import evaluating
from samovar.runs.records import replace_text
from samovar.runtime import keep_freed_memory

Direction = Mapping[str, Tensor]
"""A step for parameters and buffers, by name; those without a name in it stand still."""
PointLoss = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Tensor]]
"""Maps (model, batch) to the mean loss [] over the batch, or to that and which examples are right,
bool [B]."""
Row = npt.NDArray[np.float64]
"""[2, T]: loss and share of right answers, nan where the loss does not tell it."""

WORTH_SECONDS = (
    20.0  # of one process's work, below which others, whose imports take some 5 to 10 s, do not pay
)
JOIN_SECONDS = 1.0
# of the weights, that a process needs at most: its own, the kept, a row's, two directions, and a
# spare
COPIES = 6


@dataclass(frozen=True)
class Execution:
    """Who computes the rows, and where they are kept."""

    folder: Path | None = None
    """Rows found here, of the same weights, images and points, are not computed again; new ones are
    written as they finish. One folder per loss. None keeps nothing."""
    processes: int = 1
    """On a CPU: this process and so many less one new ones, a thread each. 1 leaves the number of
    threads as it is, so that the last bits may differ; 0 is one a core, if the rest of the grid,
    judged by its first row, would take this process more than 20 s. New processes import the main
    module, so a script needs `if __name__ == "__main__":`."""
    distributed: bool = False
    """The processes of the default group share the rows, and all get all of them; all must call
    together."""
    progress: Callable[[int, int], None] | None = None
    """Called with the rows that are done and their total, whenever this process has finished
    one."""


@dataclass(frozen=True)
class Offsets:
    """Weights w + s * outer + t * inner."""

    outer: Direction
    inner: Direction = field(default_factory=dict)

    def write(self, name: str, kept: Tensor, s: float, out: Tensor) -> None:
        """Write what a tensor that `outer` moves is at (s, 0)."""
        torch.add(kept, self.outer[name], alpha=s, out=out)


class Segment(Offsets):
    """Weights (1 - s) w + s * outer, to the bit at both ends; integers are those of the nearer
    end."""

    def write(self, name: str, kept: Tensor, s: float, out: Tensor) -> None:
        """Write what a tensor is at s."""
        end = self.outer[name]
        if s == 1 or not end.is_floating_point():
            out.copy_(end if s >= 0.5 else kept)
        else:
            torch.lerp(kept, end, s, out=out)


@dataclass(frozen=True)
class Grid:
    """Everything the values are a function of."""

    model: nn.Module
    loss: PointLoss
    batches: Sequence[Any]
    moves: Offsets
    """On the devices and in the types of what they move."""
    rows: tuple[tuple[float, tuple[float, ...]], ...]
    """s of each row, with its t."""

    @property
    def moving(self) -> list[str]:
        """Names of the parameters and buffers that move."""
        return list({**self.moves.outer, **self.moves.inner})

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter([*self.model.parameters(), *self.model.buffers()])).device


def compute(grid: Grid, how: Execution) -> list[Row]:
    """The rows of a grid, in order; the model is in eval mode meanwhile, and afterwards as before
    to the bit.

    Raises:
        ValueError: processes that do not fit the device; a loss that is none; a failure in another
            process."""
    most = _num_processes(how, grid)
    if how.distributed:
        return _by_ranks(grid, how)
    with ExitStack() as stack:
        folder = how.folder
        if folder is None and most > 1:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept = _Rows(folder, grid).open()
        if kept.missing():
            _share(grid, kept, how, most)
        return [kept.found[index] for index in range(len(grid.rows))]


def _num_processes(how: Execution, grid: Grid) -> int:
    """How many may share the rows."""
    elsewhere = how.distributed or grid.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if how.processes > 1 and elsewhere:
        raise ValueError(
            f"processes={how.processes} is for a CPU, without autocast around it or a group of processes; give 1, and "
            "on GPUs start one process each with torchrun"
        )
    if how.processes or elsewhere:
        return how.processes or 1
    copies = COPIES * sum(param.nbytes for param in grid.model.parameters())
    return max(1, min(cores(), free_bytes(grid.device) // max(1, copies)))


# --- values
# ----------------------------------------------------------------------------------------------------------


def _fill(grid: Grid, numbers: Iterable[int], keep: Callable[[int, Row], None]) -> None:
    """Compute rows; after each of them the weights are as they were."""
    keep_freed_memory()
    with (
        evaluating(grid.model),
        torch.no_grad(),
    ):  # not inference mode: a model that caches could not train on with that
        named = {**dict(grid.model.named_parameters()), **dict(grid.model.named_buffers())}
        live = {name: named[name].detach() for name in grid.moving}
        kept = {name: tensor.clone() for name, tensor in live.items()}
        base = {name: torch.empty_like(kept[name]) for name in grid.moves.outer}
        for number in numbers:
            try:
                row = _row(grid, live, kept, base, *grid.rows[number])
            finally:
                _set(live, kept)
            keep(number, row)


def _row(
    grid: Grid, live: Direction, kept: Direction, base: Direction, s: float, ts: Sequence[float]
) -> Row:
    if s:
        for name, tensor in base.items():
            grid.moves.write(name, kept[name], s, tensor)
        kept = {**kept, **base}
    points = []
    for t in ts:
        _set(live, kept, grid.moves.inner, t)
        points.append(_point(grid))
    sizes = [num_examples(batch) for batch in grid.batches]
    # one transfer a row; the sum as `mean_loss` takes it, so that the centre is the same to the bit
    losses = [
        sum(v * n for v, n in zip(values, sizes, strict=True))
        for values in _host([p[0] for p in points])
    ]
    rights = [sum(values) for values in _host([p[1] for p in points])]
    return np.array([losses, rights], np.float64) / sum(sizes)


def _set(live: Direction, base: Direction, inner: Direction | None = None, t: float = 0.0) -> None:
    """Make the live weights base + t * inner, or for t = 0 the base to the bit."""
    for name, tensor in live.items():
        if t and inner and name in inner:
            torch.add(base[name], inner[name], alpha=t, out=tensor)
        else:
            tensor.copy_(base[name])
    # an outer autocast would go on with its 16-bit copies of the weights before
    torch.clear_autocast_cache()


def _point(grid: Grid) -> tuple[Tensor, Tensor]:
    """Mean loss and number of right answers of each batch."""
    values, rights = [], []
    for number, batch in enumerate(grid.batches):
        seed(number, grid.device)  # what a loss draws is the same at every point
        found = grid.loss(grid.model, batch)
        value, right = found if isinstance(found, tuple) else (found, None)
        if (
            not isinstance(value, Tensor)
            or value.ndim
            or (right is not None and right.dtype != torch.bool)
        ):
            raise ValueError(
                "a loss is a tensor of shape [], the mean over a batch, or a pair of that and of which examples are "
                "right, bool [B]; return one of the two"
            )
        values.append(value)
        rights.append(
            value.new_full((), torch.nan).float() if right is None else right.sum().float()
        )
    return torch.stack(values), torch.stack(rights)


def _host(rows: Sequence[Tensor]) -> list[list[float]]:
    return torch.stack(list(rows)).cpu().double().tolist()


# --- rows in files
# ---------------------------------------------------------------------------------------------------


class _Rows:
    """Finished rows by number, and if there is a folder, in a file each."""

    def __init__(self, folder: Path | None, grid: Grid) -> None:
        self.folder, self.grid = folder, grid
        self.found: dict[int, Row] = {}
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def open(self) -> _Rows:
        """Take in what the folder has of this grid, and clear what it has of another."""
        if self.folder:
            stamp, told = _stamp(self.grid), self.folder / "grid.txt"
            if not told.is_file() or told.read_text(encoding="utf-8") != stamp:
                for path in self.folder.glob("row-*"):
                    path.unlink()
                replace_text(told, stamp)
            self.read()
        return self

    def missing(self) -> list[int]:
        """Numbers of the rows to compute."""
        return [number for number in range(len(self.grid.rows)) if number not in self.found]

    def read(self) -> None:
        """Take in what the files hold; one that a crash has damaged counts as missing."""
        for number in self.missing() if self.folder else ():
            try:
                row = np.load(self._path(number), allow_pickle=False)
            except (OSError, ValueError, EOFError):
                continue
            if row.shape == (2, len(self.grid.rows[number][1])):
                self.found[number] = row

    def keep(self, number: int, row: Row) -> None:
        """Add a row, in one piece or not at all."""
        self.found[number] = row
        if self.folder:
            aside = self._path(number).with_suffix(".partial")
            with aside.open("wb") as file:
                np.save(file, row)
            aside.replace(self._path(number))

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"row-{number:04d}.npy"


def _stamp(grid: Grid) -> str:
    """Changes with the weights, the directions, the images or the points."""
    digest = hashlib.blake2b(digest_size=16)
    steps = [*grid.moves.outer.values(), *grid.moves.inner.values()]
    for tensor in [*grid.model.parameters(), *grid.model.buffers(), *steps]:
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    with _threads(1):  # sums of another number of threads are others
        digest.update(
            repr((grid.rows, grid.moving, [fingerprint(batch) for batch in grid.batches])).encode()
        )
    return digest.hexdigest()


# --- processes
# -------------------------------------------------------------------------------------------------------


def _share(grid: Grid, kept: _Rows, how: Execution, most: int) -> None:
    """Compute the missing rows, with workers or without."""
    todo = kept.missing()
    alone = how.processes == 1 or grid.device.type != "cpu"
    with _threads(None if alone else 1) as threads, _Team(kept, threads) as team:

        def numbers() -> Iterator[int]:
            if how.processes > 1:
                team.start(grid, todo, min(most, len(todo)) - 1)
            start = time.perf_counter()
            for done, number in enumerate(_take(todo, team.taken), start=1):
                yield number
                left = (time.perf_counter() - start) * (len(todo) - 1)
                if done == 1 and how.processes == 0 and left > WORTH_SECONDS:
                    team.start(grid, todo, min(most, len(todo) - 1) - 1)
                team.ended()
                _tell(how, kept)

        _fill(grid, numbers(), kept.keep)
        while kept.missing() and not team.ended(JOIN_SECONDS):
            _tell(how, kept)
        _fill(grid, kept.missing(), kept.keep)  # none, unless a worker was ended from outside
        _tell(how, kept)


def _tell(how: Execution, kept: _Rows) -> None:
    if how.progress:
        how.progress(len(kept.found), len(kept.grid.rows))


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    """So many threads inside, or as they are; yields how many there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def _take(todo: Sequence[int], taken: Any) -> Iterator[int]:
    """The next row that no process has taken, until there is none."""
    while True:
        with taken.get_lock():
            place = taken.value
            taken.value += 1
        if place >= len(todo):
            return
        yield todo[place]


class _Team:
    """Worker processes, none until `start`; ended, whatever they do, with the `with` block."""

    def __init__(self, kept: _Rows, threads: int) -> None:
        self.kept, self.threads = kept, threads
        self.taken = multiprocessing.get_context("spawn").Value("q", 0)
        """How many of the missing rows were taken, by any process."""
        self._context: ProcessContext | None = None

    def __enter__(self) -> _Team:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._context.processes if self._context else ():
            process.terminate()
            process.join()
        if self.kept.folder:
            (self.kept.folder / "grid.pt").unlink(missing_ok=True)

    def start(self, grid: Grid, todo: list[int], count: int) -> None:
        """Start `count` workers; if the grid cannot be sent to them, say so, and leave all to this
        process."""
        if count < 1:
            return
        assert self.kept.folder is not None
        path = self.kept.folder / "grid.pt"
        try:
            torch.save(grid, path)  # a file and not a pipe: its pages are shared by all who map it
        except Exception as error:
            _say(
                f"the grid cannot be sent to other processes ({_line(error)}); this process does it all"
            )
            torch.set_num_threads(self.threads)
            return
        with _interrupts_ignored():
            args = (path, todo, self.taken, torch.get_default_dtype())
            self._context = start_processes(_work, args, count, join=False, daemon=True)  # type: ignore[no-untyped-call]

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether there is no worker, or none any more; takes in what they have written.

        Raises:
            ValueError: one has failed."""
        if self._context is None:
            return True
        try:
            done = bool(self._context.join(seconds))
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise ValueError(
                f"a process that computes rows failed: {_line(error)}; rows that were finished are kept in the folder, "
                "if one was given. Give processes=1 to do without"
            ) from error
        self.kept.read()
        return done


def _work(_: int, path: Path, todo: list[int], taken: Any, dtype: torch.dtype) -> None:
    """A worker's life: rows into files, until all are taken."""
    signal.signal(
        signal.SIGINT, lambda *_: os._exit(0)
    )  # ctrl-C, or the end of the parent: nothing to save or to say
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    try:
        grid: Grid = torch.load(
            path, mmap=True, weights_only=False
        )  # written by the parent a moment ago
    except Exception as error:
        _say(f"a new process cannot read the grid ({_line(error)}); the others go on without it")
        return
    parent = multiprocessing.parent_process()
    numbers = takewhile(lambda _: parent is None or parent.is_alive(), _take(todo, taken))
    _fill(grid, numbers, _Rows(path.parent, grid).keep)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started inside are deaf to ctrl-C until they say otherwise, so that no half-made
    one complains."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _line(error: BaseException) -> str:
    """The last line of an error, which in that of a process is the cause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _say(message: str) -> None:
    print(f"samovar: {message}", file=sys.stderr)


# --- ranks
# -----------------------------------------------------------------------------------------------------------


def _by_ranks(grid: Grid, how: Execution) -> list[Row]:
    """Rows by the processes of a group; files only save work, what is computed goes over the
    group."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    kept, failure = _Rows(how.folder, grid), None
    known = [kept.open().found if rank == 0 else {}]
    dist.broadcast_object_list(known, src=0)
    kept.found = known[0]
    mine = kept.missing()[rank::world_size]

    def keep(number: int, row: Row) -> None:
        kept.keep(number, row)
        _tell(how, kept)

    try:
        _fill(grid, mine, keep)
    except Exception as error:
        failure = error
    answers: list[Any] = [None] * world_size
    dist.all_gather_object(
        answers, ({n: kept.found[n] for n in mine if n in kept.found}, failure and _line(failure))
    )
    if failure:
        raise failure
    for other, (rows, complaint) in enumerate(answers):
        if complaint:
            raise ValueError(f"rank {other} failed: {complaint}; rows that were finished are kept")
        kept.found |= rows
    return [kept.found[number] for number in range(len(grid.rows))]
