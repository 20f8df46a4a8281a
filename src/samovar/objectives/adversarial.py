"""Adversarial training: images that climb the loss, each within its ball, in the passes that train
the weights.

min_w max_e max_d L(w + e, x + d) with d in a ball of pixels and e, under SAM, in a ball of weights.
From a random start the images take `num_steps` steps along the sign of their gradient at the clean
weights; the last of those gradients comes from the backward pass that perturbs the weights, so fast
adversarial training with SAM costs two passes, as SAM alone does. The gradients are those of the
training loss in training mode: mixed targets, smoothing, dropout and all.

Source: section 5.4 and appendix E.5 of arXiv:2106.01548; one step from a random start: Wong et al.,
arXiv:2001.03994."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Generator, Tensor

from samovar.attacks import Ball
from samovar.config import AdversarialConfig
from samovar.runtime import mix
from samovar.sam import InputAscent

RANDOM_START = 1
"""Tells the seed of a step's random start from the seed of its dropout."""


@dataclass(frozen=True)
class Attack:
    """Points of the balls around images, on their way up the loss."""

    points: Tensor
    """[B, C, H, W], moved in place."""
    ball: Ball
    step_size: float
    num_steps: int

    def split(self, size: int) -> Iterator[Attack]:
        """Attacks on contiguous groups of `size` images, the last maybe smaller, which move the
        same points."""
        parts = zip(torch.split(self.points, size), self.ball.split(size), strict=True)
        return (replace(self, points=points, ball=ball) for points, ball in parts)

    def ascent(self, pieces: Sequence[Tensor]) -> InputAscent:
        """The ascent of all points, of which `pieces` are views, side by side, that the loss
        functions read."""
        return InputAscent(pieces, self.move, self.num_steps)

    def move(self, slopes: Sequence[Tensor]) -> None:
        """Take one step along the gradients of the pieces."""
        self.points.copy_(self.ball.climb(self.points, torch.cat(list(slopes)), self.step_size))


def begin(images: Tensor, config: AdversarialConfig, *seeds: int) -> Attack | None:
    """The attack at its random start, or None where no image of the batch is attacked.

    Which images stay clean is decided by their places in the batch. They go through all passes with
    the others.

    Args:
        images: [B, C, H, W] float32 in [0, 1].
        config: what to do.
        seeds: what the random start is a function of, for instance (seed, step, rank), on each kind
            of device."""
    if config.eps == 0 or _clean_before(len(images), config.clean_share) == len(images):
        return None
    ball = Ball(images, config.eps)
    if config.clean_share:
        attacked = ~clean_places(len(images), config.clean_share, images.device)
        ball = replace(ball, radius=config.eps * attacked.to(images.dtype).view(-1, 1, 1, 1))
    generator = Generator(images.device).manual_seed(mix(*seeds, RANDOM_START))
    return Attack(ball.random(generator), ball, step_size(config), config.num_steps)


def step_size(config: AdversarialConfig) -> float:
    """The length of a step in pixels.

    Source: of the only one, 1.25 eps: Wong et al., arXiv:2001.03994 (the paper does not say); of
        one of several,
    2.5 eps / num_steps: Madry et al., arXiv:1706.06083."""
    usual = 1.25 * config.eps if config.num_steps == 1 else 2.5 * config.eps / config.num_steps
    return config.step_size or usual


def clean_places(count: int, share: float, device: torch.device | None = None) -> Tensor:
    """Which of `count` places in a batch [B] stay clean, spread so that n in a row have n * share
    of them, to below 1.

    Source: clean and attacked images in one batch: Kurakin et al., arXiv:1611.01236, who weigh them
        by 1 and 0.3; here
    all weigh the same."""
    # on the device and in whole numbers: no copy to wait for, no rounding that makes a group off by
    # one
    clean: Tensor = _clean_before(torch.arange(count + 1, device=device), share).diff() > 0
    return clean


def _clean_before(place: Any, share: float) -> Any:
    """How many of the places before this one, or before each of a tensor of them, stay clean."""
    exact = Fraction(share).limit_denominator(10**6)
    return (2 * place * exact.numerator + exact.denominator) // (2 * exact.denominator)
