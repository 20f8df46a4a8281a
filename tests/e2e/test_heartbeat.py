"""Test that no command is silent: opening, building, evaluating, measuring and reporting all say what they do."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PERIOD = "0.2"
# Every slow part takes ten periods or more, and has to print at least three lines on the busiest machine.
LEAST = 3
SCRIPT = """\
import sys, time
from samovar.data import catalog
from samovar import report
from samovar.cli import main

def slow(function, seconds=2.0):
    def wrapped(*args):
        time.sleep(seconds)
        return function(*args)
    return wrapped

find, write = catalog.find, report.write
catalog.find = lambda name: slow(find(name))
report.write = slow(write)
for command in " ".join(sys.argv[1:]).split(" + "):
    main(command.split())
"""
MODEL = """\
import time
from torch import nn

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        time.sleep(2.0)
        self.layer = nn.Linear(64, 10)

    def forward(self, images):
        if not self.training:
            time.sleep(0.1)
        return self.layer(images.flatten(1))
"""
TRAIN = "train vit-digits --model.name slow:Slow --steps 4 --run.eval-every 4 --run.log-every 1 --name r"


def output(folder: Path, terminal: bool, commands: str) -> Iterator[str]:
    """Run commands, with + between them, on slow images, model and report; yield the lines of both streams."""
    (folder / "run.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "slow.py").write_text(MODEL, encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "SAMOVAR_HEARTBEAT": PERIOD}
    command = [sys.executable, "run.py", commands]
    if terminal:
        reader, writer = pty.openpty()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=writer, stdout=writer, stderr=writer)
        os.close(writer)
    else:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        reader = os.dup(process.stdout.fileno())
    with os.fdopen(reader, "rb", buffering=0) as stream:
        rest = b""
        while chunk := _read(stream):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode() for line in lines)
    assert process.wait() == 0, rest


def _read(stream) -> bytes:
    try:
        return stream.read(1 << 16)
    except OSError:  # how a terminal says that its other side is closed
        return b""


@pytest.mark.costly
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_no_command_is_silent(tmp_path, terminal: bool) -> None:
    commands = TRAIN if terminal else f"{TRAIN} + measure runs/r accuracy + report runs/r"
    lines = list(output(tmp_path, terminal, commands))

    def beats(words: str) -> int:
        return sum(bool(re.search(rf"\.\.\. .*{words}", line)) for line in lines)

    assert beats("samovar train") >= LEAST  # while torch is imported
    assert beats("opening digits") >= LEAST
    assert beats("building slow:Slow") >= LEAST
    assert beats(r"training: 4 of 4 steps.*, val images: [\d,]+ of 1,528, ETA") >= LEAST
    evaluated = r"step 4/4  epoch 0.952/0.952 .*val accuracy .*ETA 0.0 s"
    assert sum(bool(re.search(evaluated, line)) for line in lines) == 1
    if not terminal:
        assert sum("step 1/4  epoch 0.238/0.952 " in line and "  ETA " in line for line in lines) == 1
        assert beats(r"measurement 1 of 1, measuring accuracy, val images: [\d,]+ of 1,528") >= LEAST
        assert beats("samovar report") >= LEAST
