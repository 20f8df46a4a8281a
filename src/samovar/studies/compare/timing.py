"""Processor time of a training step of SAM's relatives, taken side by side on made images.

Only the step is timed: loading images and evaluation cost the same for all."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import fmean

import torch

from samovar import config as configs
from samovar.anymodel.devices import to_device
from samovar.config import Config, sam_span
from samovar.data.loader import Batch
from samovar.models.load import resolve
from samovar.objectives import make_objective
from samovar.runtime import Runtime, started
from samovar.studies.compare.cost import Cost, Kind, costs_of, shares, weighed
from samovar.train.loop import build, steps
from samovar.train.rehearse import Data

REPETITIONS = 7

SHORTEST = 0.05
"""Seconds that a timing takes at least."""

MOST_PIXELS = 2**21
"""Pixels of a timed batch in each channel; larger batches are timed in part."""

TOTAL = 10**6
"""Steps of the schedule that timed steps are taken from; enough for every kind to occur."""


def measure(configs_by_name: Mapping[str, Config], data: Data) -> dict[str, Cost]:
    """Measure the cost of a step of each relative, averaged over the kinds of steps of its run.

    One thread, no compilation. On a GPU it is wall-clock time, taken once the GPU is done.

    Args:
        configs_by_name: `plain` is among them."""
    # one thread: processor time over several would count their waiting for each other
    plain = configs_by_name["plain"]
    before = torch.get_num_threads()
    try:
        with started(replace(plain.run, threads=1)) as runtime:
            timers = {
                name: Timer(config, data, runtime) for name, config in configs_by_name.items()
            }
            times = _rotated(timers)
    finally:
        torch.set_num_threads(before)
    return costs_of(
        times, {name: configs.passes(config) for name, config in configs_by_name.items()}
    )


def _rotated(timers: Mapping[str, Timer]) -> dict[str, list[float]]:
    """Return the seconds of a step of each relative in each repetition.

    Every repetition times all of them one after the other, so that other load on the machine falls
    on all; the order rotates, so that none is always first."""
    for timer in timers.values():
        timer.seconds(1)  # first steps allocate memory and choose kernels
    count = max(1, math.ceil(SHORTEST / timers["plain"].seconds(1)))
    times: dict[str, list[float]] = {name: [] for name in timers}
    order = list(timers)
    for _ in range(REPETITIONS):
        for name in order:
            times[name].append(timers[name].seconds(count))
        order = order[1:] + order[:1]
    return times


def timed_images(config: Config) -> int:
    """Return the images of a timed batch: those of the config, or the ascent groups that fit."""
    most = max(1, MOST_PIXELS // config.data.image_size**2)
    group = config.sam.m or 1
    return min(config.data.batch_size, max(group, most // group * group))


def _made(config: Config, data: Data, runtime: Runtime) -> Batch:
    """Return a batch of noise; labels come in pairs, which a contrastive loss needs."""
    count, side = config.data.batch_size * config.data.views, config.data.image_size
    generator = torch.Generator().manual_seed(config.seed)
    pixels = torch.rand(count, data.channels, side, side, generator=generator)
    labels = torch.arange(count) // 2 % data.num_classes
    return Batch(to_device(pixels, runtime.device), to_device(labels, runtime.device))


def _now(runtime: Runtime) -> float:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
        return time.perf_counter()
    return time.process_time()


ALWAYS = -1e6
"""AE-SAM's c at which every step climbs."""


class Timer:
    """A training of one relative whose steps can be timed repeatedly."""

    def __init__(self, config: Config, data: Data, runtime: Runtime) -> None:
        self.share = shares(config, configs.num_steps(config, data.num_train))
        # the model may follow from the weights to start from, which are then left out
        if not (config.model.name and config.data.image_size):
            config = resolve(config)
        # a hundredth of the rate, or in a few steps noise is learned by heart or weights diverge
        optim = replace(config.optim, lr=config.optim.lr / 100, warmup_steps=0)
        # AE-SAM would climb as noise tells it; its share of climbs is in `self.share`
        sam = replace(config.sam, c_first=ALWAYS, c_last=ALWAYS)
        config = replace(
            config, init="", sam=sam, optim=optim, run=replace(config.run, compile=False)
        )
        self.config = replace(config, data=replace(config.data, batch_size=timed_images(config)))
        self.runtime = runtime
        self.state = build(
            self.config, runtime, num_classes=data.num_classes, channels=data.channels
        )
        batch = _made(self.config, data, runtime)
        objective = make_objective(self.config, data.num_classes)
        self.steps = steps(
            self.state, itertools.repeat(batch), objective, self.config, runtime, TOTAL
        )

    def seconds(self, count: int) -> float:
        """Return the seconds of an average step, from at least `count` steps of each kind."""
        spent: dict[Kind, list[float]] = {}
        for at, length in self._blocks(count):
            # the number of a step decides its kind, so the schedule can be entered anywhere
            self.state.step = at
            for step in range(at, at + length):
                since = _now(self.runtime)
                next(self.steps)
                spent.setdefault(self._kind(step), []).append(_now(self.runtime) - since)
        return weighed({kind: fmean(found) for kind, found in spent.items()}, self.share)

    def _blocks(self, count: int) -> Iterator[tuple[int, int]]:
        """Yield the first step and the number of steps of each stretch that is timed."""
        sam, (first, end) = self.config.sam, sam_span(self.config, TOTAL)
        if "climb" in self.share or "between" in self.share:
            # so many steps in a row have `count` climbs
            yield first, count * sam.every
        if "outside" in self.share:
            # SAM is off before its start if it has one, else after its end
            yield (0 if first or not sam.rho else end), count

    def _kind(self, step: int) -> Kind:
        sam, (first, end) = self.config.sam, sam_span(self.config, TOTAL)
        if not sam.rho or not first <= step < end:
            return "outside"
        return "between" if step % sam.every else "climb"
