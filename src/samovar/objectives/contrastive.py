"""Supervised contrastive learning: embeddings of a class attract each other, all others repel.

The encoder trains under a projection head in place of its classifier; the head is discarded
afterwards.

Source: Khosla et al., arXiv:2004.11362."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from samovar.anymodel import restore
from samovar.models.factory import Classifier

_ALL = slice(None)


def supcon_loss(
    embeddings: Tensor, labels: Tensor, temperature: float, anchors: slice = _ALL
) -> Tensor:
    """Return the supervised contrastive loss of a batch.

    It is the mean over anchors of -1 / |P| sum_{p in P} log softmax_p of cosines / temperature over
    all rows but the anchor. P are the other rows of the anchor's class. A row without any is no
    anchor; the loss is 0 if there are no anchors. Embeddings are normalized here, in float32 or
    better, also under autocast. The authors' code multiplies by temperature / 0.07; the paper does
    not, nor does this function.

    Args:
        embeddings: [N, P], of any length.
        labels: [N] class indices.
        temperature: above 0.
        anchors: the rows that are anchors; they are compared with all N rows. The loss of all
            rows is the mean over equal parts of them, because every part divides by the number
            of anchors in all rows.

    Source: L_out, equation 2 of arXiv:2004.11362."""
    # cosines in half precision are too coarse to be divided by a small temperature
    with torch.autocast(embeddings.device.type, enabled=False):
        points = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
        rows = torch.arange(len(labels), device=labels.device)
        itself = rows[anchors, None] == rows
        positive = (labels[anchors, None] == labels) & ~itself
        # the lowest number, not -inf: the softmax of a single row would otherwise be NaN
        lowest = torch.finfo(points.dtype).min
        logits = (points[anchors] @ points.T / temperature).masked_fill(itself, lowest)
        log_shares = torch.where(positive, logits.log_softmax(1), 0.0)
        mean_log_shares = log_shares.sum(1) / positive.sum(1).clamp(min=1)
        # counted over all rows, not only these anchors, so that the mean of parts is the loss
        num_anchors = ((labels[:, None] == labels).sum(1) > 1).sum().clamp(min=1)
        return -mean_log_shares.sum() / num_anchors * (len(rows) / len(mean_log_shares))


def shared_supcon_loss(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return this rank's part of the loss of all ranks, which is the mean of the parts.

    The rank's own rows are the anchors; they are compared with those of all ranks. The gradient of
    a row sums the contributions of the losses of all ranks, so that DDP's mean of the weights'
    gradients equals the gradient of one process with the whole batch. All ranks must call this
    function, and backward, equally often.

    Args:
        embeddings: [N / ranks, P], equally many on each rank.
        labels: [N / ranks].
        temperature: above 0."""
    precise = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    first = dist.get_rank() * len(labels)
    gathered = cast(Tensor, _Gathered.apply(precise))
    return supcon_loss(gathered, _gather(labels), temperature, slice(first, first + len(labels)))


class _Gathered(torch.autograd.Function):
    """The rows of all ranks in rank order, with gradients.

    The backward pass sums the gradients of this rank's rows over all ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # all_reduce works in place, and autograd may pass a gradient that others share
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def _gather(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


class Projected(nn.Module):
    """An encoder under a projection head: images [N, C, H, W] to embeddings [N, P].

    The head is linear, ReLU, linear. Embeddings have any length, since the loss compares
    directions only. The encoder's classifier layer is not called."""

    def __init__(self, encoder: Classifier, width: int, hidden: int, size: int):
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, size)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings [N, P] of images [N, C, H, W] in [0, 1]."""
        return cast(Tensor, self.projection(self.encoder.features(images)))


@torch.no_grad()
def num_features(encoder: Classifier, image: Tensor) -> int:
    """Return the encoder's number of features D, found by one forward pass in eval mode.

    The pass draws no random numbers and updates no buffers; all modes are restored.

    Args:
        image: [1, C, H, W]; its content does not matter.

    Raises:
        ValueError: the network has no method for its features, or they are no vector."""
    with restore.modes(encoder, training=False):
        found = encoder.features(image)
    if found.ndim != 2:
        raise ValueError(
            f"{type(encoder.body).__name__} has features of shape {list(found.shape)} before its "
            "classifier; a vector for each image is needed"
        )
    return found.shape[1]
