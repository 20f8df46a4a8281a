"""Run a computation on a model with other tensors, in another mode, with second derivatives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from samovar.anymodel import restore
from samovar.anymodel.devices import refuse_shards
from samovar.curvature.twice import TwiceDifferentiable

Mode = Literal["eval", "train"]
Result = TypeVar("Result")


def refuse_batch_coupling(model: nn.Module, mode: Mode) -> None:
    """Refuse layers that normalize by the statistics of the batch.

    Raises:
        ValueError: there is a BatchNorm in train mode or without running statistics, or the mode is
            unknown."""
    if mode not in ("eval", "train"):
        raise ValueError(f"mode={mode!r} is unknown; pick 'eval' or 'train'")
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if mode == "train" or module.running_mean is None:
            given = "mode='train'" if mode == "train" else "no running statistics"
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__} with {given}: it couples the "
                "examples of a batch, so the mean over batches is not the curvature of a loss over "
                "examples; use mode='eval' with running statistics, or a model with GroupNorm or "
                "LayerNorm"
            )


def borrow(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    mode: Mode,
    device: torch.device,
    task: Callable[[], Result],
) -> Result:
    """Return task(), run while the model has other tensors and another mode.

    Modes and random states come back as they were. Everything that differentiates must run in the
    task, because activation checkpointing calls the model once more.

    Args:
        model: the model that the task calls.
        tensors: replacements, by the names of the parameters and buffers.
        mode: mode of all modules.
        device: where the model is.
        task: the computation."""
    slots = {f"model.{name}": tensor for name, tensor in _slots(model, tensors).items()}
    with (
        second_order(device),
        restore.modes(model, training=mode == "train"),
        restore.rng(),
    ):
        result: Result = torch.func.functional_call(
            _Holder(model, task), slots, (), tie_weights=False
        )
    return result


def _slots(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a replacement for every place that holds a parameter or buffer, tied ones included.

    Each place occurs once: `functional_call` would swap that of a module with two names twice, and
    leave the replacement in it."""
    refuse_shards(model)
    known = [*model.named_parameters(), *model.named_buffers()]
    replacement = {id(tensor): tensors[name] for name, tensor in known}
    slots = {}
    for prefix, module in model.named_modules():
        for held in (module.named_parameters, module.named_buffers):
            for name, tensor in held(prefix, recurse=False, remove_duplicate=False):
                slots[name] = replacement[id(tensor)]
    return slots


def seed(number: int, device: torch.device) -> None:
    """Seed the generators of host and device."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)


class _Holder(nn.Module):
    """A module that runs a task, so that `functional_call` can replace the tensors of its model."""

    def __init__(self, model: nn.Module, task: Callable[[], Any]):
        super().__init__()
        self.model, self.task = model, task

    def forward(self) -> Any:
        return self.task()


@contextmanager
def second_order(device: torch.device) -> Iterator[None]:
    """Make second derivatives exist and be float32 inside.

    Attention runs as plain matrix products, compiled modules run eagerly, and functions without a
    right second derivative run in another form. Autocast, inference mode and TF32 are off.

    Raises:
        ValueError: a reentrant checkpoint is called inside."""
    with ExitStack() as stack:
        stack.enter_context(restore.no_reentrant_checkpoints())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and the import takes long
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # A checkpoint that is run again on another thread would not see the mode.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(TwiceDifferentiable())
        if device.type == "cuda":
            # By default cuDNN rounds the inputs of float32 convolutions to 10 bits.
            backends: Any = torch.backends
            for backend in (backends.cuda.matmul, backends.cudnn.conv):
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        yield
