"""Test the way from a folder of photos to an accuracy, on real photos.

Set SAMOVAR_FLOWERS to a folder of some 600 training photos with class folders, in train and val."""

import os
import re
import time

import pytest

from tests.conftest import Shell

FLOWERS = os.environ.get("SAMOVAR_FLOWERS", "")
NETWORK = "vit-cifar-t8"


@pytest.mark.slow
@pytest.mark.skipif(not FLOWERS, reason="SAMOVAR_FLOWERS names no folder of photos")
def test_a_folder_of_photos_is_fine_tuned_to_an_accuracy(shell: Shell) -> None:
    # a small network trained here stands for pretrained weights, as a bare file
    source = [
        "train",
        "vit-digits",
        "--model.name",
        NETWORK,
        "--image-size",
        "32",
        "--epochs",
        "20",
        "--name",
        "source",
    ]
    made = shell.run_here(*source)
    assert made.returncode == 0, made.stderr
    (weights,) = (shell.folder / "runs" / "source" / "checkpoints").glob("step-*[0-9]/model.safetensors")
    weights.rename(shell.folder / "small.safetensors")

    clock, processor = time.perf_counter(), time.process_time()
    found = shell.run_here(
        "train", FLOWERS, "--init", "small.safetensors", "--model.name", NETWORK, "--image-size", "64", "--name", "mine"
    )
    print(f"{time.perf_counter() - clock:.0f} s, {time.process_time() - processor:.0f} s of processor time")
    print(found.stdout)
    assert found.returncode == 0, found.stderr
    accuracy = float(re.search(r"done: best val accuracy ([\d.]+) %", found.stdout)[1])
    assert accuracy > 35  # five classes: chance is 20 %
    assert found.stdout.index("cost: ") < found.stdout.index("before fine-tuning")
