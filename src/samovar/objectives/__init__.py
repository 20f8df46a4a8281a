"""What is minimized: functions of a model and a batch to a loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from samovar.config import Config
from samovar.data.loader import Batch
from samovar.objectives.contrastive import shared_supcon_loss, supcon_loss


class Loss(NamedTuple):
    """A loss, with what it was computed from."""

    value: Tensor
    """Scalar, the mean over examples; float32 under autocast."""
    logits: Tensor
    """[B, K], as the model gave them; of a contrastive loss embeddings [B, P]."""


Objective = Callable[[nn.Module, Batch], Loss]
Criterion = Callable[[Tensor, Tensor], Tensor]


def softmax_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over examples of -sum_k t_k log softmax_k, in nats, with targets t smoothed to (1 - s) t
    + s / K.

    Args:
        logits: [B, K].
        targets: [B] class indices, or [B, K] shares.
        label_smoothing: s, the share of each target spread evenly over the classes."""
    return F.cross_entropy(_at_least_float32(logits), targets, label_smoothing=label_smoothing)


def sigmoid_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over examples of the sum over classes of binary cross-entropies, in nats, with smoothing
    as for softmax.

    Some 10 where a zero head with bias -10 meets 1000 classes.

    Args:
        logits: [B, K].
        targets: [B] class indices, or [B, K] shares.
        label_smoothing: s in (1 - s) t + s / K, so that a row of targets keeps its sum.

    Source: the loss of ViT and Mixer in appendix B.1 of arXiv:2106.01548."""
    logits = _at_least_float32(logits)
    num_examples, num_classes = logits.shape
    if targets.ndim == 1:
        targets = F.one_hot(targets, num_classes)
    targets = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / num_classes
    # as optax; torch's own cancels 4e-5 of the loss away at the paper's head bias of -10
    return (
        -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits)).sum()
        / num_examples
    )


LOSSES: dict[str, Callable[..., Tensor]] = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
}


def make_objective(config: Config, num_classes: int, world_size: int = 1) -> Objective:
    """The objective a config names, by its `loss` and `label_smoothing`.

    It takes a batch's shares of classes where there are any, else its labels. It raises ValueError
    when the model's logits are not [B, num_classes]. That of `supcon` takes labels alone, and is of
    a model that gives embeddings.

    Args:
        config: which loss.
        num_classes: K.
        world_size: ranks that call it at the same time; a contrastive loss compares the images of
            all of them."""
    if config.loss == "supcon":
        return _contrastive(config.contrastive.temperature, world_size)
    criterion: Criterion = partial(LOSSES[config.loss], label_smoothing=config.label_smoothing)

    def objective(model: nn.Module, batch: Batch) -> Loss:
        logits = model(batch.images)
        if logits.ndim != 2 or logits.shape[1] != num_classes:
            raise ValueError(
                f"the model gives logits of shape {list(logits.shape)} and the data has {num_classes} classes; "
                f"give a model with an output of [batch, {num_classes}]"
            )
        return Loss(
            criterion(logits, batch.labels if batch.targets is None else batch.targets), logits
        )

    return objective


def _contrastive(temperature: float, world_size: int) -> Objective:
    loss = shared_supcon_loss if world_size > 1 else supcon_loss

    def objective(model: nn.Module, batch: Batch) -> Loss:
        embeddings = model(batch.images)
        return Loss(loss(embeddings, batch.labels, temperature), embeddings)

    return objective


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.itemsize < 4 else logits
