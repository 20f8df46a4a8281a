"""Several gloo processes of one test; one that hangs fails it."""

import time
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing as mp


def run_ranks(work: Callable[[int, Path], None], folder: Path, count: int, seconds: float) -> None:
    """Run `work(rank, folder)` in `count` new processes; kill them all after `seconds`."""
    processes = mp.start_processes(work, (folder,), count, join=False, start_method="spawn")
    try:
        deadline = time.monotonic() + seconds
        while not processes.join(timeout=1):
            assert time.monotonic() < deadline, f"{count} ranks hang: no end after {seconds} s"
    finally:
        for process in processes.processes:
            process.kill()
