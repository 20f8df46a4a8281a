"""Flatness on average: the loss under Gaussian noise on the weights.

Weights are the parameters that require a gradient. Models are lent in eval mode and come back as
they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor, nn

from samovar.config import MeasureConfig
from samovar.measure.losses import LossFn, batch_losses, finite, weighted_stderr
from samovar.restore import shiftable
from samovar.runs.records import Record

if TYPE_CHECKING:  # a run's data and models are not needed to call the functions here
    from samovar.measure.subject import Subject


@dataclass(frozen=True)
class Estimate:
    """A mean over draws of weight noise."""

    value: float
    """Mean of the loss over the draws; inf or nan if the loss of a draw is."""
    stderr: float | None
    """Standard error of `value` over the draws, and of `increase`; None for a single draw or a
    value not finite."""
    n: int
    """Number of draws."""
    clean: float
    """Loss without noise."""
    draws: tuple[float, ...]
    """Loss of each draw; the mean of its two under `antithetic`."""

    @property
    def increase(self) -> float:
        """How much the noise costs on average, `value - clean`."""
        return self.value - self.clean


def average_flatness(
    model: nn.Module,
    loss: LossFn,
    batches: Iterable[Any],
    *,
    sigma: float,
    num_draws: int,
    scaling: Literal["isotropic", "filter"] = "isotropic",
    antithetic: bool = False,
    generator: Generator,
) -> Estimate:
    """E L(w + e) over Gaussian noise e on the weights; 1 + num_draws forward passes over the
    batches, one weight copy.

    `isotropic`: e ~ N(0, sigma^2) in every weight. `filter`: a tensor of two or more dimensions is
        cut along dim 0 into
    filters f of d weights each, and e ~ N(0, sigma^2 |f|^2 / d), so that the noise on a filter has
    sigma times its norm (root mean square); tensors of fewer dimensions, which are biases and
    scales of norms, get none. Position embeddings and class tokens [1, ...] are one filter.

    Args:
        model, loss, batches: as in `mean_loss`.
        sigma: >= 0, in units of the weights, or of their filters' root mean square.
        num_draws: >= 1.
        scaling: what sigma is relative to.
        antithetic: a draw is the mean over e and -e, at twice the cost; odd terms of the loss then
            cancel.
        generator: on the CPU; the only source of the noise, drawn in float32, parameter by
            parameter.

    Raises:
        ValueError: a setting out of range, nothing to perturb, or as `mean_loss` (but for the loss
            of a draw).

    Source: L^N of Chen et al., arXiv:2106.01548v3; the filters of Li et al., arXiv:1712.09913."""
    check_radius("sigma", sigma)
    check_count("num_draws", num_draws)
    if scaling not in SCALINGS:
        raise ValueError(f"unknown scaling {scaling!r}; pick one of {', '.join(SCALINGS)}")
    with shiftable(model) as weights:
        if scaling == "filter" and all(w.ndim < 2 for w in weights.clean):
            raise ValueError(
                "no weights of two or more dimensions, so no filters; use scaling='isotropic'"
            )
        clean = finite(batch_losses(model, loss, batches)).mean
        draws = []
        for _ in range(num_draws):
            state, both = generator.get_state(), []
            for signed in (sigma, -sigma) if antithetic else (sigma,):
                generator.set_state(state)
                weights.shift(gaussian_noise(weights.clean, signed, SCALINGS[scaling], generator))
                both.append(batch_losses(model, loss, batches).mean)
            draws.append(sum(both) / len(both))
    value = sum(draws) / num_draws
    return Estimate(value, weighted_stderr(draws, [1] * num_draws), num_draws, clean, tuple(draws))


def gaussian_noise(
    clean: Sequence[Tensor],
    sigma: float,
    scale: Callable[[Tensor], Tensor | float],
    generator: Generator,
) -> Iterator[Tensor]:
    """Noise for one tensor at a time, so that a model never has a second copy in noise."""
    for w in clean:
        z = torch.randn(w.shape, generator=generator, dtype=torch.float32).to(w.device)
        yield sigma * scale(w) * z


def _filter_rms(w: Tensor) -> Tensor | float:
    """Root mean square of each slice along dim 0, [F, 1, ...]; 0 for tensors of one dimension."""
    if w.ndim < 2:
        return 0.0
    rows = w.flatten(1).to(torch.promote_types(w.dtype, torch.float32))
    return rows.square().mean(1).sqrt().view(-1, *[1] * (w.ndim - 1))


SCALINGS: dict[str, Callable[[Tensor], Tensor | float]] = {
    "isotropic": lambda w: 1.0,
    "filter": _filter_rms,
}


def check_radius(name: str, value: float) -> None:
    """Refuse what is no length."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value} is negative or not finite; pick {name} >= 0")


def check_count(name: str, value: int) -> None:
    """Refuse what is no number of things to do."""
    if value < 1:
        raise ValueError(f"{name}={value}; pick {name} >= 1")


# --- the measurement


def flatness(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """Measure the mean loss under Gaussian noise on the weights, and the loss without noise."""
    found = average_flatness(
        subject.model,
        subject.loss,
        subject.batches,
        sigma=config.sigma,
        num_draws=config.draws,
        scaling=config.noise,
        generator=Generator().manual_seed(config.seed),
    )
    yield Record(
        "sharpness/average_flatness",
        found.value,
        "nats",
        found.stderr,
        found.n,
        settings={"sigma": config.sigma, "noise": config.noise},
        source="L^N of arXiv:2106.01548 v3; its sigma and draws are not published",
    )
    yield Record("sharpness/clean_loss", found.clean, "nats", n=subject.settings["images"])
