"""Training objectives: functions of a model and a batch that return a loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from samovar.anymodel.outputs import logits_of
from samovar.config import Config
from samovar.data.loader import Batch
from samovar.objectives.contrastive import shared_supcon_loss, supcon_loss


class Loss(NamedTuple):
    """A loss and the model outputs it was computed from."""

    value: Tensor
    """Scalar, the mean over examples; float32 under autocast."""
    logits: Tensor
    """[B, K], as the model returned them; embeddings [B, P] for a contrastive loss."""


Objective = Callable[[nn.Module, Batch], Loss]
Criterion = Callable[[Tensor, Tensor], Tensor]


def softmax_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean over examples of -sum_k t_k log softmax_k, in nats.

    The targets t are smoothed to (1 - s) t + s / K.

    Args:
        logits: [B, K].
        targets: [B] class indices, or [B, K] shares.
        label_smoothing: s, the share of each target that is spread evenly over the classes."""
    return F.cross_entropy(_at_least_float32(logits), targets, label_smoothing=label_smoothing)


def sigmoid_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean over examples of binary cross-entropies summed over classes, in nats.

    The targets t are smoothed to (1 - s) t + s / K, so that a row of targets keeps its sum. The
    loss starts near 10 for a zero head with bias -10 and 1000 classes.

    Args:
        logits: [B, K].
        targets: [B] class indices, or [B, K] shares.
        label_smoothing: s.

    Source: the loss of ViT and Mixer in appendix B.1 of arXiv:2106.01548."""
    logits = _at_least_float32(logits)
    num_examples, num_classes = logits.shape
    if targets.ndim == 1:
        targets = F.one_hot(targets, num_classes)
    targets = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / num_classes
    # as in optax; torch's own function loses 4e-5 of the loss to cancellation at a head bias of -10
    log_shares = targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits)
    return -log_shares.sum() / num_examples


LOSSES: dict[str, Callable[..., Tensor]] = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
}


def make_objective(config: Config, num_classes: int, world_size: int = 1) -> Objective:
    """Return the objective that a config names by its `loss` and `label_smoothing`.

    It uses a batch's class shares where there are any, else its labels, and raises ValueError if
    the model's logits are not [B, num_classes]. The objective of `supcon` uses labels only and
    needs a model that returns embeddings.

    Args:
        config: the settings.
        num_classes: K.
        world_size: ranks that call it at the same time; a contrastive loss compares the images
            of all of them."""
    if config.loss == "supcon":
        return _contrastive(config.contrastive.temperature, world_size)
    criterion: Criterion = partial(LOSSES[config.loss], label_smoothing=config.label_smoothing)

    def objective(model: nn.Module, batch: Batch) -> Loss:
        logits = logits_of(model(batch.images))
        if logits.ndim != 2 or logits.shape[1] != num_classes:
            raise ValueError(
                f"the model gives logits of shape {list(logits.shape)} and the data has "
                f"{num_classes} classes; give a model with an output of [batch, {num_classes}]"
            )
        targets = batch.labels if batch.targets is None else batch.targets
        return Loss(criterion(logits, targets), logits)

    return objective


def _contrastive(temperature: float, world_size: int) -> Objective:
    loss = shared_supcon_loss if world_size > 1 else supcon_loss

    def objective(model: nn.Module, batch: Batch) -> Loss:
        embeddings = model(batch.images)
        return Loss(loss(embeddings, batch.labels, temperature), embeddings)

    return objective


def _at_least_float32(logits: Tensor) -> Tensor:
    # the exponentials of a loss overflow or round badly in half precision
    return logits.float() if logits.itemsize < 4 else logits
