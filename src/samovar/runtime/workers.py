"""Tasks shared by processes that end when they are told to, each after its task has saved what it
did."""

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

Task = TypeVar("Task")
Answer = TypeVar("Answer")


class Stopped(Exception):
    """A signal ended the tasks; what they have done is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    def __reduce__(self) -> tuple[type[Stopped], tuple[int]]:
        return Stopped, (self.signum,)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Stopped` inside, but where a task has handlers of its own for the
    time being."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def share(
    tasks: Sequence[Task],
    work: Callable[[Task], Answer],
    count: int,
    keep: Callable[[Task, Answer], None],
) -> None:
    """Do tasks in `count` new processes, where `auto` is another GPU in each as far as there are
    several.

    The processes import the main module, so a script needs `if __name__ == "__main__":`.

    Args:
        work: a function of a module, for it is sent by name; on SIGINT or SIGTERM it saves and
            raises `Stopped`.
        keep: called here with a task and what came of it, as tasks end.

    Raises:
        ChildProcessError: a process ended by itself.
        Stopped, ValueError, OSError: what `work` raised; the other tasks have been told to stop,
            and have."""
    left = list(reversed(tasks))
    with _Team(work, count) as team:
        busy: dict[Any, Task] = {}

        def give(connection: Any) -> None:
            busy[connection] = left.pop()
            with contextlib.suppress(
                BrokenPipeError
            ):  # the process has died, which reading from it tells
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
    """Worker processes; they end with the `with` block, told by a signal where that ends by an
    error."""

    def __init__(self, work: Callable[[Any], Any], count: int) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(count)]
        self.connections: list[Any] = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=_live, args=(work, number, theirs))
            for number, (_, theirs) in enumerate(pipes)
        ]
        handler = signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # inherited: half-made processes are deaf to ctrl-C
        try:
            for process in self.processes:
                process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        for _, theirs in pipes:
            theirs.close()

    def __enter__(self) -> _Team:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # The terminal, or whoever ends a whole group, has sent the same signal to the workers as
        # well, and a second one of a kind acts at once: hence the other kind.
        other = (
            signal.SIGINT
            if isinstance(error, Stopped) and error.signum == signal.SIGTERM
            else signal.SIGTERM
        )
        try:
            for process, connection in zip(self.processes, self.connections, strict=True):
                connection.close()
                if error and process.pid and process.is_alive():
                    os.kill(process.pid, other)
            for process in self.processes:
                process.join()
        finally:
            for (
                process
            ) in self.processes:  # none is left, unless a second signal came while they saved
                process.kill()

    def answer(self, connection: Any) -> Any:
        """What came of a worker's task.

        Raises:
            ChildProcessError: the worker is gone; and whatever the task raised."""
        try:
            answer = connection.recv()
        except (EOFError, ConnectionResetError):
            process = self.processes[self.connections.index(connection)]
            process.join()
            raise ChildProcessError(
                f"a process ended by itself with code {process.exitcode}, perhaps for lack of memory; lower --jobs"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _live(work: Callable[[Any], Any], number: int, connection: Connection) -> None:
    """A worker's life: tasks as they come, until there are no more or the parent is gone."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            signum, lambda *_: os._exit(0)
        )  # between tasks there is nothing to save or to say
    threading.Thread(target=_follow_parent, daemon=True).start()
    os.environ["LOCAL_RANK"] = str(
        number % max(1, torch.cuda.device_count())
    )  # which GPU `auto` is
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(_answer(work, connection.recv()))


def _answer(work: Callable[[Task], Answer], task: Task) -> Answer | Exception:
    try:
        return work(task)
    except Stopped as error:
        return error
    except (
        OSError
    ) as error:  # plain, as is the next, since one of another kind may not survive the way
        return OSError(str(error))
    except ValueError as error:
        return ValueError(str(error))


def _follow_parent() -> None:
    """End as by SIGTERM, the task saved, when the parent ends by force: nobody is left to wait for
    it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
