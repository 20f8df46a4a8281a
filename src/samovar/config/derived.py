"""What follows from settings: stages, steps, gradients."""

from __future__ import annotations

import os
from dataclasses import replace

from samovar.config.encoded import flatten
from samovar.config.settings import Config, SamConfig


def num_steps(config: Config, num_train: int) -> int:
    """Optimizer steps of a run on `num_train` images."""
    return config.steps or max(1, round(config.epochs * num_train / config.data.batch_size))


def stages(config: Config) -> tuple[Config, ...]:
    """What a run trains one after the other: itself, and under `supcon` a linear classifier after
    it."""
    if config.loss != "supcon":
        return (config,)
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


def image_gradients(config: Config, num_train: int) -> float:
    """Gradients of images that a whole training on `num_train` of them takes; evaluation is left
    out.

    A step with SAM takes two of each image, one with an adversary of k steps k + 1, with SAM or
    without; each view is an image."""
    return sum(
        passes(stage) * stage.data.views * stage.data.batch_size * num_steps(stage, num_train)
        for stage in stages(config)
    )


def sam_words(sam: SamConfig) -> str:
    """What tells a relative of SAM from it, as `alpha 0.4, rho_min 0.02`; empty for SAM."""
    told = {"m", "rho", "adaptive", "eta", "shared_ascent"}
    free = flatten(SamConfig())
    given = {
        name: value
        for name, value in flatten(sam).items()
        if value != free[name] and name not in told
    }
    return ", ".join(name if value is True else f"{name} {value}" for name, value in given.items())


def passes(config: Config) -> float:
    """Gradients of each of its images that a step takes, on average over the run; 1 is plain, 2 is
    SAM."""
    attack = config.adversarial.num_steps if config.adversarial.eps else 0
    sam = config.sam
    if not sam.rho or sam.momentum:
        return 1.0 + attack
    climbing = (sam.end - sam.start) / sam.every
    return 1.0 + climbing * max(attack, sam.ascent_steps * sam.fraction) + (1 - climbing) * attack


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
