"""Worst-case sharpness: the highest loss within SAM's ball around the weights.

Weights are the parameters that require a gradient. Models are in eval mode inside and are restored
afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from samovar.anymodel.restore import ShiftableWeights, shiftable
from samovar.config import MeasureConfig
from samovar.measure.flatness import SCALINGS, check_count, check_radius, gaussian_noise
from samovar.measure.losses import (
    EMPTY,
    Losses,
    LossFn,
    checked,
    finite,
    losses_and_gradient,
    weighted_stderr,
)
from samovar.runs.records import Record

if TYPE_CHECKING:  # a run's data and models are not needed to call the functions here
    from samovar.measure.subject import Subject


@dataclass(frozen=True)
class Sharpness:
    """The highest loss found in the ball, minus the loss at the weights."""

    value: float
    """`loss_perturbed - loss_clean`; inf or nan if the ascent met such a loss."""
    stderr: float | None
    """Standard error of `value` over batches, weighted by their examples, for a fixed perturbation;
    None for a single batch or a value that is not finite."""
    n: int
    """Number of batches."""
    loss_clean: float
    loss_perturbed: float
    num_gradients: int
    """Number of gradients that were taken, each of the loss of a batch."""
    values: tuple[float, ...]
    """Increase of the loss of each batch."""


def sam_sharpness(
    model: nn.Module,
    loss: LossFn,
    batches: Iterable[Any],
    *,
    rho: float,
    num_steps: int = 1,
    step_size: float | None = None,
    adaptive: bool = False,
    eta: float = 0.01,
    restarts: int = 0,
    per_batch: bool = False,
    generator: Generator | None = None,
) -> Sharpness:
    """Estimate max L(w + e) - L(w) over |e| <= rho from below, by gradient ascent.

    One step leads to SAM's own point, e = rho g / |g|, or stays at w if g = 0; its value may be
    negative. Further steps go `step_size` along the normalized gradient, and are projected back
    onto the ball where they leave it. The value is then the highest loss met, that at w included,
    so it never falls with the number of steps. A loss that is not finite ends an ascent and is its
    value. Where rho is small, the rounding error of the losses remains, some 1e-7 of them in
    float32.

    Cost: num_steps * (1 + restarts) gradients and 1 + restarts forward passes over the batches, and
    a forward pass over the first, whose loss is checked for being a sum.
    Memory: five times the weights, in addition to that of the loss.

    Args:
        model: the network.
        loss: as in `mean_loss`.
        batches: as in `mean_loss`.
        rho: radius >= 0 in the norm of all weights together.
        num_steps: gradients of an ascent, >= 1.
        step_size: length > 0 of the steps after the first; None is rho, which acts like power
            iteration.
        adaptive: search in ASAM's ellipsoid |e / T| <= rho, where T = |w| + eta for weights and 1
            for the rest. Weights are the parameters with "weight" in their names, those of norm
            layers included, but not biases.
        eta: ASAM's offset, > 0.
        restarts: further ascents, each from a random point of the sphere.
        per_batch: give each batch its own e, and return the mean of their sharpness (m-sharpness,
            which SAM minimizes).
        generator: on the CPU; draws the starting points of restarts.

    Raises:
        ValueError: a setting out of range, restarts without a generator, a gradient at w that is
            not finite, a loss that does not depend on the weights, or as `mean_loss` (but for
            losses away from w).

    Source: Foret et al., arXiv:2010.01412; Kwon et al., arXiv:2102.11600."""
    check_radius("rho", rho)
    check_count("num_steps", num_steps)
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(
            f"step_size={step_size} is not positive and finite; pick step_size > 0, or None for rho"
        )
    if not 0 < eta < math.inf:
        raise ValueError(
            f"eta={eta} is not positive and finite; pick eta > 0 (ASAM's authors use 0.01)"
        )
    if restarts < 0 or (restarts and generator is None):
        raise ValueError(
            f"restarts={restarts}; pick restarts >= 0, and for restarts > 0 give a generator"
        )
    # one search for all batches, or one each
    groups = ([batch] for batch in checked(batches)) if per_batch else [batches]
    clean, highest, num_gradients = Losses([], []), Losses([], []), 0
    with shiftable(model) as weights:
        ball = _Ball(
            weights, rho, rho if step_size is None else step_size, eta if adaptive else None
        )
        for number, group in enumerate(groups):
            search = _Search(model, loss, group, ball, check=not number)
            best = search.highest(num_steps, restarts, generator)
            clean, highest = clean + search.clean, highest + best
            num_gradients += search.num_gradients
    if not clean.sizes:
        raise ValueError(EMPTY)
    values = [after - before for before, after in zip(clean.values, highest.values, strict=True)]
    stderr = weighted_stderr(values, clean.sizes)
    value = highest.mean - clean.mean
    return Sharpness(
        value, stderr, len(values), clean.mean, highest.mean, num_gradients, tuple(values)
    )


class _Ball(NamedTuple):
    """The weights w + T u with |u| <= rho; T is 1 if eta is None."""

    weights: ShiftableWeights
    rho: float
    step_size: float
    eta: float | None

    def times_t(self, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        """Multiply each tensor by T, one at a time."""
        for name, w, x in zip(self.weights.names, self.weights.clean, tensors, strict=True):
            # the rule of ASAM's authors, as in samovar.sam
            is_weight = "weight" in name and "bias" not in name.rpartition(".")[2]
            yield x if self.eta is None or not is_weight else x * (w.abs() + self.eta)

    def step(self, u: list[Tensor] | None, grads: list[Tensor]) -> list[Tensor] | None:
        """Return the next u after the gradient at u, or None if that is zero or not finite.

        Args:
            u: None is the centre."""
        # in coordinates u the gradient is T g, since w moves by T u
        direction = list(self.times_t(grads))
        norm = _norm(direction)
        if not norm or not math.isfinite(norm):
            return None
        torch._foreach_mul_(direction, (self.rho if u is None else self.step_size) / norm)
        if u is not None:
            torch._foreach_add_(direction, u)
            # back onto the ball
            if (norm := _norm(direction)) > self.rho:
                torch._foreach_mul_(direction, self.rho / norm)
        return direction

    def random(self, generator: Generator) -> list[Tensor]:
        """Draw a random u of length rho."""
        u = list(gaussian_noise(self.weights.clean, 1.0, SCALINGS["isotropic"], generator))
        torch._foreach_mul_(u, self.rho / _norm(u))
        return u


class _Search:
    """Ascents of the mean loss over some batches, within a ball."""

    def __init__(
        self, model: nn.Module, loss: LossFn, batches: Iterable[Any], ball: _Ball, *, check: bool
    ) -> None:
        self.model, self.loss, self.batches, self.ball = model, loss, batches, ball
        self.check = check
        self.num_gradients = 0

    def highest(self, num_steps: int, restarts: int, generator: Generator | None) -> Losses:
        """Return the losses whose mean is highest; sets `clean` to the losses at the centre."""
        self.clean, grads = self.look(None, gradient=True)
        finite(self.clean)
        if not math.isfinite(_norm(grads)):
            raise ValueError(
                "the gradient at the weights as given is not finite; check weights and data"
            )
        found = list(self.climb(None, grads, num_steps))
        del grads  # as large as the weights, and not needed by restarts
        for _ in range(restarts):
            assert generator is not None
            u = self.ball.random(generator)
            losses, grads = self.look(u, gradient=True)
            found += [losses, *self.climb(u, grads, num_steps)]
        # a single step is SAM's own point, whose loss may be below that at the centre
        if num_steps > 1 or restarts or not found:
            found.append(self.clean)
        return max(found, key=lambda losses: (not math.isfinite(losses.mean), losses.mean))

    def climb(
        self, u: list[Tensor] | None, grads: list[Tensor], num_steps: int
    ) -> Iterator[Losses]:
        """Yield the losses at each point of an ascent from u, where the gradient is `grads`."""
        for left in reversed(range(num_steps)):
            u = self.ball.step(u, grads)
            if u is None:
                return
            losses, grads = self.look(u, gradient=left > 0)
            yield losses
            if not math.isfinite(losses.mean):
                return

    def look(self, u: list[Tensor] | None, *, gradient: bool) -> tuple[Losses, list[Tensor]]:
        """Return the losses at w + T u, and the gradient there if asked for."""
        weights = self.ball.weights
        weights.shift(self.ball.times_t(u) if u is not None else None)
        losses, grads = losses_and_gradient(
            self.model,
            self.loss,
            self.batches,
            weights.params if gradient else (),
            check=self.check and u is None,
        )
        self.num_gradients += len(losses.sizes) * gradient
        return losses, grads


def _norm(tensors: list[Tensor]) -> float:
    return math.hypot(*(float(norm) for norm in torch._foreach_norm(tensors)))


# --- the measurement


def sharpness(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """Measure the rise of the loss in SAM's ball: at SAM's point, the highest found, and ASAM's."""
    for title, num_steps, adaptive in (
        ("sam", 1, False),
        ("worst", config.ascent_steps, False),
        ("adaptive", 1, True),
    ):
        # ASAM's radius is relative to the weights; its authors take one about ten times larger
        rho = config.rho * (10 if adaptive else 1)
        found = sam_sharpness(
            subject.model,
            subject.loss,
            subject.batches,
            rho=rho,
            num_steps=num_steps,
            adaptive=adaptive,
        )
        yield Record(
            f"sharpness/{title}",
            found.value,
            "nats",
            found.stderr,
            settings={
                "rho": rho,
                "ascent_steps": num_steps,
                "adaptive": adaptive,
                "perturbation": "one for all images",
            },
            cost={"gradients": found.num_gradients},
            source="arXiv:2102.11600" if adaptive else "arXiv:2010.01412",
        )
