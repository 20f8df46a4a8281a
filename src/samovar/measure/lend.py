"""A model on loan for looking around its weights: shifted in place, then given back as it was to
the bit.

Unlike `samovar.curvature.borrow` nothing is replaced: fused attention stays, and a forward pass
costs what it does."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Weights(NamedTuple):
    """The weights of a model, with a copy of what they were."""

    names: list[str]
    params: list[nn.Parameter]
    clean: list[Tensor]

    @torch.no_grad()
    def shift(self, steps: Iterable[Tensor] | None) -> None:
        """Set the weights to the copy plus steps, or to the copy itself, in place."""
        for param, w in zip(self.params, self.clean, strict=True):
            param.copy_(w)
        for param, w, step in zip(self.params, self.clean, steps, strict=True) if steps else ():
            param.copy_(w + step)
        # an outer autocast would go on with its 16-bit copies of the weights before
        torch.clear_autocast_cache()


@contextmanager
def movable(model: nn.Module) -> Iterator[Weights]:
    """Inside, the weights can be shifted; outside, they are as before to the bit, in the same
    storage."""
    with borrowed(model):
        named = {name: param for name, param in model.named_parameters() if param.requires_grad}
        if not named:
            raise ValueError(
                "no parameter of the model requires a gradient; unfreeze some (requires_grad_)"
            )
        # a copy, for (w + e) - e restores only 99.6 % of float32 weights exactly
        weights = Weights(
            list(named), list(named.values()), [p.detach().clone() for p in named.values()]
        )
        try:
            yield weights
        finally:
            weights.shift(None)


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; outside, modes, `.grad`, requires_grad, buffers and global random states
    are as before."""
    modes = [(module, module.training) for module in model.modules()]
    params = [(param, param.grad, param.requires_grad) for param in model.parameters()]
    buffers = [
        (m._buffers, k, b, b.clone())
        for m in model.modules()
        for k, b in m._buffers.items()
        if b is not None
    ]
    recording = torch.is_grad_enabled()
    with (
        rng_kept(),
        torch.inference_mode(False),
        torch.set_grad_enabled(recording),
    ):  # leaving inference mode records
        try:
            model.eval()
            for param in model.parameters():
                param.grad = None
            yield
        finally:
            for module, training in modes:
                module.training = training
            for param, grad, requires_grad in params:
                param.requires_grad_(requires_grad)
                param.grad = grad
            with torch.no_grad():
                for owner, name, buffer, copy in buffers:
                    owner[name] = buffer.copy_(copy)


@contextmanager
def rng_kept() -> Iterator[None]:
    """Global random states come out as they went in."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy:
                numpy.random.set_state(numpy_state)
