"""Test that two gloo processes under torchrun train as one process does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from samovar.runs import checkpoint
from samovar.runs.records import RunDir
from tests.conftest import Shell

FLAGS = [
    "--steps", "12", "--run.eval-every", "4", "--data.batch-size", "64", "--sam.m", "16", "--optim.warmup-steps", "4",
    "--run.threads", "1", "--name", "r",
]  # fmt: skip


def torchrun(folder: Path, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "samovar"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *args], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def weights(run: Path, step: int = 12) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.path_of(run / "checkpoints", step) / "model.safetensors")


@pytest.mark.parametrize("recipe", ["vit-digits-sam", "resnet-digits"])
def test_two_processes_train_as_one_does(tmp_path, recipe) -> None:
    one = Shell(tmp_path).run_here("train", recipe, *FLAGS, "--output", "one")
    two = torchrun(tmp_path, "train", recipe, *FLAGS, "--output", "two")
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    a, b = weights(tmp_path / "one" / "r"), weights(tmp_path / "two" / "r")
    # Adam divides by the root of the second moment: where gradients are near 0, rounding decides the sign of a step,
    # so 12 steps of lr <= 4e-4 may differ by a small share of their length in single weights
    for name in a:
        assert (a[name] - b[name]).abs().max() < 2e-4, name
    assert two.stdout.count("val accuracy") == one.stdout.count("val accuracy")  # one rank prints


def test_a_resumed_torchrun_continues_bit_for_bit(tmp_path) -> None:
    straight = torchrun(tmp_path, "train", "vit-digits-sam", *FLAGS, "--output", "a")
    assert straight.returncode == 0, straight.stderr
    run = tmp_path / "a" / "r"
    expected = weights(run)
    shutil.rmtree(checkpoint.path_of(run / "checkpoints", 12))
    again = torchrun(tmp_path, "train", "--resume", "a/r")
    assert again.returncode == 0, again.stderr
    assert "resumed at step 8" in again.stdout
    actual = weights(run)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_two_processes_measure_what_one_does(tmp_path) -> None:
    command = [
        "measure",
        "vit-digits",
        "hessian",
        "trace",
        "flatness",
        "--image-size",
        "8",
        "--images",
        "61",
        "--k",
        "2",
    ]
    command += ["--checkpoint", "init", "--dtype", "float64", "--tol", "1e-6", "--batch-size", "16", "--threads", "1"]
    one = Shell(tmp_path).run_here(*command, "--name", "one")
    two = torchrun(tmp_path, *command, "--name", "two")
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    a, b = (list(RunDir(tmp_path / "runs" / name).records()) for name in ("one", "two"))
    assert [record.name for record in a] == [record.name for record in b]
    assert len(a) == 5  # lambda_max, the second eigenvalue, trace, average flatness, clean loss
    assert [record.value for record in b] == pytest.approx([record.value for record in a], rel=1e-6)


def test_a_layout_that_does_not_divide_is_one_line_from_each_rank(tmp_path) -> None:
    result = torchrun(tmp_path, "train", "vit-digits-sam", *FLAGS, "--data.batch-size", "33")
    assert result.returncode != 0
    assert "samovar: --data.batch-size 33 does not divide over 2 ranks; pick a multiple of 2" in result.stderr


def test_the_same_command_continues_a_run_on_two_ranks_and_says_when_it_is_finished(tmp_path) -> None:
    command = ["train", "vit-digits-sam", *FLAGS, "--output", "a", "--resume", "auto"]
    begun = Shell(tmp_path).run_here(*command)
    assert begun.returncode == 0, begun.stderr
    shutil.rmtree(checkpoint.path_of(tmp_path / "a" / "r" / "checkpoints", 12))
    resumed = torchrun(tmp_path, *command)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("resumed at step 8") == 1
    finished = torchrun(tmp_path, *command)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("a/r has come to its end at step 12") == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["r"]
