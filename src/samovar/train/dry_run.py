"""A recipe without its data: what it would compute, in how much memory, and a few real steps on
made images.

Counts are exact (parameters, FLOPs by torch's counter, bytes that autograd keeps); seconds are of
this machine."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from samovar import config as configs
from samovar.config import Config
from samovar.data.loader import Batch
from samovar.models.load import resolve
from samovar.objectives import make_objective
from samovar.recipes import IMAGENET_TRAIN
from samovar.restore import bare
from samovar.runtime import Runtime, seed_everything, started
from samovar.train import optim
from samovar.train.loop import TrainState, backward, build, steps

SIZES = {"digits": (269, 10, 1), "cifar10": (50_000, 10, 3), "cifar100": (50_000, 100, 3)}
"""Training images, classes and channels of sources whose numbers are known without opening them."""


@dataclass(frozen=True)
class Data:
    """What a network's sizes follow from."""

    num_train: int
    num_classes: int
    channels: int


@dataclass(frozen=True)
class Rehearsal:
    """What a recipe takes."""

    params: int
    decayed: int
    """Parameters under weight decay."""
    flops: int
    """Of the forward pass of one image; a multiply-add is two."""
    weight_bytes: int
    state_bytes: int
    """Gradients, optimizer state and SAM's copy of the weights; an average of the weights too."""
    kept_bytes: int
    """What autograd keeps of the images below for a backward pass, weights left out."""
    images: int
    """Of a step of the rehearsal."""
    losses: tuple[float, ...]
    seconds: float
    """Median of a step, the first left out."""


def data_of(config: Config) -> Data:
    """The number of training images, classes and channels, from what is known of the source without
    opening it.

    Raises:
        ValueError: nothing is known; the network's own classes are then no help either."""
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
    """Take `num_steps` steps of a config's training on made images, one ascent group each.

    Args:
        images: in a step; 0 is those of an ascent group, at most 32 where SAM's groups are whole
            batches.

    Raises:
        ValueError: settings that do not fit each other."""
    images = images or min(config.data.batch_size, config.sam.m or 32)
    small = replace(config, data=replace(config.data, batch_size=images), init="")
    small = replace(
        small, optim=replace(small.optim, warmup_steps=0), run=replace(small.run, compile=False)
    )
    state = build(small, runtime, num_classes=data.num_classes, channels=data.channels)
    batch = _made(small, data, images, runtime)
    params = [p for p in state.model.parameters() if p.requires_grad]
    groups = optim.parameter_groups(state.model, config.optim)
    losses, seconds = _steps(small, state, batch, data, runtime, num_steps)
    return Rehearsal(
        params=sum(p.numel() for p in params),
        decayed=sum(p.numel() for g in groups if g["weight_decay"] for p in _tensors(g)),
        flops=_flops(state.model, batch.images[:1]),
        weight_bytes=_bytes(params),
        state_bytes=_state_bytes(config, state, params),
        kept_bytes=_kept_bytes(small, state, batch, data, runtime),
        images=len(batch),
        losses=losses,
        seconds=seconds,
    )


def _made(config: Config, data: Data, images: int, runtime: Runtime) -> Batch:
    """Noise in the place of images; labels in pairs, so that a contrastive loss has something to
    compare."""
    generator = torch.Generator().manual_seed(config.seed)
    side, count = config.data.image_size, images * config.data.views
    pixels = torch.rand(count, data.channels, side, side, generator=generator)
    labels = torch.arange(count) // 2 % data.num_classes
    return Batch(pixels.to(runtime.device), labels.to(runtime.device))


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
    """Seconds of processor time, or of the clock once a GPU is done."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
        return time.perf_counter()
    return time.process_time() / max(1, torch.get_num_threads())


def _flops(model: nn.Module, image: Tensor) -> int:
    with _evaluated(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops())


@contextlib.contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _tensors(group: dict[str, object]) -> list[Tensor]:
    params = group["params"]
    assert isinstance(params, list)
    return [p[1] if isinstance(p, tuple) else p for p in params]


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
    both = (
        2 * (sam.uses_both or bool(sam.sigma)) + bool(sam.sigma) + bool(sam.reuse)
    )  # gradients, and what is kept
    copies = 1 + (1 + both if sam.rho else 0) + bool(config.optim.ema)
    return _bytes(moments) + copies * _bytes(params)


def _kept_bytes(
    config: Config, state: TrainState, batch: Batch, data: Data, runtime: Runtime
) -> int:
    """Bytes of the tensors that a forward pass keeps, each storage once."""
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


def dry_run(config: Config, ranks: int) -> list[str]:
    """What `samovar train RECIPE --dry-run` prints: a rehearsal on this machine, with groups as on
    `ranks` ranks.

    Raises:
        ValueError: settings that do not fit each other, or that many ranks."""
    configs.validate_layout(config, ranks)
    if not (config.model.name and config.data.image_size):
        config = resolve(config)
    with started(config.run) as runtime:
        data = data_of(config)
        return lines(config, data, rehearse(config, runtime, data), ranks)


# --- in words
# --------------------------------------------------------------------------------------------------------

SUSTAINED = 100e12
"""FLOP/s of one GPU in the estimate of hours: about a third of what an A100 can do in bfloat16."""


def training_flops(config: Config, data: Data, flops: int) -> float:
    """Of a whole training, where a backward pass is two forward ones; evaluation left out."""
    return 3.0 * flops * configs.image_gradients(config, data.num_train)


def lines(config: Config, data: Data, found: Rehearsal, ranks: int) -> list[str]:
    """What a rehearsal found, for a person."""
    total = configs.num_steps(config, data.num_train)
    return [
        f"model      {config.model.name}: {found.params:,} parameters, {found.decayed:,} of them decay; "
        f"{found.flops / 1e9:.2f} GFLOPs an image forward",
        f"data       {config.data.source}: {data.num_train:,} training images, {data.num_classes} classes, "
        f"{config.data.image_size} px; loss {config.loss}",
        *_schedule(config, total),
        *_ascent(config, ranks),
        f"update     {_update(config)}",
        f"memory     weights {_mega(found.weight_bytes)}, gradients, optimizer and copies {_mega(found.state_bytes)}; "
        f"a forward pass keeps {_mega(found.kept_bytes / found.images)} an image",
        f"cost       {training_flops(config, data, found.flops):.2e} FLOPs in all, "
        f"{training_flops(config, data, found.flops) / SUSTAINED / 3600:,.1f} hours of a GPU that sustains "
        f"{SUSTAINED / 1e12:.0f} TFLOP/s (derived)",
        f"rehearsed  {len(found.losses)} steps of {found.images} made images: loss "
        f"{', '.join(f'{loss:.4f}' for loss in found.losses)}; {found.seconds:.2f} s a step here",
    ]


def _schedule(config: Config, total: int) -> list[str]:
    o = config.optim
    points = sorted({0, min(o.warmup_steps, total), total // 4, total // 2, 3 * total // 4, total})
    rates = ", ".join(f"{optim.lr_at(step, o, total):.3g} at {step:,}" for step in points)
    said = [
        f"steps      {total:,} of {config.data.batch_size} images; warm-up {o.warmup_steps:,}, then {o.schedule}"
    ]
    return [*said, f"lr         {rates}"]


def _ascent(config: Config, ranks: int) -> list[str]:
    if not config.sam.rho:
        return ["gradient   plain"]
    batch, m = config.data.batch_size, config.sam.m
    each = batch // ranks
    groups = f"{each // m} groups of {m}" if m else "one group"
    shared = (
        ", one ascent for all ranks" if config.sam.shared_ascent else ", each from its own gradient"
    )
    return [
        f"ascent     rho {config.sam.rho:g}; {batch} images on {ranks} ranks, {each} a rank: {groups} a rank{shared}",
        *([f"variant    {words}"] if (words := configs.sam_words(config.sam)) else []),
    ]


def _update(config: Config) -> str:
    o = config.optim
    clip = f"clip to global norm {o.clip_norm:g}" if o.clip_norm else "no clipping"
    return f"average over groups and ranks, {clip}, {o.name}, decay {o.weight_decay:g} x lr of {o.decay}"


def _mega(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"
