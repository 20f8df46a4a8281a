"""Test that the checks of benchmarks/gpu.py run: on a CPU, with the smallest sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
pytestmark = pytest.mark.costly


def check(*words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, dict]]:
    command = [sys.executable, SCRIPT, "--tiny", "--device", "cpu", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done, {line["check"]: line for line in lines}


def test_each_check_is_a_line_and_passes(tmp_path) -> None:
    names = "environment,restore,adapter,one_rank,lambda_max,landscape"
    done, found = check("--only", names, "--records", str(tmp_path / "gpu.jsonl"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(found) == names.split(",")
    assert all(found[name]["passed"] for name in ("restore", "adapter", "one_rank"))
    assert found["lambda_max"]["residual"] <= 1e-3 * abs(found["lambda_max"]["lambda_max"])
    assert (tmp_path / "gpu.jsonl").read_text() == done.stdout


def test_a_check_that_fails_says_why_and_ends_no_other() -> None:
    command = (
        "import sys, gpu; from gpu_checks import numbers\n"
        "def broken(bench): raise ZeroDivisionError('no')\n"
        "broken.__name__ = 'restore'\n"
        "gpu.CHECKS = {broken: 1, numbers.environment: 1}\n"
        "sys.argv = ['gpu.py', '--tiny', '--device', 'cpu']\n"
        "sys.exit(gpu.main())"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=SCRIPT.parent, capture_output=True, text=True)
    failed, other = (json.loads(line) for line in done.stdout.splitlines())
    assert (done.returncode, failed["error"], other["check"]) == (1, "ZeroDivisionError: no", "environment")


def test_an_unknown_check_is_refused() -> None:
    done, _ = check("--only", "sped")
    assert done.returncode == 2
    assert "no check is called sped; there are: environment" in done.stderr
