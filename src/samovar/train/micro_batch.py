"""Choose how many images a pass may take, so that a step fits into `--run.memory`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from samovar.config import Config
from samovar.curvature.graphs import free_bytes
from samovar.data.splits import Source
from samovar.runtime import Runtime
from samovar.runtime.heartbeat import doing
from samovar.train.memory import ONE_IMAGE, why_whole
from samovar.train.rehearse import Data, Rehearsal, rehearse
from samovar.train.state import TrainState

IMAGES = 8
"""Images of the rehearsed step; what a step keeps grows in proportion to them."""
SHARE = 0.9
"""Share of the free memory that `auto` takes; the rest is for what is not counted."""
SPARE = 1.3
"""Bytes of a step on a CPU, relative to those that autograd keeps of it: the backward pass also
holds the gradients of a few layers' outputs."""


@dataclass(frozen=True)
class Need:
    """Bytes of a training step on a device, beside the weights, which are there already."""

    fixed: float
    """Gradients, optimizer, copies of the weights."""
    per_image: float


@dataclass(frozen=True)
class Division:
    """How a step fits into memory."""

    micro_batch: int
    """Most images per pass; 0 if no pass needs fewer than it has."""
    note: str
    """One line for the reader."""


def need_of(found: Rehearsal, num_images: int) -> Need:
    """Return what a step takes by a rehearsal: its peak on a GPU, on a CPU what autograd keeps.

    Args:
        num_images: images of the rehearsed step."""
    kept: float = SPARE * found.kept_bytes
    if found.peak_bytes:
        kept = max(found.kept_bytes, found.peak_bytes - found.weight_bytes - found.state_bytes)
    return Need(found.state_bytes, kept / num_images)


def fit_memory(config: Config, state: TrainState, source: Source, runtime: Runtime) -> None:
    """Divide the steps of a training that has not begun so that they fit into `--run.memory`.

    Args:
        state: receives the images per pass, and a note for the reader.

    Raises:
        ValueError: as `room_for` and `divide`."""
    if not config.run.memory or config.run.micro_batch:
        return
    data = Data(len(source.train), len(source.classes), source.channels)
    alone = replace(runtime, rank=0, world_size=1)
    count = min(IMAGES, config.data.batch_size // runtime.world_size)
    # a teacher's terms take no more than the network's own
    plain = replace(config, sam=replace(config.sam, teacher="none"))
    with doing("rehearsing a step for --run.memory"):
        found = rehearse(plain, alone, data, num_steps=2, images=count)
    room = room_for(config.run.memory, runtime)
    if runtime.world_size > 1:
        # ranks divide their steps together
        least = torch.tensor(room, dtype=torch.float64).to(runtime.device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        room = least.item()
    need = need_of(found, count)
    division = divide(config, need, room, runtime.world_size, normalized=found.normalized)
    state.micro_batch = division.micro_batch
    state.notes += (division.note,)


def room_for(memory: float | str, runtime: Runtime) -> float:
    """Return the bytes that training may still take on its device.

    Args:
        memory: value of `--run.memory`, not 0.

    Raises:
        ValueError: a number, where what a process takes cannot be read."""
    if isinstance(memory, str):
        return SHARE * free_bytes(runtime.device)
    used = _used(runtime.device)
    if memory * 2**30 <= used:
        raise ValueError(
            f"--run.memory {memory:g} is too little: the process takes {_mega(used)} before its "
            "first step; give more, in GiB"
        )
    return memory * 2**30 - used


def divide(
    config: Config, need: Need, room: float, world_size: int, *, normalized: bool
) -> Division:
    """Return the fewest equal passes over an ascent group (or the batch) that fit into memory.

    Args:
        config: the settings; batch and m stay what they are.
        need: bytes of a step.
        room: bytes that a step may take.
        world_size: ranks that share the batch.
        normalized: BatchNorm makes the images of a pass depend on each other.

    Raises:
        ValueError: one image does not fit, or fewer images per pass would change the result."""
    batch = config.data.batch_size // world_size
    group = config.sam.m if config.sam.rho and config.sam.m else batch
    limit = f"--run.memory {config.run.memory}"
    fits = math.floor(max(0.0, room - need.fixed) / need.per_image)
    sizes = (
        f"{_mega(room)} are left, gradients, optimizer and copies take {_mega(need.fixed)}, an "
        f"image {_mega(need.per_image)}"
    )
    if fits >= group:
        return Division(0, f"{limit}: all {group} images of a pass fit; {sizes}")
    why = ONE_IMAGE if fits < 1 else why_whole(config, fits, normalized=normalized)
    if why:
        raise ValueError(f"{limit} is too little: {sizes}; {why}, or more memory")
    parts = math.ceil(group / fits)
    micro = math.ceil(group / parts)
    return Division(
        micro,
        f"{limit}: {micro} images per pass, {parts} passes in place of one of {group}; {sizes}; "
        "batch size and m stay what they are",
    )


def _used(device: torch.device) -> int:
    """Return the bytes that this process has taken on a device."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError as error:
        raise ValueError(
            "--run.memory in GiB needs Linux on a CPU; give auto, or --run.micro-batch"
        ) from error
    return pages * os.sysconf("SC_PAGE_SIZE")


def _mega(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"
