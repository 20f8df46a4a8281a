"""Training as a generator of steps, and evaluation. No file is read or written here."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from samovar import restore
from samovar.config import Config
from samovar.data.loader import Batch
from samovar.models.factory import Classifier, create
from samovar.models.load import load_init
from samovar.objectives import Objective, adversarial
from samovar.objectives.contrastive import Projected, num_features
from samovar.runtime import Runtime, seed_everything
from samovar.sam import SamMemory, SamVariant, sam_backward
from samovar.train import optim


@dataclass
class TrainState:
    """All that changes from step to step; with the config it determines the rest of the run."""

    model: Classifier
    wrapped: nn.Module
    """`model` as the backward pass calls it: under a projection head, compiled and under DDP where
    asked for."""
    optimizer: Optimizer
    scaler: torch.amp.GradScaler | None
    ema: optim.Ema | None
    tally: dict[str, Tensor]
    """Counts kept on the device, so that a step reads nothing back: loss, steps, skipped, streak,
    tripped."""
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    """Step, loss and accuracy of the most accurate evaluation so far; `last`: of the latest."""
    last: dict[str, float] = field(default_factory=dict)
    projection: nn.Module | None = None
    """The head that a contrastive loss trains the encoder through; in no file of weights."""
    memory: SamMemory = field(default_factory=SamMemory)
    """What SAM's relatives keep from step to step."""
    notes: tuple[str, ...] = ()
    """For the reader: which weights it began from, and what was resized."""


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
    model = create(
        config.model, num_classes=num_classes, image_size=config.data.image_size, channels=channels
    )
    notes = load_init(model, config) if config.init else ()
    layout = torch.channels_last if config.run.channels_last else torch.preserve_format
    model = model.to(device=runtime.device, memory_format=layout)  # type: ignore[call-overload]
    names = ("loss", "steps", "skipped", "streak", "tripped")
    tally = {name: torch.zeros((), device=runtime.device) for name in names}
    _freeze(model, config)
    network = _projected(model, config, channels, runtime) if config.loss == "supcon" else model
    return replace(_start(model, network, config, runtime, tally), notes=notes)


def next_stage(state: TrainState, config: Config, runtime: Runtime) -> TrainState:
    """The state in which a classifier stage starts: weights and counts of the stage before,
    everything else new."""
    state.model.zero_grad()  # what the last step left would count in the norm of the first
    _freeze(state.model, config)
    started = _start(state.model, state.model, config, runtime, state.tally)
    return replace(started, step=state.step, best=state.best, last=state.last)


def _freeze(model: Classifier, config: Config) -> None:
    if config.model.trainable == "head":
        model.requires_grad_(False)
        for parameter in model.head_parameters():
            parameter.requires_grad_()
    elif (
        config.loss == "supcon"
    ):  # whose graph has no classifier: DDP would wait for its gradient, decay shrink it
        for parameter in model.head_parameters():
            parameter.requires_grad_(False)


def _projected(model: Classifier, config: Config, channels: int, runtime: Runtime) -> Projected:
    image = torch.zeros(1, channels, *[config.data.image_size] * 2, device=runtime.device)
    sizes = config.contrastive
    return Projected(model, num_features(model, image), sizes.hidden, sizes.projection).to(
        runtime.device
    )


def _start(
    model: Classifier,
    network: nn.Module,
    config: Config,
    runtime: Runtime,
    tally: dict[str, Tensor],
) -> TrainState:
    optimizer = optim.create_optimizer(network, config.optim)
    wrapped: nn.Module = torch.compile(network) if config.run.compile else network  # type: ignore[assignment]
    if runtime.world_size > 1:
        ids = [runtime.device] if runtime.device.type == "cuda" else None
        wrapped = DistributedDataParallel(wrapped, device_ids=ids, broadcast_buffers=False)
    return TrainState(
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(runtime.device.type)
        if runtime.dtype == torch.float16
        else None,
        ema=optim.Ema(model.body, config.optim.ema) if config.optim.ema else None,
        tally=tally,
        projection=network.projection if isinstance(network, Projected) else None,
    )


def steps(
    state: TrainState,
    stream: Iterable[Batch],
    objective: Objective,
    config: Config,
    runtime: Runtime,
    total: int,
    first: int = 0,
) -> Iterator[Step]:
    """Train on each batch of `stream`, yielding after every optimizer step; no I/O and, on a GPU,
    no host sync.

    Args:
        state: moves on with every step.
        stream: from where `state` stands.
        objective: what is minimized.
        config: how.
        runtime: where.
        total: steps of the learning rate's schedule, and
        first: the step at which it begins."""
    state.wrapped.train(
        config.model.trainable == "all"
    )  # a frozen encoder stays as it is, BatchNorm's statistics too
    for batch in stream:
        seed_everything(
            config.seed, state.step, runtime.rank
        )  # dropout is a function of the step: resume needs no RNG
        lr = optim.lr_at(state.step - first, config.optim, total)
        optim.set_lr(state.optimizer, lr)
        state.optimizer.zero_grad(set_to_none=True)
        state.memory.step = state.step - first
        rho = optim.rho_at(state.step - first, config, total)
        loss = backward(state, batch, objective, config, runtime, rho)
        grad_norm, finite = update(state, config.optim.clip_norm, config.sam)
        state.step += 1
        _count(state, loss, finite, config.run.max_nonfinite)
        yield Step(state.step, loss, grad_norm, finite, lr)


def backward(
    state: TrainState,
    batch: Batch,
    objective: Objective,
    config: Config,
    runtime: Runtime,
    rho: float | None = None,
) -> Tensor:
    """Leave the gradient of the mean loss over `batch` in `.grad`, plain or SAM; returns the clean
    loss.

    SAM ascends once per group of `sam.m` examples and the gradients add up, so m-sharpness and
    accumulation are one mechanism; each group is run in pieces of at most `run.micro_batch` images.
    Under `adversarial` the images climb from a random start, drawn for the whole batch, and the
    loss is that before their last move.

    Args:
        rho: radius of this step's perturbation, 0 for none; None is the config's."""
    rho = config.sam.rho if rho is None else rho
    m = (
        config.sam.m if rho and not config.sam.momentum else 0
    )  # along the momentum all groups climb alike
    if config.run.channels_last:
        batch = replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))
    attack = adversarial.begin(
        batch.images, config.adversarial, config.seed, state.step, runtime.rank
    )
    if attack:
        batch = replace(batch, images=attack.points)
    groups = list(batch.split(m or len(batch)))
    attacks = attack.split(m or len(batch)) if attack else itertools.repeat(None)
    total = torch.zeros((), device=runtime.device)
    for index, (group, part) in enumerate(zip(groups, attacks, strict=False)):
        pieces = list(group.split(config.run.micro_batch or len(group)))
        ascent = part.ascent([piece.images for piece in pieces]) if part else None
        losses = [_loss_of(piece, len(piece) / len(batch), objective, runtime) for piece in pieces]
        climbs = (
            _part(group, len(group) / len(batch), objective, config, runtime)
            if config.sam.fraction < 1
            else None
        )
        last = index == len(groups) - 1
        with contextlib.nullcontext() if last else _no_sync(state.wrapped):
            total += sam_backward(
                losses,
                state.wrapped,
                rho=rho,
                adaptive=config.sam.adaptive,
                eta=config.sam.eta,
                shared_ascent=config.sam.shared_ascent,
                scaler=state.scaler,
                input_ascent=ascent,
                ascent_loss_fn=climbs,
                variant=config.sam,
                memory=state.memory,
                num_groups=len(groups),
                optimizer=state.optimizer,
            )
    return total


def _part(
    group: Batch, share: float, objective: Objective, config: Config, runtime: Runtime
) -> list[Any]:
    """Losses of the images of a group that the climb's gradient is taken from: its first, as
    batches are in random order; they add up to `share` of their mean."""
    part = next(iter(group.split(max(1, round(config.sam.fraction * len(group))))))
    pieces = part.split(config.run.micro_batch or len(part))
    return [_loss_of(piece, share * len(piece) / len(part), objective, runtime) for piece in pieces]


def _loss_of(piece: Batch, weight: float, objective: Objective, runtime: Runtime) -> Any:
    def loss(model: nn.Module) -> Tensor:
        with runtime.autocast():
            return objective(model, piece).value * weight

    return loss


def _no_sync(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def update(state: TrainState, clip_norm: float, variant: SamVariant) -> tuple[Tensor, Tensor]:
    """Clip, then step the optimizer and the average unless the gradient is not finite.

    What decoupled WSAM subtracts beside the optimizer is not clipped.

    Returns:
        The gradient's norm before clipping, and whether it was finite: two scalars on the
        device."""
    optimizer, scaler = state.optimizer, state.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    grad_norm = optim.clip_(state.wrapped.parameters(), clip_norm)
    finite = torch.isfinite(grad_norm)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    else:
        optim.step_if(optimizer, finite)
    if state.memory.difference:
        state.memory.subtract_(optimizer, variant)
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


# --- evaluation
# ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats and top-1 accuracy over `n` examples."""

    loss: float
    accuracy: float
    n: int


@torch.no_grad()
def evaluate(
    model: nn.Module, stream: Iterable[Batch], objective: Objective, runtime: Runtime
) -> Evaluation:
    """Loss and accuracy in eval mode over all ranks' batches; the model's mode comes back as it
    was."""
    rows = []
    with restore.modes(model, training=False):
        for batch in stream:
            with runtime.autocast():
                loss = objective(model, batch)
            correct = (loss.logits.argmax(1) == batch.labels).sum()
            count = torch.tensor(len(batch), device=correct.device)
            rows.append(torch.stack([loss.value * len(batch), correct, count]))
    sums = torch.stack(rows).sum(0) if rows else torch.zeros(3, device=runtime.device)
    if runtime.world_size > 1:
        dist.all_reduce(sums)
    loss_sum, correct_sum, n = sums.tolist()
    return Evaluation(loss_sum / n, correct_sum / n, int(n))
