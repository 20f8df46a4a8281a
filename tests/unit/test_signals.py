"""Test that a first signal is noted, a second acts, and the earlier handlers come back."""

import os
import signal

import pytest

from samovar.runtime.signals import STOPPING, noted


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
