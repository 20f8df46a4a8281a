"""`samovar reproduce` from the shell: from nothing to the page, interrupted on the way."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samovar import cli
from samovar.runs.records import RunDir

WORDS = ["reproduce", "table1", "--scale", "digits", "--seeds", "1", "--jobs", "1", "--epochs", "2"]
SHORT = ["--measure.images", "64", "--measure.corruption-images", "4", "--measure.draws", "2",
         "--measure.max-steps", "4", "--measure.ntk-batches", "1"]  # fmt: skip


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "samovar", *WORDS, *SHORT, "--output", str(folder), *more]


def marks(folder: Path) -> dict[str, tuple[int, str]]:
    """When each run that is done was done, and its records then."""
    files = folder.glob("*/reproduced.json")
    return {p.parent.name: (p.stat().st_mtime_ns, (p.parent / "records.jsonl").read_text()) for p in files}


def test_interrupted_and_restarted_it_repeats_no_finished_run_and_ends_in_the_page(tmp_path, capsys) -> None:
    first = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout
    lines = [first.stdout.readline() for _ in range(5)]  # the plan, its cost, two runs that are done
    first.send_signal(signal.SIGTERM)
    _, complaint = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM
    assert lines[1] == "6 runs, 1 of each setting\n"
    assert lines[2].startswith("about ")
    assert "the same command goes on from here: samovar reproduce table1" in complaint
    done = marks(tmp_path)
    assert len(done) >= 2
    time.sleep(0.01)  # so that a file written again has another time

    again = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=280)
    assert again.returncode == 0, again.stderr
    left = int(re.search(r"(\d+) are there already", again.stdout)[1])
    assert left >= 2
    finished = [name for name, (when, _) in done.items() if marks(tmp_path)[name][0] == when]
    assert len(finished) == left
    assert all(marks(tmp_path)[name][1] == done[name][1] for name in finished)
    assert len(marks(tmp_path)) == 6

    claims = [r for r in RunDir(tmp_path / "table1").records() if r.name == "reproduce/claim"]
    assert {r.settings["verdict"] for r in claims} <= {"held", "not held", "undecided", "not measured"}
    numbers = [r for r in RunDir(tmp_path / "table1").records() if r.name == "reproduce/number"]
    top1 = next(r for r in numbers if r.where == {"study": "table1", "row": "ViT, SAM", "column": "accuracy, %"})
    last = list(RunDir(tmp_path / "vit-digits-sam-seed0").records("val/accuracy"))[-1].value * 100
    assert (top1.value, top1.settings["values"], top1.settings["paper"], top1.n) == (last, [last], 79.9, 1)
    page = (tmp_path / "table1.html").read_text()
    assert "Claims of table1" in page
    assert "paper 1644.4" in page
    assert f"{last:.4g} [79.9]" in (tmp_path / "table1.md").read_text()

    with pytest.raises(SystemExit) as stop:
        cli.main([*command(tmp_path)[3:], "--epochs", "3"])
    assert stop.value.code == 2
    assert "holds a run with --epochs 2.0, not 3.0; give another --output" in capsys.readouterr().err


def test_a_run_that_was_trained_by_itself_is_taken_as_it_is(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "figure3", "--scale", "digits", "--seeds", "1", "--jobs", "1", "--epochs", "1"]
    cli.main([*words, "--output", "runs", "--plan"])
    plan = capsys.readouterr().out.splitlines()
    trained = next(line for line in plan if line.startswith("samovar train vit-digits "))
    cli.main(shlex.split(trained)[1:])
    run = tmp_path / "runs" / "vit-digits-seed0"
    weights = [(path, path.stat().st_mtime_ns) for path in run.glob("checkpoints/step-*/model.safetensors")]
    cli.main([*words, "--output", "runs"])
    assert [(path, path.stat().st_mtime_ns) for path, _ in weights] == weights
    assert "steps" in json.loads((run / "reproduced.json").read_text())
    assert "ViT, seed 0" in capsys.readouterr().out
