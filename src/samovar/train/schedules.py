"""Schedules: the learning rate and SAM's radius as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from samovar.config import Config, OptimConfig, decay_start, sam_span


def _cosine(progress: float, config: OptimConfig) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(progress: float, config: OptimConfig) -> float:
    return config.linear_end + (1 - config.linear_end) * (1 - progress)


def _exponential(progress: float, config: OptimConfig) -> float:
    return float(config.exponential_end**progress)


def _wsd(progress: float, config: OptimConfig) -> float:
    return 1 - (math.sqrt(progress) if config.decay_shape == "sqrt" else progress)


def _constant(progress: float, config: OptimConfig) -> float:
    return 1.0


# Rate relative to the peak, after a share of the steps that follow warm-up or, of `wsd`, of those
# in which it falls.
_SHAPES: dict[str, Callable[[float, OptimConfig], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "exponential": _exponential,
    "constant": _constant,
    "wsd": _wsd,
}


def check_warmup(config: OptimConfig, total_steps: int, section: str = "optim") -> tuple[str, ...]:
    """Refuse a warm-up that is longer than the training it starts, or reaches into its decay.

    Args:
        section: prefix of the flags that set `config`: `optim` or `head.optim`.

    Returns:
        A warning for the reader if it takes more than a third of the steps.

    Raises:
        ValueError: names the flag and both numbers."""
    if config.warmup_steps > total_steps:
        raise ValueError(
            f"--{section}.warmup-steps {config.warmup_steps} is more than the run's "
            f"{total_steps} steps; lower it or train longer"
        )
    decay = decay_start(config, total_steps)
    if config.schedule == "wsd" and config.warmup_steps > decay:
        raise ValueError(
            f"--{section}.warmup-steps {config.warmup_steps} reaches into the decay of wsd, which "
            f"begins at step {decay} of {total_steps}; lower it or --{section}.decay-share"
        )
    if config.warmup_steps <= total_steps / 3:
        return ()
    return (
        f"warning: warm-up takes {config.warmup_steps:,} of {total_steps:,} steps, more than a "
        f"third; train longer or lower --{section}.warmup-steps",
    )


def lr_at(step: int, config: OptimConfig, total_steps: int) -> float:
    """Return the learning rate of a step, counted from 0.

    It is the decayed rate times min(1, step / warmup_steps); the decay starts after warm-up, that
    of `wsd` at `decay_start`. With warm-up the first step therefore has rate 0: it fills the
    optimizer's moments and moves nothing.

    Raises:
        ValueError: warm-up is longer than the run, or than what precedes the decay of `wsd`.

    Source: big_vision's schedules; wsd: Hu et al., arXiv:2404.06395, its shapes Haegele et al.,
    arXiv:2405.18392."""
    check_warmup(config, total_steps)
    warmup = config.warmup_steps
    flat = decay_start(config, total_steps) if config.schedule == "wsd" else warmup
    progress = min(1.0, max(0.0, (step - flat) / max(1, total_steps - flat)))
    ramp = min(1.0, step / warmup) if warmup else 1.0
    return config.lr * ramp * _SHAPES[config.schedule](progress, config)


def rho_at(step: int, config: Config, total_steps: int) -> float:
    """Return SAM's radius at a step, counted from 0; 0 before `sam.start` and from `sam.end` on.

    Under `rho_schedule="lr"` it is rho_min + (rho - rho_min) (lr - lr_min) / (lr_max - lr_min),
    where lr_max is the peak rate and lr_min the rate at the end of the schedule. During warm-up,
    where lr is below lr_min, it is rho_min. Under "rise" it is
    rho_min + (rho - rho_min) (1 - cos(pi t / T)) / 2 at step t of T.

    Source: GSAM, Zhuang et al., arXiv:2203.08065; rise: ARWP, Li et al., arXiv:2404.00357."""
    sam = config.sam
    first, end = sam_span(config, total_steps)
    if not first <= step < end:
        return 0.0
    if sam.rho_schedule == "constant":
        return sam.rho
    if sam.rho_schedule == "rise":
        share = (1 - math.cos(math.pi * step / total_steps)) / 2
        return sam.rho_min + (sam.rho - sam.rho_min) * share
    peak = config.optim.lr
    lowest = peak * _SHAPES[config.optim.schedule](1.0, config.optim)
    # a constant schedule varies only during warm-up, which starts from rate 0
    lowest = 0.0 if lowest == peak else lowest
    share = (lr_at(step, config.optim, total_steps) - lowest) / (peak - lowest) if peak else 0.0
    return sam.rho_min + (sam.rho - sam.rho_min) * max(0.0, share)
