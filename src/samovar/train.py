"""Training as a generator of steps, and evaluation. No file is read or written here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from samovar import optim
from samovar.config import Config
from samovar.data.loader import Batch
from samovar.models import Classifier, create
from samovar.objectives import Objective
from samovar.runtime import Runtime, seed_everything
from samovar.sam import plain_backward, sam_backward


@dataclass
class TrainState:
    """All that changes from step to step; with the config it determines the rest of the run."""

    model: Classifier
    wrapped: nn.Module
    """`model` as the backward pass calls it: compiled and under DDP where asked for."""
    optimizer: Optimizer
    scaler: torch.amp.GradScaler | None
    ema: optim.Ema | None
    tally: dict[str, Tensor]
    """Counts kept on the device, so that a step reads nothing back: loss, steps, skipped, streak, tripped."""
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    """Step, loss and accuracy of the most accurate evaluation so far; `last`: of the latest."""
    last: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One optimizer step; tensors stay on the device until someone reads them."""

    step: int
    """Steps done, this one included."""
    loss: Tensor
    grad_norm: Tensor
    finite: Tensor
    lr: float


def build(config: Config, runtime: Runtime, *, num_classes: int, channels: int) -> TrainState:
    """The state before the first step; a function of the config alone."""
    seed_everything(config.seed)
    model = create(config.model, num_classes=num_classes, image_size=config.data.image_size, channels=channels)
    layout = torch.channels_last if config.run.channels_last else torch.preserve_format
    model = model.to(device=runtime.device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = optim.create_optimizer(model, config.optim)
    wrapped: nn.Module = torch.compile(model) if config.run.compile else model  # type: ignore[assignment]
    if runtime.world_size > 1:
        ids = [runtime.device] if runtime.device.type == "cuda" else None
        wrapped = DistributedDataParallel(wrapped, device_ids=ids, broadcast_buffers=False)
    names = ("loss", "steps", "skipped", "streak", "tripped")
    return TrainState(
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(runtime.device.type) if runtime.dtype == torch.float16 else None,
        ema=optim.Ema(model.body, config.optim.ema) if config.optim.ema else None,
        tally={name: torch.zeros((), device=runtime.device) for name in names},
    )


def steps(
    state: TrainState, stream: Iterable[Batch], objective: Objective, config: Config, runtime: Runtime, total: int
) -> Iterator[Step]:
    """Train on each batch of `stream`, yielding after every optimizer step; no I/O and, on a GPU, no host sync."""
    state.wrapped.train()
    for batch in stream:
        seed_everything(config.seed, state.step, runtime.rank)  # dropout is a function of the step: resume needs no RNG
        lr = optim.lr_at(state.step, config.optim, total)
        optim.set_lr(state.optimizer, lr)
        state.optimizer.zero_grad(set_to_none=True)
        loss = backward(state, batch, objective, config, runtime)
        grad_norm, finite = update(state, config.optim.clip_norm)
        state.step += 1
        _count(state, loss, finite, config.run.max_nonfinite)
        yield Step(state.step, loss, grad_norm, finite, lr)


def backward(state: TrainState, batch: Batch, objective: Objective, config: Config, runtime: Runtime) -> Tensor:
    """Leave the gradient of the mean loss over `batch` in `.grad`, plain or SAM; returns the clean loss.

    SAM ascends once per group of `sam.m` examples and the gradients add up, so m-sharpness and accumulation are one
    mechanism; each group is run in pieces of at most `run.micro_batch` images."""
    m = config.sam.m if config.sam.rho else 0
    groups = list(batch.split(m or len(batch)))
    total = torch.zeros((), device=runtime.device)
    for index, group in enumerate(groups):
        pieces = [
            _loss_of(piece, len(piece) / len(batch), objective, config, runtime)
            for piece in group.split(config.run.micro_batch or len(group))
        ]
        last = index == len(groups) - 1
        with contextlib.nullcontext() if last else _no_sync(state.wrapped):
            total += _gradient(pieces, state, config)
    return total


def _gradient(pieces: list[Any], state: TrainState, config: Config) -> Tensor:
    sam = config.sam
    if sam.rho == 0:
        return plain_backward(pieces, state.wrapped, scaler=state.scaler)
    return sam_backward(
        pieces,
        state.wrapped,
        rho=sam.rho,
        adaptive=sam.adaptive,
        eta=sam.eta,
        shared_ascent=sam.shared_ascent,
        scaler=state.scaler,
    )


def _loss_of(piece: Batch, weight: float, objective: Objective, config: Config, runtime: Runtime) -> Any:
    if config.run.channels_last:
        piece = replace(piece, images=piece.images.contiguous(memory_format=torch.channels_last))

    def loss(model: nn.Module) -> Tensor:
        with runtime.autocast():
            return objective(model, piece).value * weight

    return loss


def _no_sync(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def update(state: TrainState, clip_norm: float) -> tuple[Tensor, Tensor]:
    """Clip, then step the optimizer and the average unless the gradient is not finite.

    Returns:
        The gradient's norm before clipping, and whether it was finite: two scalars on the device."""
    optimizer, scaler = state.optimizer, state.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    grad_norm = optim.clip_(state.model.parameters(), clip_norm)
    finite = torch.isfinite(grad_norm)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    else:
        optim.step_if(optimizer, finite)
    if state.ema is not None:
        state.ema.update(state.model.body)
    return grad_norm, finite


def _count(state: TrainState, loss: Tensor, finite: Tensor, limit: int) -> None:
    tally, bad = state.tally, (~finite).float()
    tally["loss"] += torch.where(finite, loss, torch.zeros_like(loss))
    tally["steps"] += 1 - bad
    tally["skipped"] += bad
    tally["streak"].add_(1).mul_(bad)
    first = (tally["streak"] == limit) & (tally["tripped"] == 0)
    tally["tripped"] += first * state.step


# --- evaluation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats and top-1 accuracy over `n` examples."""

    loss: float
    accuracy: float
    n: int


@torch.no_grad()
def evaluate(model: nn.Module, stream: Iterable[Batch], objective: Objective, runtime: Runtime) -> Evaluation:
    """Loss and accuracy in eval mode over all ranks' batches; the model's mode comes back as it was."""
    was_training = model.training
    model.eval()
    rows = []
    for batch in stream:
        with runtime.autocast():
            loss = objective(model, batch)
        correct = (loss.logits.argmax(1) == batch.labels).sum()
        rows.append(torch.stack([loss.value * len(batch), correct, torch.tensor(len(batch), device=correct.device)]))
    model.train(was_training)
    sums = torch.stack(rows).sum(0) if rows else torch.zeros(3, device=runtime.device)
    if runtime.world_size > 1:
        dist.all_reduce(sums)
    loss_sum, correct_sum, n = sums.tolist()
    return Evaluation(loss_sum / n, correct_sum / n, int(n))
