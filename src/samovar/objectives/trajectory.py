"""The trajectory loss of SAF and MESA: stay close to what the network said earlier."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def trajectory_loss(
    logits: Tensor,
    teacher: Tensor,
    tau: float = 5.0,
    *,
    tau_squared: bool = True,
    taught: Tensor | None = None,
) -> Tensor:
    """Return tau^2 KL(softmax(teacher / tau) || softmax(logits / tau)), the mean over images [].

    Args:
        logits: [B, K], of the network that trains.
        teacher: [B, K], which get no gradient: earlier logits of the same images (SAF), or those of
            the running average of the weights (MESA).
        tau: temperature, > 0.
        tau_squared: multiply by tau^2, as the authors' code does; the published equations do not
            show the factor.
        taught: [B], weight of each image in the mean, 0 or 1; None is 1.

    Source: Du et al. (SAF, MESA), arXiv:2205.14083."""
    ours, theirs = (x if x.itemsize >= 4 else x.float() for x in (logits, teacher.detach()))
    log_p, log_q = F.log_softmax(theirs / tau, 1), F.log_softmax(ours / tau, 1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1)
    if taught is not None:
        divergence = divergence * taught.to(divergence)
    return divergence.mean() * (tau**2 if tau_squared else 1.0)
