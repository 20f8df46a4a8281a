"""A model on loan: its tensors replaced, its mode set, second derivatives possible, and all given
back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from samovar import restore

Mode = Literal["eval", "train"]
Result = TypeVar("Result")


def refuse_batch_coupling(model: nn.Module, mode: Mode) -> None:
    """Refuse layers that normalize by the statistics of the batch.

    Raises:
        ValueError: BatchNorm in train mode, or without running statistics; an unknown mode."""
    if mode not in ("eval", "train"):
        raise ValueError(f"mode={mode!r} is unknown; pick 'eval' or 'train'")
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if mode == "train" or module.running_mean is None:
            given = "mode='train'" if mode == "train" else "no running statistics"
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__} with {given}: it couples the examples of a batch, "
                "so the mean over batches is not the curvature of a loss over examples; use mode='eval' with running "
                "statistics, or a model with GroupNorm or LayerNorm"
            )


def borrow(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    mode: Mode,
    device: torch.device,
    task: Callable[[], Result],
) -> Result:
    """task() while the model has other tensors and another mode; flags and random streams come back
    as they were.

    All that differentiates must run in here, because activation checkpointing calls the model once
    more.

    Args:
        tensors: by the names of the parameters and buffers that they stand in for."""
    slots = {f"model.{name}": tensor for name, tensor in _slots(model, tensors).items()}
    with (
        _second_order(device),
        restore.modes(model, training=mode == "train"),
        restore.rng(),
    ):
        result: Result = torch.func.functional_call(
            _Holder(model, task), slots, (), tie_weights=False
        )
    return result


def _slots(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A replacement for every place that holds a parameter or buffer, tied ones in all their
    places.

    Each place once: `functional_call` would swap that of a module with two names twice, and leave
        the replacement."""
    known = [*model.named_parameters(), *model.named_buffers()]
    replacement = {id(tensor): tensors[name] for name, tensor in known}
    slots = {}
    for prefix, module in model.named_modules():
        for held in (module.named_parameters, module.named_buffers):
            for name, tensor in held(prefix, recurse=False, remove_duplicate=False):
                slots[name] = replacement[id(tensor)]
    return slots


def seed(number: int, device: torch.device) -> None:
    """Seed the host's generator, and the device's."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)


class _Holder(nn.Module):
    """Makes a task a module, for `functional_call` to run with the tensors of the model inside
    replaced."""

    def __init__(self, model: nn.Module, task: Callable[[], Any]):
        super().__init__()
        self.model, self.task = model, task

    def forward(self) -> Any:
        return self.task()


@contextmanager
def _second_order(device: torch.device) -> Iterator[None]:
    """Where second derivatives exist and are float32: math attention, no autocast, no inference
    mode, no TF32."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if device.type == "cuda":  # cuDNN rounds float32 convolutions to 10 bits unless told not to
            backends: Any = torch.backends
            for backend in (backends.cuda.matmul, backends.cudnn.conv):
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        yield
