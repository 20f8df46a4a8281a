"""What devices differ in: copies to them, and float64; only torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; every copy of images, labels and draws to a device goes here.

    Only copies to CUDA are non-blocking. CUDA reads memory that is not pinned before the call
    returns, so a temporary may be freed at once, and training steps do not wait for the device. MPS
    reads it later, when its memory may hold other numbers (pytorch issues 139550 and 189690)."""
    return x.to(device, non_blocking=device.type == "cuda")


def supports_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64; Apple's GPUs (MPS) do not."""
    return device.type != "mps"


def to_float64_device(x: Tensor) -> Tensor:
    """Return a tensor where float64 exists: on its own device, or a copy on the host."""
    return x if supports_float64(x.device) else x.cpu()


def check_float64(dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError for float64 on a device that does not have it."""
    if dtype == torch.float64 and not supports_float64(device):
        raise ValueError(
            f"float64 does not exist on {device.type}; give float32 (--dtype float32), or work on "
            "the CPU (--device cpu)"
        )


def refuse_shards(model: nn.Module) -> None:
    """Refuse a model whose parameters are split over ranks, for what differentiates twice.

    Raises:
        ValueError: `fully_shard` or another DTensor holds a parameter."""
    # after a forward pass gathered weights may stand in the place of the shards
    if any(hasattr(param, "placements") for param in model.parameters()) or any(
        hasattr(module, "reshard") for module in model.modules()
    ):
        raise ValueError(
            "the model's parameters are sharded, and second derivatives do not pass through the "
            "gathering of shards; measure whole weights: save a checkpoint and run samovar measure "
            "RUN, which reads it on one rank or splits the images over several"
        )
