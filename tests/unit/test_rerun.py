"""Test `--resume` in its forms, names that are taken, locks, and what `progress.json` says."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from samovar import recipes
from samovar.cli.train import parse
from samovar.config import Config, load, save, to_flags
from samovar.runs import progress
from samovar.runs.progress import RunProgress
from samovar.runs.records import RunDir
from samovar.runtime.lock import Locked, file_of, is_locked, locked
from tests.conftest import Shell, assert_refused

SHORT = ("--steps", "8", "--run.eval-every", "4", "--data.batch-size", "32")
COMMAND = ("train", "vit-digits", *SHORT, "--name", "r")


def made_run(output: Path, name: str, status: str = "training", when: int = 0) -> Path:
    """A folder that says it is a run."""
    run = RunDir(output / name)
    run.path.mkdir(parents=True)
    run.write_json("config.json", {"name": name, "output": str(output)})
    progress.write(run, RunProgress(status, 3, 8))
    os.utime(run.path / progress.FILE, (when, when))
    return run.path


@pytest.mark.costly
def test_auto_starts_a_run_continues_it_and_says_that_it_is_finished(shell: Shell, monkeypatch) -> None:
    again = (*COMMAND, "--resume", "auto")
    monkeypatch.setattr("samovar.train.keeper.checkpoint.save", _full_after(1))
    stopped = shell.run_here(*again)
    assert stopped.returncode == 1, stopped.stderr
    monkeypatch.undo()
    resumed = shell.run_here(*again)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step 4" in resumed.stdout
    finished = shell.run_here(*again)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("runs/r has come to its end at step 8, best val accuracy ")
    assert finished.stdout.count("\n") == 1
    assert [path.name for path in (shell.folder / "runs").iterdir()] == ["r"]


def _full_after(count: int):
    """A disk that is full after so many checkpoints."""
    from samovar.runs import checkpoint

    real, calls = checkpoint.save, []

    def save(*args):
        calls.append(args)
        if len(calls) > count:
            raise OSError("No space left on device")
        return real(*args)

    return save


def test_auto_refuses_a_run_of_other_settings_or_of_another_recipe(shell: Shell) -> None:
    assert shell.run_here(*COMMAND).returncode == 0
    (shell.folder / "runs" / "r" / progress.FILE).unlink()
    other = shell.run_here(*COMMAND, "--resume", "auto", "--optim.lr", "0.5")
    assert other.returncode == 2
    assert "--optim.lr 0.5 differs from the run's 0.0007" in other.stderr
    other = shell.run_here("train", "mixer-digits", "--name", "r", "--resume", "auto")
    assert other.returncode == 2
    assert "--resume auto finds runs/r, a run of vit-digits, not of mixer-digits; give another --name" in other.stderr
    allowed = shell.run_here(*COMMAND, "--resume", "auto", "--run.keep", "1")
    assert allowed.returncode == 0, allowed.stderr


def test_auto_takes_over_a_folder_that_a_crash_left_without_a_config(shell: Shell) -> None:
    (shell.folder / "runs" / "r" / "checkpoints").mkdir(parents=True)
    result = shell.run_here(*COMMAND, "--resume", "auto")
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip().endswith("run: runs/r")


def test_a_name_that_is_taken_is_told_in_one_line(shell: Shell) -> None:
    made_run(shell.folder / "runs", "r")
    result = shell.run_here(*COMMAND)
    assert result.returncode == 0, result.stderr
    line = "runs/r exists, so this run goes into runs/r-2; --resume runs/r or --resume auto would continue it"
    assert result.stdout.splitlines().count(line) == 1
    assert result.stdout.rstrip().endswith("run: runs/r-2")


def test_resume_alone_takes_the_run_that_was_trained_last_and_is_unfinished(tmp_path) -> None:
    made_run(tmp_path, "old", when=10)
    last = made_run(tmp_path, "last", when=20)
    made_run(tmp_path, "finished", "done", when=30)
    (tmp_path / "no-run").mkdir()
    command = parse(["--resume", "--output", str(tmp_path)])
    assert command.resumed == last
    assert command.config.name == "last"
    with locked(last):  # being trained, so the one before is the last to continue
        assert parse(["--output", str(tmp_path), "--resume"]).resumed == tmp_path / "old"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("train --resume", "--resume finds no unfinished run in runs; give the folder of a run"),
        ("train vit-digits --resume auto", "--resume auto finds a run by its name; give --name"),
        ("train --resume auto --name r", "train needs a recipe or --config"),
        ("train vit-digits --resume", "--resume"),
    ],
)
def test_what_cannot_be_resumed_is_one_line(args: str, line: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(args, line, capsys)


def test_ranks_do_not_each_look_for_the_last_run(capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused("train --resume", "--resume needs a path under torchrun, or auto with a recipe and --name", capsys)


def test_a_run_that_another_process_trains_is_left_alone(shell: Shell) -> None:
    assert shell.run_here(*COMMAND).returncode == 0
    run = shell.folder / "runs" / "r"
    code = f"from pathlib import Path\nfrom samovar.runtime.lock import locked\nwith locked(Path({str(run)!r})):\n"
    code += "    print('held', flush=True)\n    input()\n"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert is_locked(run)
    result = shell.run_here("train", "--resume", "runs/r")
    assert result.returncode == 2
    line = f"runs/r is being trained by process {other.pid} on {socket.gethostname()}, since "
    assert line in result.stderr
    assert "wait for its end (--wait) or stop it" in result.stderr
    other.kill()
    other.communicate()
    assert not is_locked(run)


def test_a_lock_is_held_once(tmp_path) -> None:
    with locked(tmp_path), pytest.raises(Locked), locked(tmp_path):
        pass
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "nowhere")


def test_a_damaged_progress_file_is_named(tmp_path) -> None:
    run = RunDir(tmp_path)
    assert progress.read(run) is None
    (tmp_path / progress.FILE).write_text('{"status": "done"', encoding="utf-8")
    with pytest.raises(ValueError, match=r"progress.json cannot be read: .*; delete it"):
        progress.read(run)


def test_a_run_keeps_a_picture_of_its_first_batch_and_the_sizes_of_its_classes(shell: Shell) -> None:
    assert shell.run_here(*COMMAND).returncode == 0
    run = shell.folder / "runs" / "r"
    counts = json.loads((run / "class_counts.json").read_text(encoding="utf-8"))
    assert counts["classes"] == [str(digit) for digit in range(10)]
    assert (sum(counts["train"]), sum(counts["val"])) == (269, 1528)
    assert (run / "batch.png").read_bytes().startswith(b"\x89PNG")
    assert not list(run.glob("grid"))


# --- warm-up of shorter runs


@pytest.mark.parametrize(
    ("flags", "warmup", "notes"),
    [
        ("", 42, 0),
        ("--epochs 30", 4, 1),  # a tenth of 300 epochs
        ("--steps 630", 20, 1),  # 630 of 1,261 steps
        ("--steps 2000", 42, 0),
        ("--epochs 30 --optim.warmup-steps 42", 42, 0),
        ("--epochs 600", 42, 0),
        ("--data.batch-size 128", 42, 0),
    ],
)
def test_warm_up_shrinks_with_the_run_unless_it_is_given(flags: str, warmup: int, notes: int) -> None:
    command = parse(["vit-digits", *flags.split()])
    assert command.shorten is not None
    config, said = command.shorten(command.config, 269)
    assert config.optim.warmup_steps == warmup
    assert len(said) == notes


def test_epochs_that_are_given_replace_the_steps_of_the_settings(tmp_path) -> None:
    save(Config(steps=500), tmp_path / "config.json")
    start = ["--config", str(tmp_path / "config.json")]
    assert parse([*start, "--epochs", "3"]).config.steps == 0
    assert parse([*start, "--epochs", "3", "--steps", "7"]).config.steps == 7
    assert parse([*start, "--seed", "3"]).config.steps == 500


def test_a_run_says_that_its_warm_up_was_shortened_and_keeps_the_number(shell: Shell) -> None:
    result = shell.run_here("train", "vit-digits", "--epochs", "3", "--name", "r")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "--optim.warmup-steps 0 in place of 42, as the run has 13 of 1,261 steps; give the flag for another number"
    )
    assert ", 3.09 epochs, 13 steps" in lines[1]
    assert load(shell.folder / "runs" / "r" / "config.json").optim.warmup_steps == 0
    steps = [line for line in lines if line.startswith("step ")]
    assert steps
    assert all("  epoch " in line and "  ETA " in line for line in steps)


def test_a_long_warm_up_is_warned_of(shell: Shell) -> None:
    result = shell.run_here(*COMMAND, "--optim.warmup-steps", "4")
    warning = "warning: warm-up takes 4 of 8 steps, more than a third; train longer or lower --optim.warmup-steps"
    assert result.stdout.splitlines().count(warning) == 1
    assert "warning" not in shell.run_here(*COMMAND, "--optim.warmup-steps", "2").stdout


def test_the_command_that_replays_a_shorter_run_gives_its_warm_up() -> None:
    base = recipes.get("vit-digits").config()
    short = replace(base, steps=50)
    assert to_flags(short, base) == ["--steps", "50", "--optim.warmup-steps", "42"]
    command = parse(["vit-digits", *to_flags(short, base)])
    assert command.shorten is not None
    assert command.shorten(command.config, 269) == (short, ())
    assert to_flags(replace(base, seed=3), base) == ["--seed", "3"]


def test_without_locks_the_name_of_a_living_owner_keeps_others_out_and_other_errors_are_not_hidden(
    tmp_path, monkeypatch
) -> None:
    def fails(number: int) -> None:
        def flock(*args: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("samovar.runtime.lock.fcntl.flock", flock)

    fails(errno.ENOLCK)
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    # a process that was killed leaves its name behind
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = {"host": socket.gethostname(), "pid": ended.pid, "since": "2026-12-01 00:00:00 UTC"}
    file_of(tmp_path).write_text(json.dumps(owner))
    assert not is_locked(tmp_path)
    file_of(tmp_path).write_text(json.dumps(owner | {"host": "elsewhere"}))
    with pytest.raises(Locked, match=rf"by process {ended.pid} on elsewhere, since 2026-12-01 00:00:00 UTC; wait"):
        locked(tmp_path).__enter__()
    fails(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path):
        pass


def test_a_waiting_process_takes_the_lock_when_the_other_ends(tmp_path, capsys) -> None:
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path, "measure"):
            waiting = pool.submit(lambda: locked(tmp_path, "measure", wait=True).__enter__())
            while "waiting for process" not in (said := capsys.readouterr().err):
                time.sleep(0.01)
            assert not waiting.done()
            # training and measuring do not keep each other out
            assert not is_locked(tmp_path, "train")
        waiting.result(timeout=30)
    assert said == f"samovar: waiting for {said.split('waiting for ')[1]}"
    assert str(os.getpid()) in said
