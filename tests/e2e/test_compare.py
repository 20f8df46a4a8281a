"""`samovar compare` from the shell: costs, runs, page; a second time nothing is done again."""

import json
from pathlib import Path

from samovar.runs import checkpoint
from samovar.runs.records import RunDir
from tests.conftest import Shell

WORDS = ["compare", "vit-digits", "--sam", "quarter", "--seeds", "1", "--budget", "both", "--epochs", "2",
         "--output", "found", "--measure.images", "64", "--measure.corruption-images", "4",
         "--measure.severities", "3", "--measure.max-steps", "30"]  # fmt: skip


def test_it_ends_in_a_table_and_a_page_and_a_second_time_repeats_nothing(shell: Shell) -> None:
    first = shell.run(*WORDS)
    assert first.returncode == 0, first.stderr
    out = shell.folder / "found"
    assert "measuring the cost of a step: plain, sam, quarter" in first.stdout
    assert "5 runs, 1 of each relative\n" in first.stdout
    assert "is not above 0 by the test, so shares of it have no meaning." in first.stdout  # of one seed

    costs = json.loads((out / "compare.json").read_text())["costs"]
    assert 1 < costs["quarter"]["ratio"] < costs["sam"]["ratio"] < 3
    steps = json.loads((out / "vit-digits-quarter-time-seed0" / "config.json").read_text())["steps"]
    assert steps == round(8 * costs["sam"]["ratio"] / costs["quarter"]["ratio"])

    numbers = {
        (r.where["relative"], r.where["budget"], r.where["key"]): r for r in RunDir(out).records("compare/number")
    }
    assert len(numbers) == 3 * 2 * 3
    last = list(RunDir(out / "vit-digits-quarter-seed0").records("val/accuracy"))[-1].value * 100
    assert numbers["quarter", "steps", "top1"].settings["values"] == [last]
    assert numbers["sam", "time", "top1"].value == numbers["sam", "steps", "top1"].value
    assert all(record.n == 1 for (_, _, key), record in numbers.items() if key != "lambda_max")
    page = (out / "compare.html").read_text()
    assert "SAM and its relatives" in page
    assert 'data-for="pareto-0-top1"' in page
    assert (
        f"| quarter | {costs['quarter']['ratio']:.2f} (1.25 counted) | 8 | {last:.4g} |"
        in (out / "compare.md").read_text()
    )

    kept = {p: p.stat().st_mtime_ns for p in out.glob("*-seed0/**/*") if p.is_file()}
    second = shell.run_here(*WORDS)
    assert second.returncode == 0, second.stderr
    assert "measuring" not in second.stdout
    assert "5 runs, 1 of each relative; 5 are there already\n" in second.stdout
    assert {p: p.stat().st_mtime_ns for p in out.glob("*-seed0/**/*") if p.is_file()} == kept
    assert json.loads((out / "compare.json").read_text())["costs"] == costs
    assert (out / "compare.html").read_text() == page


def test_tails_branch_from_one_stable_phase_and_end_in_the_bits_of_whole_runs(shell: Shell) -> None:
    words = [word for word in WORDS if word not in ("--budget", "both")]
    words[words.index("quarter")] = "quarter+decay"
    result = shell.run_here(*words, "--optim.schedule", "wsd")
    assert result.returncode == 0, result.stderr
    assert "2 of them are tails: the 6 steps before the decay are trained once for each seed" in result.stdout
    out = shell.folder / "found"
    names = {name: out / f"vit-digits-{name}-seed0" for name in ("stable", "plain", "quarter+decay", "sam")}
    for name in ("plain", "quarter+decay"):
        (left,) = RunDir(names[name]).records("train/branch")
        assert (left.value, Path(left.settings["run"]).name) == (6, names["stable"].name)
    assert not list(RunDir(names["sam"]).records("train/branch"))
    tail = names["quarter+decay"]
    whole = shell.run_here("train", "--config", str(tail / "config.json"), "--output", "whole", "--name", "w")
    assert whole.returncode == 0, whole.stderr
    both = [
        (checkpoint.path_of(run / "checkpoints", 8) / "model.safetensors").read_bytes()
        for run in (tail, shell.folder / "whole" / "w")
    ]
    assert both[0] == both[1]
    costs = json.loads((out / "compare.json").read_text())["costs"]
    assert costs["quarter+decay"]["passes"] == 1.0625
    again = shell.run_here(*words, "--optim.schedule", "wsd")
    assert "3 are there already" in again.stdout
    assert "tails" not in again.stdout
