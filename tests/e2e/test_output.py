"""A terminal of ASCII gets every line, and a training whose reader has left goes on to its end."""

import os
import subprocess
import sys

import pytest

from samovar.runs import progress
from samovar.runs.records import RunDir

TRAIN = ["train", "vit-digits", "--steps", "4", "--optim.warmup-steps", "0", "--run.eval-every", "1", "--name", "a"]


def started(args: list[str], folder, **settings) -> subprocess.Popen:
    environment = os.environ | settings
    command = [sys.executable, "-m", "samovar", *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.costly
def test_training_goes_on_when_the_reader_of_its_output_leaves(tmp_path) -> None:
    process = started(TRAIN, tmp_path)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(), err) == (0, "")
    run = RunDir(tmp_path / "runs" / "a")
    assert progress.read(run).status == "done"
    assert len([record for record in run.records() if record.name == "val/accuracy"]) == 4


@pytest.mark.costly
def test_measuring_into_a_terminal_of_ascii_prints_its_table(tmp_path) -> None:
    args = ["measure", "vit-digits", "flatness", "--images", "20", "--draws", "2"]
    process = started(args, tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "+- " in out
    assert "records: runs/" in out
    out.encode("ascii")
