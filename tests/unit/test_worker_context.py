"""Test that control-C does not end a worker that has not set its own handlers yet."""

import signal

from samovar.data.streaming import worker_context


def answer(connection) -> None:
    connection.send(signal.getsignal(signal.SIGINT))


def test_a_new_worker_ignores_control_c() -> None:
    before = signal.getsignal(signal.SIGINT)
    context = worker_context()
    assert signal.getsignal(signal.SIGINT) == before
    ours, theirs = context.Pipe()
    worker = context.Process(target=answer, args=(theirs,))
    worker.start()
    assert ours.recv() == signal.SIG_IGN
    worker.join()
