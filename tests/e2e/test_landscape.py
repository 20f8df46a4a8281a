"""Landscapes by several processes: the same to the bit as by one, and nothing is lost when one of them ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.measure import grid_processes
from samovar.measure.grid import Execution
from samovar.measure.plane import Plane, axis, filter_direction, loss_plane
from tests.conftest import ROOT
from tests.e2e.ranks import run_ranks

SECONDS = 400  # until a test gives up on another process


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(288, 3))


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (9, 4)]


def plane(loss: Any, how: Execution, points: int = 5) -> Plane:
    model, generator, x = net(), torch.Generator().manual_seed(2), axis(points, 1.0)
    return loss_plane(model, loss, data(), [filter_direction(model, generator) for _ in range(2)], x, x, how)


def judged(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]), logits.argmax(1) == batch[1]


@dataclass(frozen=True)
class Signed:
    """The loss, which leaves a file per process in `folder`/signs; the first process waits there for the second, after
    its first row."""

    folder: Path
    fails: bool = False
    """Whether it fails in the second process."""

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        (self.folder / "signs" / str(os.getpid())).touch()
        if multiprocessing.parent_process():
            if self.fails:
                raise FloatingPointError("no such number")
        elif (self.folder / "rows" / "row-0000.npy").exists():
            deadline = time.monotonic() + SECONDS
            while len(signs(self.folder)) < 2:
                assert time.monotonic() < deadline, "no second process"
                time.sleep(0.05)
        return judged(model, batch)


def signs(folder: Path) -> list[int]:
    return [int(path.name) for path in (folder / "signs").iterdir()]


def rows(folder: Path) -> int:
    return len(list((folder / "rows").glob("row-*.npy")))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "signs").mkdir()
    return tmp_path


def test_two_processes_give_the_grid_of_one_to_the_bit(folder, monkeypatch):
    monkeypatch.setattr(grid_processes, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    alone = plane(judged, Execution())
    both = plane(Signed(folder), Execution(folder / "rows", processes=0))
    assert len(signs(folder)) == 2
    assert torch.equal(both.loss, alone.loss)
    assert torch.equal(both.accuracy, alone.accuracy)
    assert both.center_loss == alone.center_loss
    assert sorted(path.suffix for path in (folder / "rows").iterdir()) == [".npy"] * 5 + [".txt"]


def test_a_worker_that_fails_ends_the_grid_with_one_error_and_rows_stay(folder):
    with pytest.raises(ValueError, match="a process that computes rows failed: FloatingPointError: no such number"):
        plane(Signed(folder, fails=True), Execution(folder / "rows", processes=2), points=301)
    assert 0 < rows(folder) < 301
    assert not multiprocessing.active_children()


def test_what_cannot_be_sent_is_computed_here_and_said(capsys):
    found = plane(lambda model, batch: judged(model, batch), Execution(processes=2))
    assert torch.equal(found.loss, plane(judged, Execution()).loss)
    err = capsys.readouterr().err
    assert err.startswith("samovar: the grid cannot be sent to other processes (")
    assert err.count("\n") == 1
    assert torch.get_num_threads() == 1


SCRIPT = """
import signal, sys, time
from pathlib import Path
import torch
from samovar.measure.grid import Execution
from tests.e2e import test_landscape as test

class Waiting(test.Signed):
    def __call__(self, model, batch):
        found = super().__call__(model, batch)
        if len(test.signs(self.folder)) == 2:
            print("both", flush=True)
            time.sleep(600)
        return found

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what runs in the background
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    test.plane(Waiting(folder), Execution(folder / "rows", processes=2))
"""


def test_an_interruption_ends_all_processes_and_the_rest_is_computed_later(folder):
    (folder / "script.py").write_text(SCRIPT)
    command, environment = [sys.executable, folder / "script.py", folder], os.environ | {"PYTHONPATH": path_of_python()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
    try:
        assert process.stdout.readline() == "both\n"
        os.killpg(process.pid, signal.SIGINT)  # as ctrl-C does
        _, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert err.count("Traceback") == 1, err
    assert err.endswith("KeyboardInterrupt\n")
    for pid in signs(folder):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    calls, kept = [], rows(folder)

    def counted(model, batch):
        calls.append(batch)
        return judged(model, batch)

    assert torch.equal(plane(counted, Execution(folder / "rows")).loss, plane(judged, Execution()).loss)
    assert len(calls) == (5 - kept) * 5 * 2  # points of a row, batches


def path_of_python() -> str:
    return os.pathsep.join([str(ROOT), *sys.path])


def failing(model: nn.Module, batch: Any) -> Tensor:
    if dist.get_rank() == 1:
        raise FloatingPointError("no such number")
    return judged(model, batch)[0]


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    calls: list[Any] = []

    def counted(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        calls.append(batch)
        return judged(model, batch)

    found = plane(counted, Execution(folder / "rows", distributed=True))
    results: dict[str, Any] = {"loss": found.loss, "accuracy": found.accuracy, "center": found.center_loss}
    results["points"] = len(calls) // 2
    dist.barrier()
    (folder / "rows" / f"row-000{rank}.npy").unlink()
    dist.barrier()
    resumed = plane(judged, Execution(folder / "rows", distributed=True))
    results["resumed"] = resumed.loss
    try:
        plane(failing, Execution(distributed=True))
    except (ValueError, FloatingPointError) as error:
        results["failure"] = str(error)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_share_the_rows_and_both_get_the_grid_of_one(tmp_path):
    run_ranks(work, tmp_path, 2, SECONDS)
    alone = plane(judged, Execution())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(found["loss"], alone.loss)
        assert torch.equal(found["accuracy"], alone.accuracy)
        assert found["center"] == alone.center_loss
        assert found["points"] == (15, 10)[rank]
        assert torch.equal(found["resumed"], alone.loss)
        assert "no such number" in found["failure"]
        assert ("rank 1 failed" in found["failure"]) == (rank == 0)
