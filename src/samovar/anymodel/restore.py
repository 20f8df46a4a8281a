"""Context managers that leave a model and the random state exactly as they found them; only torch.

Each one restores by assignment to the object it read from, never by a call of the model's own
`train()` or `eval()`: some models override these, with effects that no call undoes. So a BatchNorm
that was frozen in eval mode inside a model in train mode stays frozen.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction


@contextmanager
def modes(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set the mode of all modules inside; restore the mode of each module on exit."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = training
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def requires_grad(model: nn.Module, value: bool | None = None) -> Iterator[None]:
    """Restore each parameter's `requires_grad` on exit.

    Args:
        value: set on all parameters inside; None leaves them."""
    flags = [(param, param.requires_grad) for param in model.parameters()]
    try:
        if value is not None:
            for param, _ in flags:
                param.requires_grad_(value)
        yield
    finally:
        for param, flag in flags:
            param.requires_grad_(flag)


@contextmanager
def grads(model: nn.Module) -> Iterator[None]:
    """Set `.grad` of all parameters to None inside; restore the tensors on exit."""
    kept = [(param, param.grad) for param in model.parameters()]
    try:
        for param, _ in kept:
            param.grad = None
        yield
    finally:
        for param, grad in kept:
            param.grad = grad


@contextmanager
def buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the buffers of modules (not of their children) on exit: same tensors, same bits."""
    kept = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, copy in kept:
                buffer.copy_(copy)
                owner[name] = buffer  # forward may have bound the name to a new tensor


@contextmanager
def rng() -> Iterator[None]:
    """Restore all global random states on exit."""
    restore = remember_rng()
    try:
        yield
    finally:
        restore()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Lend a model in eval mode: everything but its weights is restored on exit.

    Modes, `.grad`, `requires_grad`, buffers and the global random states come back to the bit.
    Inside, `.grad` is None, and autograd records or does not as it did outside. No module is
    replaced: fused attention stays, and a forward pass costs what it always does."""
    recording = torch.is_grad_enabled()
    with (
        rng(),
        # a tensor made in inference mode can never be trained on, and models cache tensors
        torch.inference_mode(False),
        torch.set_grad_enabled(recording),  # leaving inference mode has switched it on
        modes(model, training=False),
        requires_grad(model),
        grads(model),
        buffers(model.modules()),
    ):
        yield


class _Refusing(threading.local):
    depth = 0


_refusing = _Refusing()
_patch_lock = threading.Lock()
_patch_users = [0]


@contextmanager
def no_reentrant_checkpoints() -> Iterator[None]:
    """Refuse reentrant activation checkpointing inside, in this thread.

    `torch.autograd.grad` does not see the parameters inside such a checkpoint: it raises torch's
    own error, or silently leaves them out. Nothing in the graph shows a checkpoint whose inputs
    require no gradient, so the call itself is watched, which also costs nothing.

    Raises:
        ValueError: a reentrant checkpoint is called inside."""
    # `CheckpointFunction` inherits `apply`: an attribute of its own hides that of its base class,
    # and the last user to leave takes it off again.
    with _patch_lock:
        _patch_users[0] += 1
        CheckpointFunction.apply = _refuse_or_apply
    _refusing.depth += 1
    try:
        yield
    finally:
        _refusing.depth -= 1
        with _patch_lock:
            _patch_users[0] -= 1
            if not _patch_users[0]:
                del CheckpointFunction.apply


def _refuse_or_apply(*args: Any) -> Any:
    if _refusing.depth:
        raise ValueError(
            "the model uses reentrant activation checkpointing, whose parameters "
            "torch.autograd.grad does not see; give use_reentrant=False to "
            "torch.utils.checkpoint (timm: set_reentrant_ckpt(False); Hugging Face: "
            "gradient_checkpointing_kwargs={'use_reentrant': False})"
        )
    return super(CheckpointFunction, CheckpointFunction).apply(*args)


class ShiftableWeights(NamedTuple):
    """The parameters of a model that require gradients, beside a copy of what they were."""

    names: list[str]
    params: list[nn.Parameter]
    clean: list[Tensor]
    """The copies, in the order of `params`."""

    @torch.no_grad()
    def shift(self, steps: Iterable[Tensor] | None) -> None:
        """Set the parameters to the copies plus `steps`, in place; None sets them to the copies."""
        for param, w in zip(self.params, self.clean, strict=True):
            param.copy_(w)
        for param, w, step in zip(self.params, self.clean, steps, strict=True) if steps else ():
            param.copy_(w + step)
        # an outer autocast would go on with its 16-bit copies of the weights before
        torch.clear_autocast_cache()


@contextmanager
def shiftable(model: nn.Module) -> Iterator[ShiftableWeights]:
    """Lend a model as `evaluating` does, and let its weights be shifted; restore them on exit.

    The weights come back to the bit, in the same storage.

    Raises:
        ValueError: no parameter requires a gradient."""
    with evaluating(model):
        named = {name: param for name, param in model.named_parameters() if param.requires_grad}
        if not named:
            raise ValueError(
                "no parameter of the model requires a gradient; unfreeze some (requires_grad_)"
            )
        # a copy, for (w + e) - e restores only 99.6 % of float32 weights exactly
        copies = [param.detach().clone() for param in named.values()]
        weights = ShiftableWeights(list(named), list(named.values()), copies)
        try:
            yield weights
        finally:
            weights.shift(None)


def remember_rng() -> Callable[[], None]:
    """Return a function that sets all global random states in use back to what they are now.

    It may be called several times: each call starts the same random numbers again."""
    undo: list[Callable[[], Any]] = [partial(random.setstate, random.getstate())]
    undo.append(partial(torch.set_rng_state, torch.get_rng_state()))
    if numpy := sys.modules.get("numpy"):
        undo.append(partial(numpy.random.set_state, numpy.random.get_state()))
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        undo.append(partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    if torch.backends.mps.is_available():
        undo.append(partial(torch.mps.set_rng_state, torch.mps.get_rng_state()))

    def restore() -> None:
        for each in undo:
            each()

    return restore


def bare(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, (nn.parallel.DistributedDataParallel, nn.DataParallel)
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
