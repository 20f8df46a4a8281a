"""Quantities that follow from settings: stages, steps, gradients, cores."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Container
from dataclasses import replace
from statistics import NormalDist

from samovar.config.encoded import dashed, flatten
from samovar.config.sections import SCHEDULE_STEPS, OptimConfig
from samovar.config.settings import Config, SamConfig
from samovar.sam.variant import SamVariant


def num_steps(config: Config, num_train: int) -> int:
    """Return the optimizer steps of a run on `num_train` images."""
    return config.steps or max(1, round(config.epochs * num_train / config.data.batch_size))


def stages(config: Config) -> tuple[Config, ...]:
    """Return the config of each stage of a run, in order.

    A run has one stage; under `supcon` a linear classifier follows as a second."""
    if config.loss != "supcon":
        return (config,)
    # the frozen encoder needs neither a second view nor SAM
    head = replace(
        config,
        loss="softmax",
        epochs=config.head.epochs,
        steps=config.head.steps,
        model=replace(config.model, trainable="head"),
        data=replace(config.data, views=1, autoaugment="none"),
        optim=config.head.optim,
        sam=SamConfig(),
    )
    return config, head


Shorten = Callable[[Config, int], tuple[Config, tuple[str, ...]]]
"""Fits a config's schedule to its length, given the number of training images; see `shorten`."""


def shorter_schedule(optim: OptimConfig, share: float, given: Container[str] = ()) -> OptimConfig:
    """Return an optimizer's settings for a run that is `share` times as long, 0 to 1.

    Args:
        given: names of settings that stay as they are."""
    steps = {
        name: math.floor(getattr(optim, name) * share)
        for name in SCHEDULE_STEPS
        if name not in given
    }
    return replace(optim, **steps)


def shorten(
    config: Config, full: Config, num_train: int, given: Container[str] = ()
) -> tuple[Config, tuple[str, ...]]:
    """Shorten warm-up in proportion where a run is shorter than its recipe.

    Args:
        full: the same settings with the length, epochs and steps, that warm-up was chosen for.
        num_train: training images.
        given: dotted names of settings that the person gave; they stay as they are.

    Returns:
        The config, and a line for the reader on each change."""
    lengths = zip(stages(config), stages(full), ("", "head."), strict=False)
    notes: list[str] = []
    for stage, whole, prefix in lengths:
        now, before = num_steps(stage, num_train), num_steps(whole, num_train)
        if now >= before:
            continue
        kept = [name for name in SCHEDULE_STEPS if f"{prefix}optim.{name}" in given]
        optim = shorter_schedule(stage.optim, now / before, kept)
        for name in SCHEDULE_STEPS:
            old, new = getattr(stage.optim, name), getattr(optim, name)
            if old != new:
                notes.append(
                    f"--{dashed(f'{prefix}optim.{name}')} {new} in place of {old}, as the run has "
                    f"{now:,} of {before:,} steps; give the flag for another number"
                )
        if prefix:
            config = replace(config, head=replace(config.head, optim=optim))
        else:
            config = replace(config, optim=optim)
    return config, tuple(notes)


def image_gradients(config: Config, num_train: int) -> float:
    """Return the image gradients of a whole training on `num_train` images, without evaluation.

    A step with SAM takes two of each image, one with an adversary of k steps k + 1, with SAM or
    without; each view is an image."""
    return sum(
        passes(stage) * stage.data.views * stage.data.batch_size * num_steps(stage, num_train)
        for stage in stages(config)
    )


def sam_words(sam: SamConfig) -> str:
    """Return how a relative differs from SAM, such as `alpha 0.4, rho_min 0.02`; empty for SAM."""
    # plain SAM has these settings too, so they name no relative
    shared = {"m", "rho", "adaptive", "eta", "shared_ascent"}
    free = flatten(SamConfig())
    given = {
        name: value
        for name, value in flatten(sam).items()
        if value != free[name] and name not in shared
    }
    return ", ".join(name if value is True else f"{name} {value}" for name, value in given.items())


def decay_start(optim: OptimConfig, total: int) -> int:
    """Return the first step, counted from 0, of the decay of `wsd` in a run of `total` steps."""
    return round((1 - optim.decay_share) * total)


def sam_span(config: Config, total: int) -> tuple[int, int]:
    """Return the first step that climbs, and the first after it that does not any more.

    Steps count from 0 in a run of `total` steps."""
    sam = config.sam
    first = decay_start(config.optim, total) if sam.start == "decay" else round(sam.start * total)
    return first, round(sam.end * total)


def passes(config: Config) -> float:
    """Return the gradients a step takes of each of its images, on average over the run.

    Plain training takes 1, SAM takes 2. A forward pass of a teacher counts as a third."""
    attack = config.adversarial.num_steps if config.adversarial.eps else 0
    sam = config.sam
    if sam.teacher == "average":
        # forward alone, a third of a gradient, from its first epoch on
        late = 0.0 if config.steps else min(1.0, sam.teacher_start / config.epochs)
        without = replace(config, sam=replace(sam, teacher="none"))
        return passes(without) + (1 - late) / 3
    # along a direction that is known the ascent takes no gradient
    if not sam.rho or sam.one_pass:
        return 1.0 + attack
    start = 1 - config.optim.decay_share if sam.start == "decay" else sam.start
    climbing = (sam.end - start) / sam.every
    if sam.sharp_only and sam.c_skip:
        # the gradient of the ascent is applied where the second pass is left out
        return 1.0 + climbing * expected_climbs(sam) * sam.ascent_steps
    # the attack's first gradient comes with that of the climb
    return 1.0 + climbing * max(attack, sam.ascent_steps * sam.fraction) + (1 - climbing) * attack


def expected_climbs(sam: SamVariant) -> float:
    """Return the share of steps in which AE-SAM is expected to climb, 0 to 1; 1 for all others.

    It is that of normally distributed |g|^2, the mean of 1 - Phi(c) over the c of a run. A run
    records how often it climbed (`train/climbs`)."""
    if not sam.sharp_only:
        return 1.0
    normal, points = NormalDist(), 1000
    cs = (sam.c_first + (sam.c_last - sam.c_first) * (i + 0.5) / points for i in range(points))
    return sum(1 - normal.cdf(c) for c in cs) / points


def cores() -> int:
    """Return the number of cores this process may use."""
    # containers and taskset restrict the affinity, which cpu_count ignores
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
