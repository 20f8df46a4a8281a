"""Precision of measurements: how float32 products round, and 16-bit types where they are asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from samovar.config import MeasurePrecision
from samovar.runtime import has_native

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_AMPERE = 8
"""First compute capability of NVIDIA's GPUs that has TF32."""


@contextlib.contextmanager
def computing(precision: MeasurePrecision, device: torch.device) -> Iterator[None]:
    """Compute on a device inside as `samovar measure --precision` says; restore everything.

    Under all but `tf32`, float32 is float32 in matrix products and convolutions alike: without
    this, cuDNN rounds the inputs of convolutions to 10 bits (TF32) while linear layers keep 23.
    `bf16` and `fp16` are autocast.

    Raises:
        ValueError: the device has no hardware for the precision."""
    check_precision(precision, device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(float32_products("tf32" if precision == "tf32" else "ieee"))
        if precision in _HALF:
            stack.enter_context(torch.autocast(device.type, _HALF[precision]))
        yield


@contextlib.contextmanager
def float32_products(rounding: str) -> Iterator[None]:
    """Set how matrix products and convolutions of float32 round inside; restore it.

    Args:
        rounding: `ieee`, or `tf32` on NVIDIA's GPUs; CPUs are always `ieee`."""
    backends: Any = torch.backends
    on_gpu = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    on_cpu = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
    before = [(backend, backend.fp32_precision) for backend in (*on_gpu, *on_cpu)]
    try:
        for backend in on_gpu:
            backend.fp32_precision = rounding
        for backend in on_cpu:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, value in before:
            backend.fp32_precision = value


def check_precision(precision: MeasurePrecision, device: torch.device) -> None:
    """Raise ValueError for a precision that a device has no hardware for."""
    if precision == "fp32":
        return
    if precision == "tf32":
        known = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= _AMPERE
    else:
        known = has_native(_HALF[precision], device)
    if not known:
        raise ValueError(
            f"--precision {precision} has no hardware support on this {device.type}; give fp32"
        )
