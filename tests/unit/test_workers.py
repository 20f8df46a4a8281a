"""Test worker processes: a death or an error in one is reported in a line, and none is left behind."""

import multiprocessing
import os
import pickle
import signal

import pytest

from samovar.config import cores
from samovar.runtime.workers import Stopped, share


def work(task: str) -> str:
    if task == "die":
        os._exit(9)
    if task == "refuse":
        raise FileNotFoundError(2, "gone")
    return f"{task}, GPU {os.environ['LOCAL_RANK']}"


@pytest.mark.costly
def test_a_death_and_a_refusal_are_reported_and_no_process_is_left() -> None:
    done: dict[str, str] = {}
    with pytest.raises(ChildProcessError, match="ended by itself with code 9, .*; lower --jobs"):
        share(["fine", "die", "never"], work, 1, done.__setitem__)
    assert done == {"fine": "fine, GPU 0"}
    with pytest.raises(OSError, match="gone"):
        share(["refuse"], work, 1, done.__setitem__)
    assert not multiprocessing.active_children()


def test_a_stop_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM)))  # noqa: S301
    assert (error.signum, str(error)) == (signal.SIGTERM, "stopped by SIGTERM")


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
