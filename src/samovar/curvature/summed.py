"""Notice a loss that is a sum over the examples of a batch where their mean is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from samovar.anymodel.restore import rng
from samovar.curvature.inputs import map_tensors, tensors_of

SAME = 1e-3
"""Largest relative difference of two losses that count as equal."""


def warn_if_summed(loss: Callable[[Any], Tensor], batch: Any, whole: float) -> None:
    """Warn if the losses of the two halves of a batch add up to that of the whole batch.

    They do so for a sum over examples; of a mean, their mean is that of the whole. The cost is a
    forward pass over the batch, without gradients. Nothing is said of a batch whose tensors do not
    all have the examples along dim 0, nor of a loss that raises on half a batch.

    Args:
        loss: maps a batch to its loss [].
        batch: tensors in any structure of tuples, lists, dicts and dataclasses.
        whole: the loss of the batch.

    Warns:
        UserWarning: it is a sum."""
    count = _common_length(batch)
    if count < 2:
        return
    half = count // 2
    halves = map_tensors(batch, lambda x: x[:half]), map_tensors(batch, lambda x: x[half:])
    try:
        with torch.no_grad(), rng():
            first, second = (float(loss(each)) for each in halves)
    # such as of a model that takes batches of one size, or labels that are no tensor
    except (RuntimeError, ValueError, TypeError, IndexError):
        return
    mean = (half * first + (count - half) * second) / count
    if _same(first + second, whole) and not _same(mean, whole):
        warnings.warn(
            f"the loss grows with the number of examples: the two halves of a batch of {count} "
            f"have {first:.4g} and {second:.4g}, and the batch has {whole:.4g}. It looks like a "
            "sum, so the results are about as many times too large as a batch has examples; "
            'return the mean over the batch, as reduction="mean" does',
            stacklevel=2,
        )


def _common_length(batch: Any) -> int:
    """Return the length along dim 0 that all tensors of a batch share; 0 if there is none."""
    lengths = {len(x) if x.ndim else 0 for x in tensors_of(batch)}
    return lengths.pop() if len(lengths) == 1 else 0


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= SAME * abs(other)
