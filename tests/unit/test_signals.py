"""Test that a first signal is noted, a second acts, and the earlier handlers come back."""

import os
import signal
import subprocess
import sys

import pytest

from samovar.runtime.signals import STOPPING, ended_by_second, noted


@pytest.mark.parametrize("signum", STOPPING)
def test_the_first_signal_is_noted_and_the_second_acts_at_once(signum) -> None:
    earlier: list[int] = []
    before = signal.signal(signum, lambda number, frame: earlier.append(number))
    try:
        with noted() as request:
            assert request.signum == 0
            os.kill(os.getpid(), signum)
            assert (request.signum, earlier) == (signum, [])
            os.kill(os.getpid(), signum)
            assert earlier == [signum]
        os.kill(os.getpid(), signum)
        assert earlier == [signum, signum]
    finally:
        signal.signal(signum, before)


STUCK = """
import os, signal, sys, threading, time
from samovar.runtime import signals

signals.PATIENCE = 0.1
kind = getattr(signal, sys.argv[1])
signal.signal(kind, lambda *args: None)  # a handler that never gets to its end well
with signals.ended_by_second():
    os.kill(os.getpid(), kind)
    print("first", flush=True)
    os.kill(os.getpid(), kind)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_a_process_that_is_stuck(kind) -> None:
    done = subprocess.run([sys.executable, "-c", STUCK, kind], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + getattr(signal, kind)
    assert done.stdout == "first\n"
    assert done.stderr == "samovar: ended by the second signal; what was saved before it is kept\n"


def test_two_signals_of_two_kinds_end_nothing() -> None:
    seen: list[int] = []
    before = {signum: signal.signal(signum, lambda number, frame: seen.append(number)) for signum in STOPPING}
    try:
        with ended_by_second():
            for signum in STOPPING:
                os.kill(os.getpid(), signum)
        with ended_by_second():
            os.kill(os.getpid(), STOPPING[0])
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert seen == [*STOPPING, STOPPING[0]]
    assert signal.set_wakeup_fd(-1) == -1


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(signum) for signum in STOPPING]
    inside = []

    def fail() -> None:
        inside.extend(signal.getsignal(signum) for signum in STOPPING)
        raise RuntimeError

    with pytest.raises(RuntimeError), noted():
        fail()
    assert [signal.getsignal(signum) for signum in STOPPING] == before
    assert not set(inside) & set(before)
