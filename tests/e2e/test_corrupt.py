"""`samovar corrupt` in processes: control-C leaves whole files, a death is one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.test_corrupt_folder import tree, write


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def running(tmp_path):
    """`samovar corrupt` in two workers, in a process group of its own, after the first copy is there."""
    for number in range(100):
        write(tmp_path / "in" / f"{number:03}.png", number, (200, 200))
    command = [sys.executable, "-m", "samovar", "corrupt", tmp_path / "in", tmp_path / "out", "--workers", "2"]
    # A shell that runs the tests in the background has them ignore SIGINT, and their children too.
    process = subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for _ in range(3000):
        if tree(tmp_path / "out"):
            break
        time.sleep(0.1)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_control_c_leaves_whole_copies_and_the_same_command_goes_on(running, tmp_path):
    os.killpg(running.pid, signal.SIGINT)
    assert "interrupted; the same command goes on from here" in running.communicate(timeout=300)[1]
    assert running.returncode == 130
    assert not list((tmp_path / "out").rglob("*.partial"))
    for name in tree(tmp_path / "out"):
        with Image.open(tmp_path / "out" / name) as image:
            image.load()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_a_process_that_dies_is_one_line(running):
    workers = [worker for child in children(running.pid) for worker in children(child)]  # forked by a server
    os.kill(workers[-1], signal.SIGKILL)
    said = running.communicate(timeout=300)[1]
    assert running.returncode == 2
    assert said.count("\n") == 1
    assert "a process ended by itself" in said
    assert "lower --workers" in said
