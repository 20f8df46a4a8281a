"""The network that is copied, with what is known of where it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samovar.export.preprocessing import Interface, interface_of
from samovar.models.open import Opened, open_model
from samovar.runs import checkpoint as checkpoints
from samovar.runs.records import RunDir

BATCH_SIZES = (1, 2, 7)
"""Of the images on which a copy is compared; one is a case of its own to programs that are
traced."""
TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest of them where that is above 1; other
libraries add up in another order, which moves float32 logits by some 1e-6."""


@dataclass(frozen=True)
class Original:
    """What a copy has to agree with."""

    title: str
    opened: Opened
    interface: Interface
    run: RunDir | None
    """Where its records are; None of a model that is of no run."""
    step: int
    """Optimizer steps that made the weights; 0 where it is of no run."""
    weights: str
    """Which weights of the run they are."""

    @property
    def home(self) -> Path:
        """Where copies go unless another place is given."""
        return self.run.path if self.run else Path()


def open_original(
    what: str, *, checkpoint: str = "best", name: str = "", title: str = ""
) -> Original:
    """Open a model at one of its checkpoints.

    Args:
        what: as `open_model` takes.
        checkpoint: of a run: `best`, `last`, a step as `300` or `step-300`.
        name: the network of a bare file of weights.
        title: what to call it; empty is the last part of `what`.

    Raises:
        ValueError: nothing of this name, a checkpoint that is not there."""
    opened = open_model(what, name=name)
    run = RunDir.open(Path(what)) if opened.data else None
    title = title or Path(what).resolve().name
    if run is None:
        if checkpoint != "best":
            raise ValueError(
                f"--checkpoint {checkpoint} is of runs, and {what} is none; leave it out"
            )
        return Original(title, opened, interface_of(opened), None, 0, Path(what).name)
    path = _choose(run, checkpoint)
    found = checkpoints.load(path)
    opened.model.body.load_state_dict(found.ema or found.model)
    weights = ("average of " if found.ema else "") + path.name
    return Original(title, opened, interface_of(opened), run, found.step, weights)


def _choose(run: RunDir, which: str) -> Path:
    steps = checkpoints.steps_saved(run.checkpoints)
    asked = which.removeprefix("step-").lstrip("0") or "0"
    if not steps:
        raise ValueError(f"{run.path} has no checkpoint yet; train it")
    if which not in ("best", "last") and not (asked.isdigit() and int(asked) in steps):
        given = ", ".join(f"step-{step}" for step in steps)
        raise ValueError(f"--checkpoint {which} is not there; give best, last or one of {given}")
    return checkpoints.choose(run.checkpoints, which if which in ("best", "last") else asked)


def compare(
    original: Original, copy: Callable[[Tensor], Tensor], tolerance: float = TOLERANCE
) -> float:
    """The largest difference of a logit between the original and its copy, on random images.

    Args:
        original: gives logits of images in [0, 1].
        copy: images [B, C, S, S] in [0, 1] to logits [B, K].
        tolerance: as `TOLERANCE`.

    Raises:
        ValueError: the copy's logits differ by more, or are not finite."""
    size, generator = original.interface.image_size, torch.Generator().manual_seed(0)
    largest = 0.0
    for batch_size in BATCH_SIZES:
        images = torch.rand(
            batch_size, original.interface.channels, size, size, generator=generator
        )
        with torch.no_grad():
            expected, found = original.opened.model(images), copy(images)
        if found.shape != expected.shape:
            raise ValueError(
                f"its logits have shape {list(found.shape)}, not {list(expected.shape)}"
            )
        difference = float((found - expected).abs().max())
        if not difference <= tolerance * max(
            1.0, float(expected.abs().max())
        ):  # nan is no match either
            raise ValueError(f"its logits differ by {difference:.2g} on {batch_size} images")
        largest = max(largest, difference)
    return largest
