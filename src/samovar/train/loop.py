"""Training as a generator of steps, and evaluation; nothing here reads or writes a file."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from samovar.config import Config, shard_ranks
from samovar.data.loader import Batch
from samovar.models.factory import Classifier, create
from samovar.models.load import load_init
from samovar.objectives import Objective, adversarial
from samovar.objectives.contrastive import Projected, num_features
from samovar.runtime import Runtime, seed_everything
from samovar.sam import SamVariant, sam_backward
from samovar.sam.module_passes import LossFn
from samovar.train import optim, schedules
from samovar.train.blocks import checkpoint_
from samovar.train.memory import backward_in_pieces
from samovar.train.sharding import shard_
from samovar.train.state import Step as Step
from samovar.train.state import TrainState as TrainState
from samovar.train.teacher import teacher_of


def build(config: Config, runtime: Runtime, *, num_classes: int, channels: int) -> TrainState:
    """Return the state before the first step, a function of the config alone."""
    seed_everything(config.seed)
    model = create(
        config.model, num_classes=num_classes, image_size=config.data.image_size, channels=channels
    )
    notes = load_init(model, config) if config.init else ()
    layout = torch.channels_last if config.run.channels_last else torch.preserve_format
    # a network that is to be sharded may not fit the device: it moves there block by block
    device = runtime.device if shard_ranks(config.run.shard, runtime.world_size) == 1 else None
    model = model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    if config.run.checkpointing:
        checkpoint_(model)
    counts = ("loss", "steps", "skipped", "streak", "tripped")
    tally = {name: torch.zeros((), device=runtime.device) for name in counts}
    _freeze(model, config)
    network = _projected(model, config, channels, runtime) if config.loss == "supcon" else model
    return replace(_start(model, network, config, runtime, tally), notes=notes)


def next_stage(state: TrainState, config: Config, runtime: Runtime) -> TrainState:
    """Return the state at the start of a classifier stage: old weights and counts, the rest new."""
    # Gradients that the last step left would count in the norm of the first.
    state.model.zero_grad()
    _freeze(state.model, config)
    started = _start(state.model, state.model, config, runtime, state.tally)
    kept = ("step", "best", "last", "stale", "micro_batch")
    return replace(started, **{name: getattr(state, name) for name in kept})


def _freeze(model: Classifier, config: Config) -> None:
    """Switch off the gradients of the parameters that do not train."""
    if config.model.trainable == "head":
        model.requires_grad_(False)
        for parameter in model.head_parameters():
            parameter.requires_grad_()
    elif config.loss == "supcon":
        # The loss does not reach the classifier: DDP would wait for its gradient, and weight decay
        # would shrink it.
        for parameter in model.head_parameters():
            parameter.requires_grad_(False)


def _projected(model: Classifier, config: Config, channels: int, runtime: Runtime) -> Projected:
    image = torch.zeros(1, channels, *[config.data.image_size] * 2, device=runtime.device)
    sizes = config.contrastive
    projected = Projected(model, num_features(model, image), sizes.hidden, sizes.projection)
    return projected.to(runtime.device)


def _start(
    model: Classifier,
    network: nn.Module,
    config: Config,
    runtime: Runtime,
    tally: dict[str, Tensor],
) -> TrainState:
    sharding = shard_(network, config.run.shard, runtime)
    optimizer = optim.create_optimizer(network, config.optim)
    wrapped: nn.Module = torch.compile(network) if config.run.compile else network  # type: ignore[assignment]
    if runtime.world_size > 1 and sharding is None:
        ids = [runtime.device] if runtime.device.type == "cuda" else None
        wrapped = DistributedDataParallel(wrapped, device_ids=ids, broadcast_buffers=False)
    fp16 = runtime.dtype == torch.float16
    return TrainState(
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(runtime.device.type) if fp16 else None,
        ema=optim.Ema(model.body, config.optim.ema) if config.optim.ema else None,
        tally=tally,
        teacher=teacher_of(config, model),
        projection=network.projection if isinstance(network, Projected) else None,
        sharding=sharding,
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
    """Train on each batch of `stream`; yield after every optimizer step.

    There is no I/O and, on a GPU, no host sync. A step that does not fit into memory is divided.

    Args:
        state: is changed by every step.
        stream: the batches from the state's step on.
        objective: the loss to minimize.
        config: the settings of the stage.
        runtime: device, precision and ranks.
        total: number of steps of the learning rate's schedule.
        first: the step at which that schedule begins."""
    # A frozen encoder stays in eval mode: BatchNorm's statistics must not move either.
    state.wrapped.train(config.model.trainable == "all")
    for batch in stream:
        # Dropout is a function of the step, so a resume needs no saved random state.
        seed_everything(config.seed, state.step, runtime.rank)
        lr = schedules.lr_at(state.step - first, config.optim, total)
        rho = schedules.rho_at(state.step - first, config, total)
        optim.set_lr(state.optimizer, lr)
        state.memory.step, state.memory.num_steps = state.step - first, total

        state.optimizer.zero_grad(set_to_none=True)
        loss, note = backward_in_pieces(
            state,
            config,
            runtime,
            partial(backward, state, batch, objective, rho=rho),
            min(_group_size(config, rho, state) or len(batch), len(batch)),
        )
        grad_norm, finite = update(state, config.optim.clip_norm, config.sam)

        state.step += 1
        _count(state, loss, finite, config.run.max_nonfinite)
        yield Step(state.step, loss, grad_norm, finite, lr, note)


def backward(
    state: TrainState,
    batch: Batch,
    objective: Objective,
    config: Config,
    runtime: Runtime,
    rho: float | None = None,
) -> Tensor:
    """Leave the gradient of the mean loss over `batch` in `.grad`, plain or SAM; return that loss.

    SAM makes one ascent per group of `sam.m` examples and the gradients add up, so m-sharpness and
    accumulation are one mechanism. Each group runs in pieces of at most `run.micro_batch` images.
    Under `adversarial` the images climb from a random start, drawn for the whole batch; the loss is
    the one before their last move.

    Args:
        state: whose model and gradients are used.
        batch: this rank's examples of the step.
        objective: the loss to minimize.
        config: the settings of the stage.
        runtime: device, precision and ranks.
        rho: radius of this step's perturbation, 0 for none; None takes the config's."""
    rho = config.sam.rho if rho is None else rho
    if config.run.channels_last:
        batch = replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))
    seeds = (config.seed, state.step, runtime.rank)
    attack = adversarial.begin(batch.images, config.adversarial, *seeds)
    if attack:
        batch = replace(batch, images=attack.points)
    if state.teacher is not None:
        batch = state.teacher.teach(batch, config, runtime)
        objective = state.teacher.objective(objective)

    m = _group_size(config, rho, state)
    groups = list(batch.split(m or len(batch)))
    attacks = attack.split(m or len(batch)) if attack else itertools.repeat(None)

    gradient = _sam_gradient(state, config, rho, len(groups))
    uneven = len(set(map(len, groups))) > 1
    total = torch.zeros((), device=runtime.device)
    for index, (group, attacked) in enumerate(zip(groups, attacks, strict=False)):
        pieces = list(group.split(config.run.micro_batch or len(group)))
        losses = [_loss_of(piece, len(piece) / len(batch), objective, runtime) for piece in pieces]
        climb = attacked.ascent([each.images for each in pieces]) if attacked else None
        own = _losses_of_part(group, len(batch), objective, config, runtime)
        # DDP sends the gradients once, with those of the last group.
        last = index == len(groups) - 1
        no_sync = getattr(state.wrapped, "no_sync", contextlib.nullcontext)
        with contextlib.nullcontext() if last else no_sync():
            share = len(group) / len(batch) if uneven else None
            total += gradient(losses, input_ascent=climb, ascent_loss_fn=own, share=share)
    return total


def _group_size(config: Config, rho: float, state: TrainState) -> int:
    """Return this rank's examples that share an ascent; 0 for the whole batch."""
    # Where all groups climb alike, they need not be told apart.
    m = config.sam.m if rho and not config.sam.one_climb else 0
    return m // state.sharding.ranks if state.sharding else m


def _sam_gradient(
    state: TrainState, config: Config, rho: float, num_groups: int
) -> Callable[..., Tensor]:
    """Return `sam_backward` with everything bound that is the same for all groups of a step."""
    sam = config.sam
    return partial(
        sam_backward,
        model=state.wrapped,
        rho=rho,
        adaptive=sam.adaptive,
        eta=sam.eta,
        shared_ascent=sam.shared_ascent,
        variant=sam,
        memory=state.memory,
        num_groups=num_groups,
        optimizer=state.optimizer,
        scaler=state.scaler,
        replicas=state.sharding.replicas if state.sharding else None,
    )


def _losses_of_part(
    group: Batch, batch_size: int, objective: Objective, config: Config, runtime: Runtime
) -> list[LossFn] | None:
    """Return the losses of a fraction of a group, for the ascent alone; None if it takes all.

    The fraction is the group's first examples, as batches are in random order. The losses sum to
    the group's share of the batch times the fraction's mean loss."""
    if config.sam.fraction == 1:
        return None
    part = next(iter(group.split(max(1, round(config.sam.fraction * len(group))))))
    share = len(group) / batch_size
    pieces = part.split(config.run.micro_batch or len(part))
    return [_loss_of(piece, share * len(piece) / len(part), objective, runtime) for piece in pieces]


def _loss_of(piece: Batch, weight: float, objective: Objective, runtime: Runtime) -> LossFn:
    def loss(model: nn.Module) -> Tensor:
        with runtime.autocast():
            return objective(model, piece).value * weight

    return loss


def update(state: TrainState, clip_norm: float, variant: SamVariant) -> tuple[Tensor, Tensor]:
    """Clip the gradient; step the optimizer and the weight average if the gradient is finite.

    What decoupled WSAM subtracts after the optimizer's step is not clipped.

    Returns:
        The gradient's norm [] before clipping and whether it was finite [], both on the device."""
    optimizer, scaler = state.optimizer, state.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    grad_norm = optim.clip_(state.wrapped.parameters(), clip_norm, state.memory.shards)
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
    if state.teacher is not None:
        state.teacher.update(state.model)
    return grad_norm, finite


def _count(state: TrainState, loss: Tensor, finite: Tensor, limit: int) -> None:
    """Update the counts on the device; `tripped` becomes the step at which the limit is reached."""
    tally, bad = state.tally, (~finite).float()
    tally["loss"] += torch.where(finite, loss, torch.zeros_like(loss))
    tally["steps"] += 1 - bad
    tally["skipped"] += bad
    tally["streak"].add_(1).mul_(bad)
    first = (tally["streak"] == limit) & (tally["tripped"] == 0)
    tally["tripped"] += first * state.step
