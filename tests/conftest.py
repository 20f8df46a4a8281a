"""Fixtures and helpers that several test files share, and the settings of the processes that run them."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from samovar import cli  # imports no torch
from tests import quick

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Set before torch is imported here, in the workers of pytest-xdist and in every process that a test starts: each
# worker computes on one thread, so that as many workers as there are cores do not fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A heartbeat between the lines that a test reads would depend on how busy the machine is.
os.environ.setdefault("SAMOVAR_HEARTBEAT", "0")

# Some machines forbid Python to cache bytecode. Then each of the processes that the tests start compiles all of torch
# anew, 15 seconds each time, so the tests keep a cache of their own, away from the sources.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / ".pytest_cache" / "bytecode"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    quick.mark(items)


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep torch on one thread, whatever a test before this one asked for: small tensors run fastest on one."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


def assert_refused(args: str, line: str, capsys) -> None:
    """The command line ends with exit code 2 and one line that says `line`."""
    with pytest.raises(SystemExit) as caught:
        cli.main(args.split())
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.startswith("samovar: ")
    assert err.count("\n") == 1, err


class Shell:
    """Runs `python -m samovar` as a person would, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *args: str, **options) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.Popen(
            [sys.executable, "-m", "samovar", *args],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that runs the tests in the background has them and their children ignore SIGINT.
            **{"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)} | options,
        )

    def run(self, *args: str, timeout: float = 240, **options) -> subprocess.CompletedProcess:
        process = self.start(*args, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def run_here(self, *args: str) -> subprocess.CompletedProcess:
        """The same as `run` in this process, for commands whose own process is not what a test is about.

        A new process spends five seconds on imports before it does anything."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main(list(args))
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


@pytest.fixture
def shell(tmp_path) -> Shell:
    return Shell(tmp_path)
