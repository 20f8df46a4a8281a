"""Average flatness: the mean loss under Gaussian noise on the weights.

Weights are the parameters that require a gradient. Models are in eval mode inside and are restored
afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor, nn

from samovar.anymodel.devices import to_device
from samovar.anymodel.restore import shiftable
from samovar.config import MeasureConfig
from samovar.measure.losses import LossFn, batch_losses, finite, weighted_stderr
from samovar.runs.records import Record

if TYPE_CHECKING:  # a run's data and models are not needed to call the functions here
    from samovar.measure.subject import Subject


@dataclass(frozen=True)
class FlatnessEstimate:
    """The mean loss over draws of weight noise."""

    value: float
    """Mean of the loss over the draws; inf or nan if the loss of a draw is inf or nan."""
    stderr: float | None
    """Standard error of `value` and of `increase` over the draws; None for a single draw or a value
    that is not finite."""
    n: int
    """Number of draws."""
    clean: float
    """Loss without noise."""
    draws: tuple[float, ...]
    """Loss of each draw; under `antithetic` the mean of its two losses."""

    @property
    def increase(self) -> float:
        """Mean rise of the loss under noise, `value - clean`."""
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
) -> FlatnessEstimate:
    """Estimate E L(w + e) over Gaussian noise e on the weights.

    `isotropic` noise is e ~ N(0, sigma^2) in every weight. `filter` noise cuts a tensor of two or
    more dimensions along dim 0 into filters f of d weights each and draws e ~ N(0, sigma^2 |f|^2 /
    d), so the noise on a filter has sigma times its norm (root mean square). Tensors of fewer
    dimensions, which are biases and scales of norms, get no filter noise. Position embeddings and
    class tokens [1, ...] are one filter.

    Cost: 1 + num_draws forward passes over the batches, and one over the first, whose loss is
    checked for being a sum. Memory: one copy of the weights.

    Args:
        model, loss, batches: as in `mean_loss`.
        sigma: >= 0, in units of the weights, or of their filters' root mean square.
        num_draws: >= 1.
        scaling: the unit of sigma, see above.
        antithetic: take the mean over e and -e as a draw, at twice the cost; odd terms of the loss
            then cancel.
        generator: on the CPU; draws all of the noise, in float32, parameter by parameter.

    Raises:
        ValueError: a setting out of range, no weights to perturb, or as `mean_loss`; the loss of a
            draw need not be finite.

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
        clean = finite(batch_losses(model, loss, batches, check=True)).mean
        draws = []
        for _ in range(num_draws):
            # e and -e come from the same random numbers
            state, both = generator.get_state(), []
            for signed in (sigma, -sigma) if antithetic else (sigma,):
                generator.set_state(state)
                weights.shift(gaussian_noise(weights.clean, signed, SCALINGS[scaling], generator))
                both.append(batch_losses(model, loss, batches).mean)
            draws.append(sum(both) / len(both))
    value = sum(draws) / num_draws
    stderr = weighted_stderr(draws, [1] * num_draws)
    return FlatnessEstimate(value, stderr, num_draws, clean, tuple(draws))


def gaussian_noise(
    clean: Sequence[Tensor],
    sigma: float,
    scale: Callable[[Tensor], Tensor | float],
    generator: Generator,
) -> Iterator[Tensor]:
    """Yield the noise of one tensor at a time, for the weights `clean`."""
    for w in clean:  # all noise at once would be another copy of the weights
        # drawn on the CPU in float32, so that a seed gives the same noise on every device
        z = to_device(torch.randn(w.shape, generator=generator, dtype=torch.float32), w.device)
        yield sigma * scale(w) * z


def _filter_rms(w: Tensor) -> Tensor | float:
    """Return the root mean square of each filter, [F, 1, ...]; 0 for tensors of one dimension."""
    if w.ndim < 2:
        return 0.0
    rows = w.flatten(1).to(torch.promote_types(w.dtype, torch.float32))
    return rows.square().mean(1).sqrt().view(-1, *[1] * (w.ndim - 1))


SCALINGS: dict[str, Callable[[Tensor], Tensor | float]] = {
    "isotropic": lambda w: 1.0,
    "filter": _filter_rms,
}


def check_radius(name: str, value: float) -> None:
    """Raise ValueError for a radius that is negative or not finite."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value} is negative or not finite; pick {name} >= 0")


def check_count(name: str, value: int) -> None:
    """Raise ValueError for a count below 1."""
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
        "flatness/average_flatness",
        found.value,
        "nats",
        found.stderr,
        found.n,
        settings={"sigma": config.sigma, "noise": config.noise},
        source="L^N of arXiv:2106.01548 v3; its sigma and draws are not published",
    )
    yield Record("flatness/clean_loss", found.clean, "nats", n=subject.settings["images"])
