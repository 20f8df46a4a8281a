"""Model FLOPs utilization (MFU): the share of a GPU's peak that training makes use of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from samovar import config as configs
from samovar.anymodel.restore import modes
from samovar.config import Config
from samovar.runtime import Runtime

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""FLOP/s of dense 16-bit matrix products with sums in float32, from NVIDIA's data sheets, by a part
of the device's name; the first that fits counts."""


def forward_flops(model: nn.Module, image: Tensor) -> int:
    """Return the FLOPs of a forward pass of images [N, C, H, W]; a multiply-add counts as two."""
    counter = FlopCounterMode(display=False)
    with modes(model, training=False), torch.no_grad(), counter:
        model(image)
    return int(counter.get_total_flops())


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Return the FLOP/s of a GPU's data sheet; None in float32 and for devices not in `PEAKS`."""
    if dtype == torch.float32:
        return None
    words = device_name.replace("-", " ")
    # whole words: an A10G is no A10, an L4 no L40
    return next((peak for name, peak in PEAKS.items() if f" {name} " in f" {words} "), None)


def utilization_per_image(
    model: nn.Module, config: Config, runtime: Runtime, channels: int
) -> float | None:
    """Return the MFU of a speed of one image a second over all ranks; None where it is not known.

    A backward pass counts as two forward ones, and SAM's gradients as it takes them on average over
    the run; recomputation, attention to padding and augmentation do not count (as in PaLM,
    arXiv:2204.02311)."""
    if runtime.device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(runtime.device), runtime.dtype)
    if peak is None:
        return None
    side = config.data.image_size
    image = torch.zeros(1, channels, side, side, device=runtime.device)
    gradients = configs.passes(config) * config.data.views
    return 3.0 * forward_flops(model, image) * gradients / (peak * runtime.world_size)
