"""Rehearse a recipe without its data: count its work and memory, take a few steps on made images.

Counts are exact (parameters, FLOPs by torch's counter, bytes that autograd keeps); seconds are
those of this machine."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from samovar.anymodel.devices import to_device
from samovar.anymodel.restore import bare
from samovar.config import Config
from samovar.data.loader import Batch
from samovar.objectives import make_objective
from samovar.recipes import IMAGENET_TRAIN
from samovar.runtime import Runtime, seed_everything
from samovar.train import optim
from samovar.train.loop import TrainState, backward, build, steps
from samovar.train.memory import has_batch_norm
from samovar.train.sharding import largest_gathered
from samovar.train.utilization import forward_flops

SIZES = {"digits": (269, 10, 1), "cifar10": (50_000, 10, 3), "cifar100": (50_000, 100, 3)}
"""Training images, classes and channels of data sets, known without opening them."""


@dataclass(frozen=True)
class Data:
    """Sizes of a data set that the cost of training depends on."""

    num_train: int
    num_classes: int
    channels: int


@dataclass(frozen=True)
class Rehearsal:
    """Work and memory of a recipe, and the losses of a few steps."""

    params: int
    decayed: int
    """Parameters under weight decay."""
    flops: int
    """FLOPs of the forward pass of one image; a multiply-add counts as two."""
    weight_bytes: int
    state_bytes: int
    """Bytes of gradients, optimizer state, SAM's copy of the weights and their average."""
    kept_bytes: int
    """Bytes that autograd keeps for the backward pass of `images` images, without weights."""
    peak_bytes: int
    """Most bytes that the steps took on a GPU, with weights; 0 elsewhere, where nobody counts."""
    shapes: tuple[torch.Size, ...]
    """Shapes of the parameters that train."""
    block_bytes: int
    """Bytes of the weights that are gathered at once if they are sharded: block or rest."""
    images: int
    """Images of a rehearsed step."""
    normalized: bool
    """Whether BatchNorm makes the images of a pass depend on each other."""
    losses: tuple[float, ...]
    seconds: float
    """Median time of a step, the first left out."""


def data_of(config: Config) -> Data:
    """Return the sizes of a config's data set; it is opened only if they are not known already.

    Raises:
        ValueError: the data set has to be opened, and cannot be."""
    name = config.data.source.partition(":")[0]
    if name == "imagenet":
        return Data(round(IMAGENET_TRAIN * config.data.fraction), 1000, 3)
    if name in SIZES:
        count, classes, channels = SIZES[name]
        return Data(max(1, round(count * config.data.fraction)), classes, channels)
    from samovar.data.sources import open_source

    source = open_source(config.data)
    return Data(len(source.train), len(source.classes), source.channels)


def rehearse(
    config: Config, runtime: Runtime, data: Data, *, num_steps: int = 3, images: int = 0
) -> Rehearsal:
    """Take `num_steps` steps of a config's training on made images, one ascent group a step.

    Args:
        images: images of a step; 0 takes those of an ascent group, or at most 32 if a group is the
            whole batch.

    Raises:
        ValueError: settings that do not fit each other."""
    images = images or min(config.data.batch_size, config.sam.m or 32)
    # one ascent group is enough to measure by; there is no warm-up, whose first step moves nothing
    small = replace(config, data=replace(config.data, batch_size=images), init="")
    run = replace(small.run, compile=False, shard="none")
    small = replace(small, optim=replace(small.optim, warmup_steps=0), run=run)
    on_gpu = runtime.device.type == "cuda"
    before = torch.cuda.memory_allocated(runtime.device) if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(runtime.device)
    state = build(small, runtime, num_classes=data.num_classes, channels=data.channels)
    batch = _made(small, data, images, runtime)
    params = [p for p in state.model.parameters() if p.requires_grad]
    groups = optim.parameter_groups(state.model, config.optim)
    decayed = [p for group in groups if group["weight_decay"] for _, p in group["params"]]
    losses, seconds = _steps(small, state, batch, data, runtime, num_steps)
    peak = torch.cuda.max_memory_allocated(runtime.device) - before if on_gpu else 0
    return Rehearsal(
        params=sum(p.numel() for p in params),
        decayed=sum(p.numel() for p in decayed),
        flops=forward_flops(state.model, batch.images[:1]),
        weight_bytes=_bytes(params),
        state_bytes=_state_bytes(config, state, params),
        kept_bytes=_kept_bytes(small, state, batch, data, runtime),
        peak_bytes=peak,
        shapes=tuple(p.shape for p in params),
        block_bytes=largest_gathered(state.model),
        images=len(batch),
        normalized=has_batch_norm(state.model),
        losses=losses,
        seconds=seconds,
    )


def _made(config: Config, data: Data, images: int, runtime: Runtime) -> Batch:
    """Make a batch of noise, with labels in pairs for a contrastive loss to compare."""
    generator = torch.Generator().manual_seed(config.seed)
    side, count = config.data.image_size, images * config.data.views
    pixels = torch.rand(count, data.channels, side, side, generator=generator)
    labels = torch.arange(count) // 2 % data.num_classes
    return Batch(to_device(pixels, runtime.device), to_device(labels, runtime.device))


def _steps(
    config: Config, state: TrainState, batch: Batch, data: Data, runtime: Runtime, num_steps: int
) -> tuple[tuple[float, ...], float]:
    objective = make_objective(config, data.num_classes)
    losses, times = [], []
    since = _now(runtime)
    for step in steps(state, [batch] * num_steps, objective, config, runtime, num_steps + 1):
        losses.append(float(step.loss))
        times.append(_now(runtime) - since)
        since = _now(runtime)
    return tuple(losses), statistics.median(times[1:] or times)


def _now(runtime: Runtime) -> float:
    """Return seconds of processor time; on a GPU those of the clock, once it is done."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
        return time.perf_counter()
    # processor time, because the clock also runs while other programs do
    return time.process_time() / max(1, torch.get_num_threads())


def _bytes(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _state_bytes(config: Config, state: TrainState, params: list[nn.Parameter]) -> int:
    moments = [
        t
        for found in state.optimizer.state.values()
        for t in found.values()
        if isinstance(t, Tensor)
    ]
    sam = config.sam
    # relatives of SAM that combine the plain and the climbed gradient hold both, and may keep more
    both = 2 * (sam.uses_both or bool(sam.sigma)) + bool(sam.sigma) + bool(sam.reuse)
    copies = 1 + (1 + both if sam.rho else 0) + bool(config.optim.ema)
    return _bytes(moments) + copies * _bytes(params)


def _kept_bytes(
    config: Config, state: TrainState, batch: Batch, data: Data, runtime: Runtime
) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, each storage once."""
    # autograd saves weights by reference, and several views of one storage; count neither twice
    weights = {p.untyped_storage().data_ptr() for p in state.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seed_everything(config.seed)
    plain = replace(config, sam=replace(config.sam, rho=0.0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backward(state, batch, make_objective(plain, data.num_classes), plain, runtime)
    bare(state.wrapped).zero_grad()
    return sum(kept.values())
