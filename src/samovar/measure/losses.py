"""The mean loss over batches, and its gradient: one number per batch, weighted by its examples.

A loss maps (model, batch) to its mean over the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samovar.curvature.inputs import num_examples
from samovar.restore import evaluating, rng

LossFn = Callable[[nn.Module, Any], Tensor]


def mean_loss(model: nn.Module, loss: LossFn, batches: Iterable[Any]) -> float:
    """Mean loss over all examples, summed in float64; one forward pass over the batches.

    Args:
        model: any; lent in eval mode.
        loss: mean loss [] of a batch. Global random numbers it draws are the same in every pass
            over the batches.
        batches: can be iterated over again and again in one order. A batch has a length, or is a
            tuple, list or mapping whose first tensor has its examples along dim 0.

    Raises:
        ValueError: no batches, a loss that is not a scalar or not finite, a batch of unknown size.
        TypeError: batches is an iterator."""
    with evaluating(model):
        return finite(batch_losses(model, loss, batches)).mean


EMPTY = "batches is empty; give at least one batch"


class Losses:
    """Losses of batches, in order, with the numbers of their examples."""

    def __init__(self, values: list[float], sizes: list[int]) -> None:
        self.values, self.sizes = values, sizes

    def __add__(self, other: Losses) -> Losses:
        return Losses(self.values + other.values, self.sizes + other.sizes)

    @property
    def mean(self) -> float:
        """Over examples."""
        return sum(value * size for value, size in zip(self.values, self.sizes, strict=True)) / sum(
            self.sizes
        )


def batch_losses(model: nn.Module, loss: LossFn, batches: Iterable[Any]) -> Losses:
    """Loss of each batch, without a graph."""
    return losses_and_gradient(model, loss, batches, ())[0]


def losses_and_gradient(
    model: nn.Module, loss: LossFn, batches: Iterable[Any], params: Sequence[Tensor]
) -> tuple[Losses, list[Tensor]]:
    """Loss of each batch, and the gradient of their weighted mean for params, in at least
    float32."""
    values, sizes = [], []
    sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in params]
    # the same random numbers in every pass, else the noise of the loss would count as sharpness.
    # Not inference mode: what a model caches in it (rotary tables) could not be trained on
    # afterwards
    with rng(), torch.set_grad_enabled(bool(params)):
        for batch in checked(batches):
            value = loss(model, batch)
            if not isinstance(value, Tensor) or value.ndim:
                got = (
                    f"shape {list(value.shape)}"
                    if isinstance(value, Tensor)
                    else type(value).__name__
                )
                raise ValueError(
                    f"the loss of a batch is of {got}; return its mean over the batch, a tensor of shape []"
                )
            size = num_examples(batch)
            values.append(float(value.detach()))
            sizes.append(size)
            if params and not value.requires_grad:
                raise ValueError(
                    "the loss does not depend on the weights; does the model run under no_grad?"
                )
            grads = torch.autograd.grad(value, params, allow_unused=True) if params else ()
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total.add_(grad, alpha=size)
    if not sizes:
        raise ValueError(EMPTY)
    for total in sums:
        total /= sum(sizes)
    return Losses(values, sizes), sums


def checked(batches: Iterable[Any]) -> Iterable[Any]:
    """The batches, if they can be read again."""
    if iter(batches) is batches:
        raise TypeError(
            "batches is an iterator, which gives its batches once; give a list or a DataLoader"
        )
    return batches


def finite(found: Losses) -> Losses:
    """What was found, if weights and data are sound."""
    for i, value in enumerate(found.values):
        if not math.isfinite(value):
            raise ValueError(
                f"the loss of batch {i} is {value} at the weights as given; check weights and data"
            )
    return found


def weighted_stderr(values: Sequence[float], sizes: Sequence[int]) -> float | None:
    """Standard error of the weighted mean; that of the plain mean for equal sizes."""
    n, total = len(values), sum(sizes)
    if n < 2 or not all(math.isfinite(value) for value in values):
        return None
    mean = sum(v * s for v, s in zip(values, sizes, strict=True)) / total
    return math.sqrt(
        n / (n - 1) * sum((s / total * (v - mean)) ** 2 for v, s in zip(values, sizes, strict=True))
    )
