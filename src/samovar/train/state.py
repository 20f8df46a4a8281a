"""The state of training, and what a step gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from samovar.models.factory import Classifier
from samovar.sam import SamMemory
from samovar.train import optim
from samovar.train.sharding import Sharding
from samovar.train.teacher import Teacher


@dataclass
class TrainState:
    """Everything that changes from step to step; with the config it determines the rest."""

    model: Classifier
    wrapped: nn.Module
    """`model` as the backward pass calls it: with a projection head, compiled, in DDP, as set."""
    optimizer: Optimizer
    scaler: torch.amp.GradScaler | None
    ema: optim.Ema | None
    tally: dict[str, Tensor]
    """Counts on the device, which no step reads: loss, steps, skipped, streak, tripped."""
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    """Step, loss and accuracy of the most accurate evaluation so far."""
    last: dict[str, float] = field(default_factory=dict)
    """The same of the latest evaluation."""
    projection: nn.Module | None = None
    """The head between encoder and contrastive loss; no file of weights holds it."""
    memory: SamMemory = field(default_factory=SamMemory)
    """What relatives of SAM keep from step to step."""
    teacher: Teacher | None = None
    """What the trajectory loss of SAF or MESA stays close to."""
    sharding: Sharding | None = None
    """How the weights are split over ranks; None if each rank holds all."""
    stale: int = 0
    """Evaluations since the most accurate one, counted under `run.patience`."""
    micro_batch: int = 0
    """Most images per pass since memory ran out; 0 as long as the config's number holds."""
    notes: tuple[str, ...] = ()
    """Notes for the user: the weights at the start, and what was resized."""


@dataclass(frozen=True)
class Step:
    """One optimizer step; its tensors stay on the device until someone reads them."""

    step: int
    """Steps done, including this one."""
    loss: Tensor
    grad_norm: Tensor
    finite: Tensor
    lr: float
    note: str = ""
    """A line for the reader: how the step was divided because memory ran out."""
