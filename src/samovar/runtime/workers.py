"""Share tasks among worker processes; a signal ends them after each running task has saved."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, TypeVar

import torch

from samovar.runtime.signals import STOPPING, handled_by, ignored_sigint

Task = TypeVar("Task")
Answer = TypeVar("Answer")


class Stopped(Exception):
    """A signal ended the tasks; everything they have done is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    def __reduce__(self) -> tuple[type[Stopped], tuple[int]]:
        return Stopped, (self.signum,)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Raise `Stopped` on SIGINT and SIGTERM inside, except where a task sets its own handlers."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum)

    with handled_by(stop):
        yield


def share(
    tasks: Sequence[Task],
    work: Callable[[Task], Answer],
    count: int,
    keep: Callable[[Task, Answer], None],
) -> None:
    """Run tasks in `count` new processes; `--run.device auto` gives each the next of the GPUs.

    The processes import the main module, so a script needs `if __name__ == "__main__":`.

    Args:
        work: a function defined at the top of a module, because it is sent by name. On SIGINT or
            SIGTERM it saves and raises `Stopped`.
        keep: called in this process with each task and its answer, as tasks end.

    Raises:
        ChildProcessError: a process died.
        Stopped, ValueError, OSError: raised by `work`; the other tasks were asked to stop and have
            stopped."""
    left = list(reversed(tasks))
    with _Team(work, count) as team:
        busy: dict[Any, Task] = {}

        def give(connection: Any) -> None:
            busy[connection] = left.pop()
            # a pipe breaks when its process has died; reading the answer below reports that
            with contextlib.suppress(BrokenPipeError):
                connection.send(busy[connection])

        for connection in team.connections:
            give(connection)
        while busy:
            for ready in wait(list(busy)):
                answer = team.answer(ready)
                keep(busy.pop(ready), answer)
                if left:
                    give(ready)


class _Team:
    """Worker processes that live inside a `with` block; an error in the block stops their tasks."""

    def __init__(self, work: Callable[[Any], Any], count: int) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(count)]
        self.connections: list[Any] = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=_live, args=(work, number, theirs))
            for number, (_, theirs) in enumerate(pipes)
        ]
        # Children inherit this: ctrl-C must not hit a process that has no handler of its own yet.
        with ignored_sigint():
            for process in self.processes:
                process.start()
        for _, theirs in pipes:
            theirs.close()

    def __enter__(self) -> _Team:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # A terminal sends its signal to the whole group, so the workers may have received the one
        # that ended us. A second signal of the same kind acts at once, without saving: send the
        # other kind.
        ended_by_term = isinstance(error, Stopped) and error.signum == signal.SIGTERM
        other = signal.SIGINT if ended_by_term else signal.SIGTERM
        try:
            for process, connection in zip(self.processes, self.connections, strict=True):
                connection.close()
                if error and process.pid and process.is_alive():
                    os.kill(process.pid, other)
            for process in self.processes:
                process.join()
        finally:
            # all have ended by now, unless a second signal interrupted the wait for their saving
            for process in self.processes:
                process.kill()

    def answer(self, connection: Any) -> Any:
        """Return a worker's answer to its task.

        Raises:
            ChildProcessError: the worker died.
            Exception: the task raised it."""
        try:
            answer = connection.recv()
        except (EOFError, ConnectionResetError):
            process = self.processes[self.connections.index(connection)]
            process.join()
            raise ChildProcessError(
                f"a process ended by itself with code {process.exitcode}, perhaps for lack of "
                "memory; lower --jobs"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _live(work: Callable[[Any], Any], number: int, connection: Connection) -> None:
    """Answer tasks in a worker process until there are no more or the parent is gone."""
    for signum in STOPPING:
        # between tasks there is nothing to save and nothing to print
        signal.signal(signum, lambda *_: os._exit(0))
    threading.Thread(target=_follow_parent, daemon=True).start()
    # selects the GPU of `--run.device auto`
    os.environ["LOCAL_RANK"] = str(number % max(1, torch.cuda.device_count()))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(_answer(work, connection.recv()))


def _answer(work: Callable[[Task], Answer], task: Task) -> Answer | Exception:
    """Return the answer to a task, or the error it raised in a form that can be sent."""
    try:
        return work(task)
    except Stopped as error:
        return error
    # subclasses may not survive pickling, so their text travels in the plain class
    except OSError as error:
        return OSError(str(error))
    except ValueError as error:
        return ValueError(str(error))


def _follow_parent() -> None:
    """Send this process SIGTERM when the parent dies, so that the task saves and ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
