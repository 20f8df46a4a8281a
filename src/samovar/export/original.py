"""Open the network to be copied, and compare copies with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samovar.export.preprocessing import Interface, interface_of
from samovar.models.normalization import Normalization
from samovar.models.open import Opened, open_model
from samovar.runs import checkpoint as checkpoints
from samovar.runs.records import RunDir

BATCH_SIZES = (1, 2, 7)
"""Batch sizes on which a copy is compared; traced programs may treat 1 as a special case."""
TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit where that is above 1.

Other libraries add up in another order, which changes float32 logits by some 1e-6."""


@dataclass(frozen=True)
class Original:
    """The network that a copy has to agree with, and its origin."""

    title: str
    opened: Opened
    interface: Interface
    run: RunDir | None
    """Run folder with its records; None for other models."""
    step: int
    """Optimizer steps that made the weights; 0 for other models than runs."""
    weights: str
    """Name of the weights within the run."""

    @property
    def note(self) -> str:
        """Return a line on the normalization that is assumed; empty for a run, which has it."""
        if self.run:
            return ""
        config = self.opened.config
        source = self.opened.normalization or f"the default for {config.name}"
        return Normalization(config.mean, config.std, source).line

    @property
    def home(self) -> Path:
        """Return the default folder for copies."""
        return self.run.path if self.run else Path()


def open_original(
    what: str, *, checkpoint: str = "best", name: str = "", title: str = ""
) -> Original:
    """Open a model at one of its checkpoints.

    Args:
        what: as in `open_model`.
        checkpoint: for a run: `best`, `last`, or a step as `300` or `step-300`.
        name: the network of a bare file of weights.
        title: what to call it; empty: the last part of `what`.

    Raises:
        ValueError: an unknown name, or a checkpoint that does not exist."""
    opened = open_model(what, name=name)
    run = RunDir.open(Path(what)) if opened.data else None
    title = title or Path(what).resolve().name
    if run is None:
        if checkpoint != "best":
            raise ValueError(
                f"--checkpoint {checkpoint} needs a run, and {what} is none; leave it out"
            )
        return Original(title, opened, interface_of(opened), None, 0, Path(what).name)
    path = _choose(run, checkpoint)
    found = checkpoints.load(path)
    # open_model has loaded the best checkpoint, which may not be the one asked for
    opened.model.body.load_state_dict(found.ema or found.model)
    weights = ("average of " if found.ema else "") + path.name
    return Original(title, opened, interface_of(opened), run, found.step, weights)


def _choose(run: RunDir, which: str) -> Path:
    steps = checkpoints.steps_saved(run.checkpoints)
    # `step-300`, `300` and the folder's own `step-00000300` name the same checkpoint
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
    """Return the largest difference of a logit between the original and its copy, on random images.

    Args:
        original: maps images in [0, 1] to logits.
        copy: maps images [B, C, S, S] in [0, 1] to logits [B, K].
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
        allowed = tolerance * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:  # written so that NaN is refused too
            raise ValueError(f"its logits differ by {difference:.2g} on {batch_size} images")
        largest = max(largest, difference)
    return largest
