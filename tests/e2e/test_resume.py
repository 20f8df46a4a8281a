"""Test that a run stopped in any way and resumed ends in the same bits as an uninterrupted one."""

import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from samovar.runs import checkpoint
from samovar.runs.records import RunDir
from tests.conftest import Shell

STEPS = 60
# Dropout, mixed batches, groups, averaging: everything that has state or randomness is on.
FLAGS = (
    f"--steps {STEPS} --run.eval-every 4 --run.log-every 3 --model.dropout 0.1 --model.drop-path 0.1 --data.mixup 0.2"
    " --sam.m 32 --optim.ema 0.9 --optim.warmup-steps 10 --run.threads 1 --name r"
).split()


def train(shell: Shell, output: str, *flags: str) -> list[str]:
    return ["train", "vit-digits-sam", *FLAGS, "--output", output, *flags]


def final_bytes(run: Path) -> list[bytes]:
    last = checkpoint.path_of(run / "checkpoints", STEPS)
    return [(last / name).read_bytes() for name in ("model.safetensors", "ema.safetensors")]


def final_records(run: Path) -> list[tuple]:
    records = RunDir(run).records()
    return [(r.name, r.value, r.where) for r in records if r.name != "train/images_per_second"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    shell = Shell(folder)
    result = shell.run(*train(shell, "runs"))
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "r"


def resume_until_done(shell: Shell, run: Path, kills: list[float]) -> int:
    """Start, kill -9 after each delay from the first evaluation on, resume; return the number of resumes."""
    resumes = 0
    command = train(shell, "runs")
    for delay in kills:
        process = shell.start(*command)
        assert process.stdout is not None
        seen = ""
        while "val accuracy" not in seen and process.poll() is None:
            line = process.stdout.readline()
            resumes += "resumed at step" in line
            seen += line
        time.sleep(delay)
        process.kill()
        process.communicate()
        if (run / "config.json").exists():
            command = ["train", "--resume", "runs/r"]
    result = shell.run(*command)
    assert result.returncode == 0, result.stderr
    return resumes + ("resumed at step" in result.stdout)


def check_kills(shell: Shell, undisturbed: Path, count: int, seed: int, longest: float) -> None:
    delays = random.Random(seed)
    run = shell.folder / "runs" / "r"
    resumes = resume_until_done(shell, run, [delays.uniform(0, longest) for _ in range(count)])
    assert resumes == count
    assert final_bytes(run) == final_bytes(undisturbed)
    assert final_records(run) == final_records(undisturbed)


def test_kill_9_at_random_points_leaves_no_trace(shell, undisturbed) -> None:
    check_kills(shell, undisturbed, count=3, seed=1, longest=1.0)


@pytest.mark.slow
def test_kill_9_at_twenty_random_points_leaves_no_trace(shell, undisturbed) -> None:
    check_kills(shell, undisturbed, count=20, seed=2, longest=0.6)


def read_evaluations(process: subprocess.Popen, count: int) -> None:
    """Read the output of a run until it has evaluated so many times."""
    assert process.stdout is not None
    while count and process.poll() is None:
        count -= "val accuracy" in process.stdout.readline()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_first_and_says_how_to_go_on(shell, undisturbed, signum, code) -> None:
    process = shell.start(*train(shell, "runs"))
    read_evaluations(process, 1)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert signal.Signals(signum).name in err
    assert "samovar train --resume runs/r" in err
    run = shell.folder / "runs" / "r"
    stopped_at = checkpoint.steps_saved(run / "checkpoints")[-1]
    assert f"at step {stopped_at}," in err
    resumed = shell.run_here("train", "--resume", "runs/r")
    assert resumed.returncode == 0
    assert f"resumed at step {stopped_at}" in resumed.stdout
    assert final_bytes(run) == final_bytes(undisturbed)
    assert final_records(run) == final_records(undisturbed)


def test_a_full_disk_ends_the_run_with_a_line_and_resumes(shell, undisturbed) -> None:
    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # a checkpoint's weights are larger

    result = shell.run(*train(shell, "runs"), preexec_fn=small_disk)
    assert result.returncode == 1
    assert "samovar train --resume runs/r" in result.stderr
    assert "Traceback" not in result.stderr
    run = shell.folder / "runs" / "r"
    assert checkpoint.steps_saved(run / "checkpoints") == []
    assert not list((run / "checkpoints").glob(".partial*"))
    assert shell.run_here("train", "--resume", "runs/r").returncode == 0
    assert final_bytes(run) == final_bytes(undisturbed)


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_used(shell, undisturbed) -> None:
    process = shell.start(*train(shell, "runs"))
    read_evaluations(process, 4)
    process.kill()
    process.communicate()
    run = shell.folder / "runs" / "r"
    before, last = checkpoint.steps_saved(run / "checkpoints")[-2:]
    weights = checkpoint.path_of(run / "checkpoints", last) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = shell.run_here("train", "--resume", "runs/r")
    assert result.returncode == 0, result.stderr
    assert f"step-{last:08d} is damaged: model.safetensors has 1000 of" in result.stdout
    assert f"resumed at step {before}" in result.stdout
    assert final_bytes(run) == final_bytes(undisturbed)


def test_when_no_checkpoint_is_whole_nothing_is_overwritten(shell, undisturbed) -> None:
    run = shell.folder / "copy"
    shutil.copytree(undisturbed, run)
    for weights in run.glob("checkpoints/step-*/model.safetensors"):
        weights.write_bytes(b"")
    before = (run / "records.jsonl").read_bytes()
    result = shell.run_here("train", "--resume", "copy")
    assert result.returncode == 2
    assert "no older checkpoint is whole; start anew with --config copy/config.json" in result.stderr
    assert (run / "records.jsonl").read_bytes() == before


def test_a_resume_with_other_settings_is_refused_and_harmless_ones_are_allowed(shell, undisturbed) -> None:
    refused = shell.run_here("train", "--resume", str(undisturbed), "--optim.lr", "0.5")
    assert refused.returncode == 2
    assert refused.stderr.startswith("samovar: --optim.lr 0.5 differs from the run's 0.0007")
    assert refused.stderr.count("\n") == 1
    before = final_bytes(undisturbed)
    allowed = shell.run_here("train", "--resume", str(undisturbed), "--run.keep", "3", "--data.workers", "0")
    assert allowed.returncode == 0, allowed.stderr
    assert final_bytes(undisturbed) == before


def test_a_saved_config_replays_the_run_bit_for_bit(shell, undisturbed) -> None:
    result = shell.run_here("train", "--config", str(undisturbed / "config.json"), "--name", "again")
    assert result.returncode == 0, result.stderr
    assert final_bytes(shell.folder / "runs" / "again") == final_bytes(undisturbed)
