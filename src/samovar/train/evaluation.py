"""Loss and accuracy of a network over a stream of batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from samovar.anymodel import restore
from samovar.data.loader import Batch
from samovar.objectives import Objective
from samovar.runtime import Runtime


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats and top-1 accuracy over `n` examples."""

    loss: float
    accuracy: float
    n: int


@torch.no_grad()
def evaluate(
    model: nn.Module, stream: Iterable[Batch], objective: Objective, runtime: Runtime
) -> Evaluation:
    """Return loss and accuracy in eval mode over the batches of all ranks.

    Afterwards each module is back in its mode; a frozen BatchNorm stays in eval mode."""
    rows = []
    with restore.modes(model, training=False):
        for batch in stream:
            with runtime.autocast():
                loss = objective(model, batch)
            correct = (loss.logits.argmax(1) == batch.labels).sum()
            count = torch.tensor(len(batch), device=correct.device)
            rows.append(torch.stack([loss.value * len(batch), correct, count]))
    sums = torch.stack(rows).sum(0) if rows else torch.zeros(3, device=runtime.device)
    if runtime.world_size > 1:
        dist.all_reduce(sums)
    loss_sum, correct_sum, n = sums.tolist()
    return Evaluation(loss_sum / n, correct_sum / n, int(n))
