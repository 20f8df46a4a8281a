"""Signals: noted once, acted upon at the second, and the handlers of before come back."""

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
    with pytest.raises(RuntimeError), noted():
        assert [signal.getsignal(signum) for signum in STOPPING] != before
        raise RuntimeError
    assert [signal.getsignal(signum) for signum in STOPPING] == before
