"""Forward and backward passes by calls of a closure, for the `SAM` optimizer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from samovar.sam.engine import Ascent, Gradients, Params
from samovar.sam.scene import Scene

Closure = Callable[[], Any]


@dataclass(frozen=True)
class ClosurePasses:
    """Passes that leave their gradients in `.grad`, where they are found and taken away."""

    params: dict[str, Tensor]
    """All parameters of the optimizer, by their place in its groups."""
    call: Callable[[Closure], Any]
    """Runs a closure from empty gradients and returns its loss."""
    closure: Closure
    ascent_closure: Closure
    scaler: GradScaler | None
    model: nn.Module | None
    mute: bool
    """Whether DDP communicates nothing in the ascent."""
    copied: bool
    """Whether the ascent's gradients are copied."""

    def plain(self, moved: AbstractContextManager[None] | None = None) -> Any:
        """Call the closure, at the weights inside `moved`."""
        with moved or nullcontext():
            return self.call(self.closure)

    def ascend(self, wanted: Params) -> Ascent:
        """Call the ascent's closure at the clean weights and take all gradients."""
        scene = Scene(self.model, mute=self.mute)
        with scene.ascent(hook=True):
            loss = self.call(self.ascent_closure)
        found = self._take()
        if self.copied:
            found = {name: None if g is None else g.clone() for name, g in found.items()}
        return Ascent(loss, found, scene)

    def ascend_again(self, scene: Scene, wanted: Params) -> Gradients:
        """Call the ascent's closure at the weights as they are now and take all gradients."""
        with scene.rehearsal():
            self.call(self.ascent_closure)
        return self._take()

    def descend(self) -> None:
        """Call the closure at the perturbed weights."""
        self.call(self.closure)

    def descend_apart(self) -> Gradients:
        """Call the closure at the perturbed weights and take all gradients."""
        self.call(self.closure)
        return self._take()

    def scale(self) -> Tensor:
        """Return the scaler's factor [], made on the device of the parameters."""
        one = torch.ones((), device=next(iter(self.params.values())).device)
        return one if self.scaler is None else self.scaler.scale(one)

    def _take(self) -> Gradients:
        grads = {name: param.grad for name, param in self.params.items()}
        for param in self.params.values():
            param.grad = None
        return grads
