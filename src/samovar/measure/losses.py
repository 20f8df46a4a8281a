"""The mean loss over batches and its gradient, each batch weighted by its number of examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from samovar.anymodel.outputs import OF_MODEL_AND_BATCH, loss_from
from samovar.anymodel.restore import evaluating, no_reentrant_checkpoints, rng
from samovar.curvature.inputs import num_examples
from samovar.curvature.summed import warn_if_summed

LossFn: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""Maps (model, batch) to the mean loss [] over the batch."""


def mean_loss(model: nn.Module, loss: LossFn, batches: Iterable[Any]) -> float:
    """Return the mean loss over all examples, summed in float64.

    Cost: one forward pass over the batches.

    Args:
        model: any; in eval mode inside, restored afterwards.
        loss: maps (model, batch) to the mean loss [] over the batch, or to an object, dict or tuple
            that holds it. Global random numbers that it draws are the same in every pass over the
            batches.
        batches: can be read several times, in the same order. A batch has a length, or is a tuple,
            list or mapping whose first tensor has the examples along dim 0.

    Raises:
        ValueError: no batches, a loss that is not a scalar or not finite, a batch of unknown size.
        TypeError: batches is an iterator; the loss is a function of (input, target)."""
    with evaluating(model):
        return finite(batch_losses(model, loss, batches)).mean


CHECKED = 8
"""Fewest examples of a batch whose loss is checked for being a sum."""
EMPTY = "batches is empty; give at least one batch"


class Losses:
    """The losses of batches, in order, and their numbers of examples."""

    def __init__(self, values: list[float], sizes: list[int]) -> None:
        self.values, self.sizes = values, sizes

    def __add__(self, other: Losses) -> Losses:
        return Losses(self.values + other.values, self.sizes + other.sizes)

    @property
    def mean(self) -> float:
        """Mean loss over examples."""
        weighted = (value * size for value, size in zip(self.values, self.sizes, strict=True))
        return sum(weighted) / sum(self.sizes)


def batch_losses(
    model: nn.Module, loss: LossFn, batches: Iterable[Any], *, check: bool = False
) -> Losses:
    """Compute the loss of each batch, without gradients; `check` as in `losses_and_gradient`."""
    return losses_and_gradient(model, loss, batches, (), check=check)[0]


def losses_and_gradient(
    model: nn.Module,
    loss: LossFn,
    batches: Iterable[Any],
    params: Sequence[Tensor],
    *,
    check: bool = False,
) -> tuple[Losses, list[Tensor]]:
    """Compute the loss of each batch, and the gradient of their weighted mean by `params`.

    The gradient is summed in float32 or the type of the parameter, whichever is more precise.

    Args:
        check: warn if the loss of the first batch looks like a sum over its examples, for a forward
            pass over it.

    Raises:
        ValueError: no batches, a loss that is no scalar tensor or does not depend on `params`."""

    def value_of(batch: Any) -> Tensor:
        return loss_from(loss, model, batch, example=OF_MODEL_AND_BATCH)

    values, sizes = [], []
    sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in params]
    # the same random numbers in every pass, else the noise of the loss would count as sharpness;
    # no_grad and not inference mode: a model that caches tensors (rotary tables) could not be
    # trained on with those
    refusal = no_reentrant_checkpoints() if params else nullcontext()
    with rng(), torch.set_grad_enabled(bool(params)), refusal:
        for batch in checked(batches):
            value = value_of(batch)
            size = num_examples(batch)
            values.append(float(value.detach()))
            sizes.append(size)
            if params and not value.requires_grad:
                raise ValueError(
                    "the loss does not depend on the weights; does the model run under no_grad?"
                )
            grads = torch.autograd.grad(value, params, allow_unused=True) if params else ()
            if check and len(sizes) == 1 and size >= CHECKED:
                warn_if_summed(value_of, batch, values[0])
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total.add_(grad, alpha=size)
    if not sizes:
        raise ValueError(EMPTY)
    for total in sums:
        total /= sum(sizes)
    return Losses(values, sizes), sums


def checked(batches: Iterable[Any]) -> Iterable[Any]:
    """Return the batches; raise TypeError if they can be read only once."""
    if iter(batches) is batches:
        raise TypeError(
            "batches is an iterator, which gives its batches once; give a list or a DataLoader"
        )
    return batches


def finite(found: Losses) -> Losses:
    """Return the losses; raise ValueError if one is not finite."""
    for i, value in enumerate(found.values):
        if not math.isfinite(value):
            raise ValueError(
                f"the loss of batch {i} is {value} at the weights as given; check weights and data"
            )
    return found


def weighted_stderr(values: Sequence[float], sizes: Sequence[int]) -> float | None:
    """Return the standard error of a mean weighted by `sizes`.

    For equal sizes it is that of the plain mean. None for fewer than two values, or values that are
    not finite."""
    n, total = len(values), sum(sizes)
    if n < 2 or not all(math.isfinite(value) for value in values):
        return None
    mean = sum(v * s for v, s in zip(values, sizes, strict=True)) / total
    return math.sqrt(
        n / (n - 1) * sum((s / total * (v - mean)) ** 2 for v, s in zip(values, sizes, strict=True))
    )
