"""Divide a step that does not fit into memory, without changing what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from samovar.config import Config
from samovar.runtime import Runtime, seed_everything
from samovar.train.state import TrainState

_WORDS = ("MPS backend out of memory", "can't allocate memory")
"""What devices without an error type of their own say."""


class OutOfMemory(ValueError):
    """A step does not fit into memory and cannot be divided; the message says what to do."""


def backward_in_pieces(
    state: TrainState,
    config: Config,
    runtime: Runtime,
    backward: Callable[..., Tensor],
    group: int,
) -> tuple[Tensor, str]:
    """Take a step's gradient; halve the images per pass as long as memory runs out.

    The batch and the groups of `sam.m` examples stay what they are, so the gradient is the
    undivided one up to rounding. The smaller number holds for all steps that follow.

    Args:
        backward: leaves the gradient in `.grad` and returns the loss, given `config` and `runtime`
            as keywords.
        group: images that a pass takes at most, those of an ascent group or the whole batch.

    Returns:
        The loss [], and a line for the reader if the number of images per pass changed.

    Raises:
        OutOfMemory: one image does not fit, or the step must not be divided: with BatchNorm and
            under a contrastive loss images of a pass depend on each other; ranks would have to
            divide together."""
    before = state.micro_batch
    kept = _Kept(state)
    while True:
        micro = state.micro_batch or config.run.micro_batch
        divided = replace(config, run=replace(config.run, micro_batch=micro))
        try:
            loss = backward(config=divided, runtime=runtime)
            break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        # outside `except`: the error holds the frames, and with them the tensors, of the failed try
        state.micro_batch = _halved(state, config, runtime, min(micro or group, group), reason)
        kept.restore(state)
        _empty_cache(runtime)
        seed_everything(config.seed, state.step, runtime.rank)
    if state.micro_batch == before:
        return loss, ""
    return loss, (
        f"memory ran out: {state.micro_batch} images per pass from step {state.step + 1} on; batch "
        f"size and m stay what they are; --run.micro-batch {state.micro_batch} starts with it"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a device does not suffice."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _WORDS)


def _halved(state: TrainState, config: Config, runtime: Runtime, micro: int, reason: str) -> int:
    """Return half as many images per pass, rounded up.

    Raises:
        OutOfMemory: the step must not be divided."""
    if micro <= 1:
        why = ONE_IMAGE
    elif runtime.world_size > 1 and config.loss != "supcon":
        why = (
            f"several ranks do not divide a step by themselves; give --run.micro-batch {micro // 2}"
        )
    else:
        why = why_whole(config, micro // 2, normalized=has_batch_norm(state.model))
    if not why:
        return (micro + 1) // 2
    raise OutOfMemory(f"memory ran out at step {state.step + 1} ({reason}); {why}")


ONE_IMAGE = "one image per pass is too much; give a smaller --model.name or --data.image-size"


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether images of a pass depend on each other in the mode in which a model is."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def why_whole(config: Config, fewer: int, *, normalized: bool) -> str:
    """Return why a step must not be divided, and what to do; empty if it may be.

    Args:
        fewer: images per pass that would do.
        normalized: as `has_batch_norm` returns it."""
    if config.loss == "supcon":
        return "--loss supcon compares all images of a batch; give a smaller --data.batch-size"
    if normalized:
        return (
            "with BatchNorm fewer images per pass change the result; give --run.micro-batch "
            f"{fewer} if you accept that, or a smaller --data.batch-size"
        )
    return ""


class _Kept:
    """What a failed try may have changed beside `.grad`: buffers, and what SAM's relatives keep."""

    def __init__(self, state: TrainState) -> None:
        # BatchNorm's statistics are many, and a network with BatchNorm is never tried again
        changing = not any(isinstance(each, _BatchNorm) for each in state.model.modules())
        self.buffers = [each.clone() for each in state.model.buffers()] if changing else []
        self.memory = state.memory.state_dict()

    def restore(self, state: TrainState) -> None:
        """Bring back what was kept, and remove the gradients."""
        for buffer, value in zip(state.model.buffers(), self.buffers, strict=False):
            buffer.copy_(value)
        state.memory.load_state_dict(self.memory)
        state.optimizer.zero_grad(set_to_none=True)


def _empty_cache(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    elif runtime.device.type == "mps":
        torch.mps.empty_cache()
