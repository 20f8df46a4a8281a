"""Test that a run which is refused leaves no folder that would stand in the way of the next try."""

from pathlib import Path

import pytest
import torch

from samovar.config import Config
from samovar.runs.records import Record, RunDir
from samovar.runs.refused import holds_records, removed_if_refused
from samovar.runtime import Runtime
from samovar.train.open_run import new_run
from tests.conftest import Shell

CPU = Runtime(torch.device("cpu"), torch.float32)

COMMAND = ("train", "vit-digits", "--steps", "8", "--run.eval-every", "4", "--data.batch-size", "32", "--name", "r")
TOO_LONG = ("--optim.warmup-steps", "9")


def refused(shell: Shell, *args: str, line: str) -> None:
    found = shell.run_here(*args)
    assert found.returncode == 2, found
    assert line in found.stderr
    assert found.stderr.count("\n") == 1, found.stderr


def refuse(*args, **kwargs) -> None:
    raise ValueError("a setting that does not fit")


@pytest.mark.costly
def test_a_refusal_after_the_folder_was_made_removes_it(shell: Shell, monkeypatch) -> None:
    refused(shell, *COMMAND, *TOO_LONG, line="is more than the run's 8 steps")
    with monkeypatch.context() as patched:
        patched.setattr("samovar.train.command.fit", refuse)
        refused(shell, *COMMAND, line="does not fit")
        refused(shell, *COMMAND, "--resume", "auto", line="does not fit")
    assert not (shell.folder / "runs").exists() or not list((shell.folder / "runs").iterdir())
    # the same name is free
    again = shell.run_here(*COMMAND)
    assert again.returncode == 0, again.stderr
    assert again.stdout.endswith("run: runs/r\n")
    with monkeypatch.context() as patched:
        patched.setattr("samovar.train.command.fit", refuse)
        refused(shell, "train", "--resume", "runs/r", line="does not fit")
    assert list((shell.folder / "runs" / "r" / "checkpoints").glob("step-*8"))


@pytest.mark.costly
def test_a_folder_that_was_there_before_keeps_what_it_held(shell: Shell, monkeypatch) -> None:
    folder = shell.folder / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "slurm.log").write_text("begun")
    monkeypatch.setattr("samovar.train.command.fit", refuse)
    refused(shell, *COMMAND, "--resume", "auto", line="does not fit")
    assert [path.name for path in folder.iterdir()] == ["slurm.log"]


@pytest.mark.costly
def test_a_refused_study_can_be_repeated_with_other_settings(shell: Shell) -> None:
    study = (
        "reproduce",
        "table1",
        "--scale",
        "digits",
        "--rows",
        "vit",
        "--seeds",
        "1",
        "--jobs",
        "1",
        "--epochs",
        "1",
    )
    refused(shell, *study, "--optim.warmup-steps", "900", line="is more than the run's")
    assert not list((shell.folder / "runs").rglob("config.json"))


@pytest.mark.costly
def test_a_refused_measurement_leaves_no_folder(shell: Shell, monkeypatch) -> None:
    monkeypatch.setattr("samovar.measure.command.measure", refuse)
    refused(shell, "measure", "vit-digits", "accuracy", "--source", "digits", line="does not fit")
    assert not (shell.folder / "runs").exists() or not list((shell.folder / "runs").iterdir())


def test_a_list_of_unreadable_images_stays_and_the_name_is_free(tmp_path: Path) -> None:
    config = Config(name="r", output=tmp_path)
    run, _ = new_run(config, CPU, take_over=False)
    run.bad_files.write_text("train\ta.jpg\tno image")
    with pytest.raises(ValueError, match="no"), removed_if_refused(run):
        raise ValueError("no")
    assert list(run.path.iterdir()) == [run.bad_files]
    again, note = new_run(config, CPU, take_over=False)
    assert (again.path, note) == (run.path, "")
    assert not again.bad_files.exists()
    other, note = new_run(config, CPU, take_over=False)
    assert other.path == tmp_path / "r-2"
    assert "exists" in note


@pytest.mark.parametrize(
    "record", [Record("train/loss", 1.0), Record("knn", 1.0, settings={"measurement": "knn"})], ids=lambda r: r.name
)
def test_what_was_worked_for_stays(record: Record, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "r")
    run.append(record)
    with pytest.raises(ValueError, match="no"), removed_if_refused(run, keep=holds_records):
        raise ValueError("no")
    assert run.records_path.is_file()
    with pytest.raises(ValueError, match="no"), removed_if_refused(run):
        raise ValueError("no")
    assert run.path.exists() == (record.name == "train/loss")
