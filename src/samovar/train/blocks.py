"""The blocks of a network: the units that are sharded and checkpointed one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from samovar.anymodel import restore


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated units of a network, in the order of its modules; empty if it has none.

    A block is a child of an `nn.Sequential` or an `nn.ModuleList`, has parameters in modules of
    its own, and holds no further block: the blocks of ViT and Mixer, the bottlenecks of ResNet, and
    the same in timm's networks."""
    found: list[nn.Module] = []
    for child in model.children():
        inner = blocks(child)
        if inner:
            found += inner
        elif isinstance(model, nn.Sequential | nn.ModuleList) and _is_unit(child):
            found.append(child)
    return found


def _is_unit(module: nn.Module) -> bool:
    """Return whether a module has submodules with parameters, at least two of them."""
    owners = [m for m in module.modules() if any(p is not None for p in m._parameters.values())]
    plain = isinstance(module, nn.Sequential | nn.ModuleList)
    return len(owners) > 1 and not plain


def checkpoint_(model: nn.Module) -> int:
    """Make each block keep its input alone and run again in the backward pass; return their number.

    The second run draws the random numbers of the first and leaves buffers (BatchNorm's statistics)
    as they are, so no number changes.

    Raises:
        ValueError: the network has no blocks."""
    found = blocks(model)
    if not found:
        raise ValueError(
            f"--run.checkpointing finds no blocks in {type(model).__name__}: no nn.Sequential or "
            "nn.ModuleList holds repeated units; leave it out, and lower --run.micro-batch"
        )
    for block in found:
        block.forward = _Checkpointed(block)
    return len(found)


class _Checkpointed:
    """The forward pass of a block, run again in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.run: Callable[..., Any] = block.forward  # bound, so that a deep copy calls the copy's

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.run(*args, **options)
        return checkpoint(
            self.run, *args, use_reentrant=False, context_fn=self._contexts, **options
        )

    def _contexts(self) -> tuple[Any, Any]:
        return contextlib.nullcontext(), restore.buffers(self.block.modules())
