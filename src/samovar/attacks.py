"""Images changed within a small ball so that a model errs: FGSM and PGD, in pixels from 0 to 1.

The model takes images in [0, 1] and normalizes them itself (`models.Classifier` does), so that
radii mean what they say. It runs in eval mode and comes back as it was; only the images are
differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from samovar import restore

Norm = Literal["inf", "2"]
Criterion = Callable[[Tensor, Tensor], Tensor]

EPS, STEP_SIZE, NUM_STEPS = 2 / 255, 0.25 / 255, 10
"""The paper's attack, section 5.4 and appendix E.5 of arXiv:2106.01548."""


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = EPS,
    norm: Norm = "inf",
    random_start: bool = False,
    criterion: Criterion | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """One step of length eps up the loss's gradient, from the images or from a random point of the
    ball; [B, C, H, W].

    Cost: one gradient of the images. Arguments and errors as for `pgd`.

    Source: Goodfellow et al., arXiv:1412.6572; the random start: Wong et al., arXiv:2001.03994,
        whose step of 1.25 eps
    is `pgd(..., num_steps=1, step_size=1.25 * eps)`."""
    return pgd(
        model, images, labels, eps=eps, step_size=eps, num_steps=1, norm=norm, random_start=random_start,
        criterion=criterion, generator=generator,
    )  # fmt: skip


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = EPS,
    step_size: float = STEP_SIZE,
    num_steps: int = NUM_STEPS,
    norm: Norm = "inf",
    random_start: bool = True,
    restarts: int = 0,
    criterion: Criterion | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Projected gradient ascent of each image's loss within its ball and [0, 1]; the last point [B,
    C, H, W].

    Without restarts the last point counts, whatever the steps before it met, as everywhere. With
    restarts each image keeps the last point that is misclassified, and among equals the one of
    higher loss.

    Cost: num_steps * (1 + restarts) gradients of the images, and with restarts a forward pass each.

    Args:
        model: maps images in [0, 1] to logits [B, K]; lent in eval mode.
        images: [B, C, H, W] floating point in [0, 1].
        labels: [B] class indices.
        eps: radius, 0 to 1: largest change of a pixel, or for norm="2" the Euclidean length of an
            image's change.
        step_size: length of a step in the same norm, > 0.
        num_steps: >= 0.
        norm: "inf", steps along the sign of the gradient; "2", along the normalized gradient.
        random_start: begin at a random point, uniform in the ball, not at the image.
        restarts: further ascents from other random points.
        criterion: losses [B] of logits and labels; None is softmax cross-entropy.
        generator: the source of random points, drawn on its device; None is a fresh one on the CPU
            with seed 0.

    Raises:
        ValueError: images outside [0, 1] or of integers, a setting out of range, a gradient that is
            not finite.

    Source: Madry et al., arXiv:1706.06083."""
    _check(images, labels)
    _check_settings(eps, norm, step_size, num_steps, restarts, random_start)
    generator = generator or Generator().manual_seed(0)
    losses = criterion or _cross_entropy
    best = None
    with _differentiating_images(model):
        # copies: tensors made under inference mode can be neither differentiated nor written to
        labels, ball = labels.clone(), Ball(images.detach().clone(), eps, norm)
        found = ball.images.clone()
        for _ in range(1 + restarts):
            point = ball.random(generator) if random_start else ball.images.clone()
            for _ in range(num_steps):
                point = ball.climb(point, _slope(model, point, labels, losses), step_size)
            if not restarts:
                return point
            score = _score(model, point, labels, losses)
            better = (
                torch.ones_like(labels, dtype=torch.bool) if best is None else _beats(score, best)
            )
            found[better] = point[better]
            best = (
                score
                if best is None
                else tuple(torch.where(better, a, b) for a, b in zip(score, best, strict=True))
            )
    return found


@dataclass(frozen=True)
class Ball:
    """Points near images, within [0, 1]: where an attack may go."""

    images: Tensor
    """[B, C, H, W] in [0, 1]."""
    radius: float | Tensor
    """How far in the norm, 0 to 1 for "inf"; or a radius for each image, [B, 1, 1, 1], where 0 pins
    the image."""
    norm: Norm = "inf"

    def split(self, size: int) -> Iterator[Ball]:
        """Balls around contiguous groups of `size` images, the last maybe smaller; views, not
        copies."""
        for first in range(0, len(self.images), size):
            part = slice(first, first + size)
            radius = self.radius[part] if isinstance(self.radius, Tensor) else self.radius
            yield replace(self, images=self.images[part], radius=radius)

    def climb(self, points: Tensor, slope: Tensor, step_size: float) -> Tensor:
        """The points after a step of projected gradient ascent."""
        return self.project(points + step_size * self.direction(slope))

    def direction(self, slope: Tensor) -> Tensor:
        """The steepest ascent of length 1; 0 where there is no slope."""
        if self.norm == "inf":
            return slope.sign()
        return slope / _lengths(slope).clamp(min=torch.finfo(slope.dtype).tiny)

    def project(self, points: Tensor) -> Tensor:
        """The nearest points of the ball, or on the way there."""
        if self.norm == "inf":
            low, high = (
                (self.images - self.radius).clamp(min=0),
                (self.images + self.radius).clamp(max=1),
            )
            return torch.clamp(points, low, high)
        change = points - self.images
        change *= (self.radius / _lengths(change).clamp(min=torch.finfo(change.dtype).tiny)).clamp(
            max=1
        )
        return (self.images + change).clamp_(
            0, 1
        )  # nearer to the image in every pixel, so still in the ball

    def random(self, generator: Generator) -> Tensor:
        """Points uniform in the ball, cut to [0, 1]; drawn on the generator's device, which decides
        their bits."""
        shape, device = self.images.shape, generator.device
        if self.norm == "inf":
            change = torch.rand(shape, generator=generator, device=device) * 2 - 1
        else:
            change = torch.randn(shape, generator=generator, device=device)
            length = torch.rand(len(change), generator=generator, device=device) ** (
                1 / max(1, change[:1].numel())
            )
            change *= length.view(-1, 1, 1, 1) / _lengths(change)
        return self.project(
            self.images + self.radius * change.to(self.images.device, self.images.dtype)
        )


def _lengths(changes: Tensor) -> Tensor:
    """Euclidean length of each image's change, [B, 1, 1, 1]."""
    lengths: Tensor = torch.linalg.vector_norm(changes, dim=(1, 2, 3), keepdim=True)
    return lengths


def _slope(model: nn.Module, point: Tensor, labels: Tensor, losses: Criterion) -> Tensor:
    point = point.detach().requires_grad_()
    (slope,) = torch.autograd.grad(losses(model(point), labels).sum(), [point])
    if not torch.isfinite(slope).all():
        raise ValueError("the gradient of the images is not finite; look at the model's weights")
    return slope


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


@torch.no_grad()
def _score(
    model: nn.Module, point: Tensor, labels: Tensor, losses: Criterion
) -> tuple[Tensor, ...]:
    logits = model(point)
    return (logits.argmax(1) != labels).float(), losses(logits, labels)


def _beats(score: tuple[Tensor, ...], best: tuple[Tensor, ...]) -> Tensor:
    return (score[0] > best[0]) | ((score[0] == best[0]) & (score[1] > best[1]))


@contextmanager
def _differentiating_images(model: nn.Module) -> Iterator[None]:
    """Set eval mode and weights without gradients, so that no graph is built for them."""
    with (
        restore.modes(model, training=False),
        restore.requires_grad(model, False),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def _check(images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {list(images.shape)}; give floating point [B, C, H, W] in [0, 1]"
        )
    if len(labels) != len(images):
        raise ValueError(
            f"{len(images)} images and {len(labels)} labels; give a label for each image"
        )
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images run from {float(images.min()):.3g} to {float(images.max()):.3g}; give pixels in [0, 1], before "
            "normalization, which belongs into the model"
        )


def _check_settings(
    eps: float, norm: str, step_size: float, num_steps: int, restarts: int, random_start: bool
) -> None:
    if not 0 <= eps <= 1:
        raise ValueError(
            f"eps={eps} is not within [0, 1], the range of a pixel; 2/255 is the paper's"
        )
    if norm not in ("inf", "2"):
        raise ValueError(f"norm={norm!r} is unknown; pick 'inf' or '2'")
    if not step_size > 0 or num_steps < 0 or restarts < 0:
        raise ValueError(
            f"step_size={step_size}, num_steps={num_steps}, restarts={restarts}; pick step_size > 0, the others >= 0"
        )
    if restarts and not random_start:
        raise ValueError(
            "restarts without random_start would repeat the same ascent; set random_start=True"
        )
