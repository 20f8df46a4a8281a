"""Adversarial attacks on images within a small ball: FGSM and PGD, for pixels from 0 to 1.

The model takes images in [0, 1] and normalizes them itself, as our classifiers do; a radius is then
in units of pixels. The model runs in eval mode and comes back as it was. Only the images are
differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from samovar.anymodel import restore
from samovar.anymodel.outputs import logits_of

Norm = Literal["inf", "2"]
Criterion = Callable[[Tensor, Tensor], Tensor]

EPS, STEP_SIZE, NUM_STEPS = 2 / 255, 0.25 / 255, 10
"""The paper's attack, section 5.4 and appendix E.5 of arXiv:2106.01548."""
ROUNDING = 1e-5
"""How far outside [0, 1] images may be, such as those whose normalization was undone."""


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
    """Return images [B, C, H, W] after one step of length eps along the loss's gradient.

    The step starts at the images or at a random point of the ball. It costs one gradient of the
    images. Arguments and errors are those of `pgd`.

    Source: Goodfellow et al., arXiv:1412.6572; the random start: Wong et al., arXiv:2001.03994,
        whose step of 1.25 eps is `pgd(..., num_steps=1, step_size=1.25 * eps)`."""
    return pgd(
        model,
        images,
        labels,
        eps=eps,
        step_size=eps,
        num_steps=1,
        norm=norm,
        random_start=random_start,
        criterion=criterion,
        generator=generator,
    )


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
    """Return images [B, C, H, W] after projected gradient ascent of each image's loss.

    The images stay within their balls and [0, 1]; those up to 1e-5 outside (in 16 bits: one step of
    the type at 1) are clamped first. Without restarts the last point counts, whatever
    the steps met on the way, as is usual. With restarts each image keeps the last point of the
    ascent that ends misclassified, and among equals that of higher loss.

    The cost is num_steps * (1 + restarts) gradients of the images, and with restarts one forward
    pass for each ascent.

    Args:
        model: maps images in [0, 1] to logits [B, K], or to an object that has them as `.logits`;
            runs in eval mode.
        images: [B, C, H, W] floating point in [0, 1].
        labels: [B] class indices.
        eps: radius, 0 to 1: the largest change of a pixel, or for norm="2" the Euclidean length of
            an image's change.
        step_size: length of a step in the same norm, > 0.
        num_steps: number of steps, >= 0.
        norm: "inf" steps along the sign of the gradient, "2" along the normalized gradient.
        random_start: start at a random point, uniform in the ball, instead of the image.
        restarts: number of further ascents from other random points.
        criterion: maps logits and labels to losses [B]; None is softmax cross-entropy.
        generator: draws random points on its own device; None is a fresh one on the CPU with
            seed 0.

    Raises:
        ValueError: images are outside [0, 1] or integers, a setting is out of range, or a gradient
            is not finite.

    Source: Madry et al., arXiv:1706.06083."""
    images = _pixels(images, labels)
    _check_settings(eps, norm, step_size, num_steps, restarts, random_start)
    generator = generator or Generator().manual_seed(0)
    losses = criterion or _cross_entropy
    best = None
    with _differentiating_images(model):
        # Copies: tensors made under inference mode can be neither differentiated nor written to.
        labels, ball = labels.clone(), Ball(images.clone(), eps, norm)
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
    """The points near images, within [0, 1], that an attack may reach."""

    images: Tensor
    """[B, C, H, W] in [0, 1]."""
    radius: float | Tensor
    """Radius in the norm, 0 to 1 for "inf"; or one for each image, [B, 1, 1, 1], where 0 fixes the
    image."""
    norm: Norm = "inf"

    def split(self, size: int) -> Iterator[Ball]:
        """Yield balls around `size` consecutive images each, as views; the last may be smaller."""
        for first in range(0, len(self.images), size):
            part = slice(first, first + size)
            radius = self.radius[part] if isinstance(self.radius, Tensor) else self.radius
            yield replace(self, images=self.images[part], radius=radius)

    def climb(self, points: Tensor, slope: Tensor, step_size: float) -> Tensor:
        """Return the points after a step of projected gradient ascent."""
        return self.project(points + step_size * self.direction(slope))

    def direction(self, slope: Tensor) -> Tensor:
        """Return the direction of steepest ascent, of length 1; 0 where the slope is 0."""
        if self.norm == "inf":
            return slope.sign()
        return slope / _lengths(slope).clamp(min=torch.finfo(slope.dtype).tiny)

    def project(self, points: Tensor) -> Tensor:
        """Return the points moved into the ball and [0, 1]; for "inf" to the nearest point."""
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
        # The clamp moves every pixel nearer to the image's, so the point stays in the ball.
        return (self.images + change).clamp_(0, 1)

    def random(self, generator: Generator) -> Tensor:
        """Return points that are uniform in the ball, then clamped to [0, 1].

        They are drawn on the generator's device, which determines their bits."""
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
    """Return the Euclidean length of each image's change, [B, 1, 1, 1]."""
    lengths: Tensor = torch.linalg.vector_norm(changes, dim=(1, 2, 3), keepdim=True)
    return lengths


def _slope(model: nn.Module, point: Tensor, labels: Tensor, losses: Criterion) -> Tensor:
    point = point.detach().requires_grad_()
    (slope,) = torch.autograd.grad(losses(logits_of(model(point)), labels).sum(), [point])
    if not torch.isfinite(slope).all():
        raise ValueError("the gradient of the images is not finite; look at the model's weights")
    return slope


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


@torch.no_grad()
def _score(
    model: nn.Module, point: Tensor, labels: Tensor, losses: Criterion
) -> tuple[Tensor, ...]:
    logits = logits_of(model(point))
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


def _pixels(images: Tensor, labels: Tensor) -> Tensor:
    """Return the images, detached and within [0, 1].

    Raises:
        ValueError: they are no images in [0, 1] up to rounding, or not one for each label."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {list(images.shape)}; "
            "give floating point [B, C, H, W] in [0, 1]"
        )
    if len(labels) != len(images):
        raise ValueError(
            f"{len(images)} images and {len(labels)} labels; give a label for each image"
        )
    images = images.detach()
    slack = max(ROUNDING, torch.finfo(images.dtype).eps)
    if len(images) and not (images.min() >= -slack and images.max() <= 1 + slack):
        raise ValueError(
            f"images run from {_shown(images.min())} to {_shown(images.max())}; give pixels "
            "in [0, 1], before normalization, which belongs into the model"
        )
    return images.clamp(0, 1)


def _shown(pixel: Tensor) -> str:
    """Format a pixel so that one outside [0, 1] does not round into it."""
    value = float(pixel)
    short = f"{value:.3g}"
    return f"{value:.8g}" if 0 <= float(short) <= 1 else short


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
            f"step_size={step_size}, num_steps={num_steps}, restarts={restarts}; "
            "pick step_size > 0, the others >= 0"
        )
    if restarts and not random_start:
        raise ValueError(
            "restarts without random_start would repeat the same ascent; set random_start=True"
        )
