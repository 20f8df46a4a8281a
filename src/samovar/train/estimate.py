"""What a training will take here: gradients counted, seconds measured on a few steps."""

from __future__ import annotations

from dataclasses import replace

from samovar import config as configs
from samovar.config import Config
from samovar.data.splits import Source
from samovar.runtime import Runtime
from samovar.runtime.heartbeat import doing
from samovar.train.rehearse import Data, rehearse
from samovar.words import duration

STEPS = 2
"""Steps that are timed, after a first one that is not."""


def training_gradients(config: Config, num_train: int) -> float:
    """Return images times gradients of a training; evaluation, a few percent, is left out."""
    # every rate of the grid is tried on the images that are not held out for the choice
    rates = len(set(config.grid.lr))
    held_in = num_train - round(config.grid.share * num_train)
    trials = rates * configs.image_gradients(config, held_in) if rates else 0.0
    return configs.image_gradients(config, num_train) + trials


def seconds_per_gradient(config: Config, data: Data, runtime: Runtime) -> float:
    """Time plain training of the config's network; returns seconds of a gradient of one image.

    These are seconds of the processor, or of a GPU's clock."""
    # SAM, adversaries and losses change how many gradients there are, not what one costs
    plain = replace(
        config,
        sam=replace(config.sam, rho=0.0),
        loss="softmax",
        steps=0,
        grid=configs.GridConfig(),
        data=replace(config.data, views=1),
        adversarial=configs.AdversarialConfig(),
    )
    # on a CPU two large images take long enough to be timed; small ones and GPUs need a batch
    large = config.data.image_size > 64 and runtime.device.type == "cpu"
    images = min(2 if large else 32, config.data.batch_size)
    found = rehearse(plain, runtime, data, num_steps=STEPS + 1, images=images)
    return found.seconds / found.images


def plan_lines(config: Config, source: Source, runtime: Runtime) -> list[str]:
    """Return what a run will do and what it costs here, as lines to print before it starts.

    The config's model and image size are known, see `samovar.models.load.resolve`. Nothing is timed
    where several processes train."""
    num_train, num_val = len(source.train), len(source.val)
    batch, classes = config.data.batch_size, len(source.classes)
    steps = sum(configs.num_steps(stage, num_train) for stage in configs.stages(config))
    rates = dict.fromkeys(config.grid.lr)
    lr = f"lr {config.optim.lr:g}"
    if rates:
        tried = " ".join(f"{rate:g}" for rate in rates)
        lr = f"lr {tried} tried first on {1 - config.grid.share:.0%} of the training images"
    epochs, warmup = steps * batch / num_train, config.optim.warmup_steps
    lines = [
        f"plan: {num_train:,} + {num_val:,} images of {classes} classes, "
        f"{steps:,} steps of {batch} ({epochs:.3g} epochs), warm-up {warmup:,}, {lr}"
    ]
    if runtime.world_size > 1:
        return lines
    with doing(f"timing {STEPS} steps"):
        data = Data(num_train, classes, source.channels)
        seconds = seconds_per_gradient(config, data, runtime)
    total = seconds * training_gradients(config, num_train)
    step = seconds * configs.image_gradients(config, num_train) / steps
    lines.append(
        f"cost: {duration(step) if step >= 0.1 else f'{step:.2g} s'} a step here, measured on "
        f"{STEPS} steps, {duration(total)} in all; evaluations and reading images come on top, and "
        "so do other programs"
    )
    return lines
