"""Step an optimizer unless its gradient is not finite, on the device where that can be done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, Optimizer

from samovar.sam.shards import WHOLE, Shards, clip_, local


def honours_found_inf(optimizer: Optimizer) -> bool:
    """Return True if the optimizer skips a step on the device when its `found_inf` is 1.

    torch's fused optimizers do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def step_if(optimizer: Optimizer, finite: Tensor) -> None:
    """Step if `finite`, a scalar bool; otherwise leave weights, state and step counter unchanged.

    Costs a host sync with optimizers that do not honour `found_inf`."""
    if not honours_found_inf(optimizer):
        if finite:
            optimizer.step()
        return
    # the attributes by which torch's GradScaler asks a fused optimizer to skip a step
    fused = cast(Any, optimizer)
    fused.grad_scale, fused.found_inf = None, (~finite).float()
    try:
        fused.step()
    finally:
        del fused.grad_scale, fused.found_inf


@torch.no_grad()
def are_finite(params: Iterable[Tensor], shards: Shards = WHOLE) -> Tensor:
    """Return whether every number of every `.grad` is finite, as a bool [] on its device.

    The ranks that share the parameters all return the same."""
    grads = [local(p.grad) for p in params if p.grad is not None]
    dense = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
    largest = [torch.linalg.vector_norm(each, math.inf) for each in dense if each.numel()]
    # the largest number of each, so that no sum of finite ones overflows
    finite = (
        torch.stack([each.to(largest[0]) for each in largest]).isfinite().all()
        if largest
        else torch.tensor(True)
    )
    if shards.group is None:
        return finite
    return shards.sums([(~finite).double()])[0] == 0


def _begin(optimizer: Optimizer) -> None:
    """Give fused SGD its buffers of momentum before its first step.

    It makes them without numbers, and a skipped first step leaves them so. Zeros give the same
    first step, unless dampening is on, which the first step has not."""
    if not isinstance(optimizer, SGD) or optimizer.state or not honours_found_inf(optimizer):
        return
    for group in optimizer.param_groups:
        for param in group["params"] if group["momentum"] and not group["dampening"] else ():
            if param.grad is not None:
                optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)


def take_step(
    optimizer: Optimizer,
    params: Mapping[str, Tensor],
    clip_norm: float | None,
    scaler: GradScaler | None,
    skip_nonfinite: bool,
    shards: Shards = WHOLE,
) -> Tensor:
    """Clip and step, through the scaler if there is one.

    Args:
        optimizer: the optimizer.
        params: those whose `.grad` it takes.
        clip_norm: largest global norm of the unscaled gradient; None does not clip.
        scaler: decides by itself whether to step.
        skip_nonfinite: without a scaler, take no step on a gradient that is not finite.
        shards: how the parameters are split over ranks.

    Returns:
        1 if such a step was skipped, else 0, [] on the device; the host need not read it."""
    checked = scaler is None and skip_nonfinite
    finite = are_finite(params.values(), shards) if checked else torch.tensor(True)
    if clip_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        clip_(params.values(), clip_norm, shards)
    if scaler is not None:
        scaler.step(optimizer)
    elif checked:
        _begin(optimizer)
        step_if(optimizer, finite)
    else:
        optimizer.step()
    return (~finite).to(torch.int64)
