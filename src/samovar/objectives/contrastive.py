"""Supervised contrastive learning: what images of a class have in common is drawn together, all
else apart.

The encoder trains under a projection head in place of its classifier; the head is thrown away
afterwards.

Source: Khosla et al., arXiv:2004.11362."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from samovar import restore
from samovar.models.factory import Classifier

_ALL = slice(None)


def supcon_loss(
    embeddings: Tensor, labels: Tensor, temperature: float, anchors: slice = _ALL
) -> Tensor:
    """Mean over anchors of -1 / |P| sum_{p in P} log softmax_p of cosines / temperature over all
    rows but the anchor.

    P are the other rows of the anchor's class. A row without any is no anchor; with no anchor at
    all the loss is 0. Lengths are taken out here. At least float32, also under autocast. The
    authors' code multiplies by temperature / 0.07; the paper does not, nor does this.

    Args:
        embeddings: [N, P], of any length.
        labels: [N] class indices.
        temperature: above 0.
        anchors: rows that are anchors, all N being compared with them. The mean over equal parts of
            the rows is the loss of all, as the number of anchors with a positive is that of all.

    Source: L_out, equation 2 of arXiv:2004.11362."""
    with torch.autocast(embeddings.device.type, enabled=False):
        points = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
        rows = torch.arange(len(labels), device=labels.device)
        itself = rows[anchors, None] == rows
        positive = (labels[anchors, None] == labels) & ~itself
        # the lowest number, not -inf: a row that has nothing to be compared with would pass through
        # NaN
        logits = (points[anchors] @ points.T / temperature).masked_fill(
            itself, torch.finfo(points.dtype).min
        )
        mean_log_shares = torch.where(positive, logits.log_softmax(1), 0.0).sum(1) / positive.sum(
            1
        ).clamp(min=1)
        num_anchors = ((labels[:, None] == labels).sum(1) > 1).sum().clamp(min=1)
        return -mean_log_shares.sum() / num_anchors * (len(rows) / len(mean_log_shares))


def shared_supcon_loss(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """This rank's share of the loss over the rows of all ranks, which is the mean of the shares.

    Its anchors are the rank's own rows, compared with those of all. The gradient for a row sums
    what the losses of all ranks make of it, so that DDP's mean of the weights' gradients is that of
    one process with the whole batch. Every rank must call this, and backward as often.

    Args:
        embeddings: [N / ranks, P], as many on each rank.
        labels: [N / ranks].
        temperature: above 0."""
    precise = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    first = dist.get_rank() * len(labels)
    gathered = cast(Tensor, _Gathered.apply(precise))
    return supcon_loss(gathered, _gather(labels), temperature, slice(first, first + len(labels)))


class _Gathered(torch.autograd.Function):
    """The rows of all ranks in rank order; backward, the sum over ranks of the gradients for this
    rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def _gather(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


class Projected(nn.Module):
    """An encoder under a projection head, linear, ReLU, linear: images [N, C, H, W] to embeddings
    [N, P].

    Embeddings have any length; the loss compares their directions. The encoder's classifier layer
    is not called."""

    def __init__(self, encoder: Classifier, width: int, hidden: int, size: int):
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, size)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [N, P] of images [N, C, H, W] in [0, 1]."""
        return cast(Tensor, self.projection(self.encoder.features(images)))


@torch.no_grad()
def num_features(encoder: Classifier, image: Tensor) -> int:
    """How many features D the encoder has; one forward pass in eval mode, which draws and updates
    nothing.

    Args:
        image: [1, C, H, W], whatever is on it.

    Raises:
        ValueError: a network that does not tell its features, or whose features are no vector."""
    with restore.modes(encoder, training=False):
        found = encoder.features(image)
    if found.ndim != 2:
        raise ValueError(
            f"{type(encoder.body).__name__} has features of shape {list(found.shape)} before its classifier; "
            "a vector for each image is needed"
        )
    return found.shape[1]
