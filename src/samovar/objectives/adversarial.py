"""Adversarial training: images climb the loss within a ball, in the passes that train the weights.

min_w max_e max_d L(w + e, x + d) with d in a ball of pixels and, under SAM, e in a ball of weights.
From a random start the images take `num_steps` steps along the sign of their gradient at the clean
weights. The last of these gradients comes from the backward pass that perturbs the weights, so fast
adversarial training with SAM costs two passes, as SAM alone does. The gradients are those of the
training loss in training mode, with mixed targets, smoothing and dropout.

Source: section 5.4 and appendix E.5 of arXiv:2106.01548; one step from a random start: Wong et
al., arXiv:2001.03994."""

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
"""Constant in the seed of a step's random start, which keeps it apart from the seed of dropout."""


@dataclass(frozen=True)
class Attack:
    """Adversarial images within their balls, and the steps that move them."""

    points: Tensor
    """[B, C, H, W], changed in place."""
    ball: Ball
    step_size: float
    num_steps: int

    def split(self, size: int) -> Iterator[Attack]:
        """Yield attacks on contiguous groups of `size` images that share the same points.

        The last group may be smaller."""
        parts = zip(torch.split(self.points, size), self.ball.split(size), strict=True)
        return (replace(self, points=points, ball=ball) for points, ball in parts)

    def ascent(self, pieces: Sequence[Tensor]) -> InputAscent:
        """Return the ascent of all points.

        Args:
            pieces: the views of the points, side by side, that the loss functions read."""
        return InputAscent(pieces, self.move, self.num_steps)

    def move(self, slopes: Sequence[Tensor]) -> None:
        """Take one step along the gradients of the pieces."""
        self.points.copy_(self.ball.climb(self.points, torch.cat(list(slopes)), self.step_size))


def begin(images: Tensor, config: AdversarialConfig, *seeds: int) -> Attack | None:
    """Return the attack at its random start, or None if no image of the batch is attacked.

    The places of images in the batch decide which of them stay clean; clean images take part in all
    passes.

    Args:
        images: [B, C, H, W] float32 in [0, 1].
        config: the settings.
        seeds: the random start depends on these, for instance (seed, step, rank), and on the
            kind of device."""
    if config.eps == 0 or _clean_before(len(images), config.clean_share) == len(images):
        return None
    # a radius of 0 pins the clean images, so that the batch stays in one piece
    ball = Ball(images, config.eps)
    if config.clean_share:
        attacked = ~clean_places(len(images), config.clean_share, images.device)
        ball = replace(ball, radius=config.eps * attacked.to(images.dtype).view(-1, 1, 1, 1))
    generator = Generator(images.device).manual_seed(mix(*seeds, RANDOM_START))
    return Attack(ball.random(generator), ball, step_size(config), config.num_steps)


def step_size(config: AdversarialConfig) -> float:
    """Return the length of a step in pixels, in the range [0, 1] of a pixel.

    Source: 1.25 eps for a single step: Wong et al., arXiv:2001.03994 (the paper does not say);
    2.5 eps / num_steps for several: Madry et al., arXiv:1706.06083."""
    usual = 1.25 * config.eps if config.num_steps == 1 else 2.5 * config.eps / config.num_steps
    return config.step_size or usual


def clean_places(count: int, share: float, device: torch.device | None = None) -> Tensor:
    """Return which of `count` places in a batch stay clean, [B].

    They are spread so that any n places in a row hold n * share of them, to within 1.

    Source: clean and attacked images in one batch: Kurakin et al., arXiv:1611.01236, who weigh
    them by 1 and 0.3; here all weigh the same."""
    # whole numbers on the device: no copy to wait for, and no rounding error that gives a group one
    # clean image too many
    clean: Tensor = _clean_before(torch.arange(count + 1, device=device), share).diff() > 0
    return clean


def _clean_before(place: Any, share: float) -> Any:
    """Return how many places before this one (or before each of a tensor of places) stay clean."""
    # a fraction, since floating point would round differently for scalars and tensors
    exact = Fraction(share).limit_denominator(10**6)
    return (2 * place * exact.numerator + exact.denominator) // (2 * exact.denominator)
