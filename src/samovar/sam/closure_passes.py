"""Forward and backward passes by calls of a closure, for the `SAM` optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from samovar.sam.engine import Ascent, Gradients, Params
from samovar.sam.scene import Scene
from samovar.sam.shards import WHOLE, Shards, local

Closure = Callable[[], Any]


class Skipped(Exception):
    """Ends a step whose closure skips the batch: it returned None and left no gradient."""


class FreshGradients:
    """Runs closures so that the gradients they leave are theirs alone.

    Gradients of our own last step are discarded. Others stay where they are, and the closure may
    clear them as it likes, also in place. Where it does so in place it finds zeros in later passes,
    not None."""

    def __init__(self) -> None:
        self._left: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        """Gradients that our own last step left, by id."""
        self._in_place: set[str] = set()
        """Parameters whose gradients the closure zeroes in place."""

    def leave(self, params: Params) -> None:
        """Remember the gradients of a step that was taken."""
        grads = (param.grad for param in params.values() if param.grad is not None)
        self._left = WeakValueDictionary({id(grad): grad for grad in grads})

    def run(self, params: Params, closure: Closure) -> Any:
        """Run the closure and return what it returns, a tensor detached.

        Raises:
            Skipped: the closure returned None and left no gradient.
            RuntimeError: it returned a loss and left no gradient, or it added to an older one."""
        with torch.enable_grad(), self._cleared(params):
            loss = closure()
        if all(param.grad is None for param in params.values()):
            if loss is None:
                raise Skipped
            raise RuntimeError("the closure left no gradient; it must call backward() on the loss")
        return loss.detach() if isinstance(loss, Tensor) else loss

    @contextmanager
    def _cleared(self, params: Params) -> Iterator[None]:
        """Enclose a closure; drop the gradients that it zeroed and then did not use."""
        zeros = set()
        for name, param in params.items():
            if param.grad is not None and self._left.get(id(param.grad)) is param.grad:
                param.grad = None
            if param.grad is None and name in self._in_place:
                param.grad = torch.zeros_like(param)
                zeros.add(name)
        # Weak: what the closure sets to None is freed.
        given = WeakValueDictionary(
            {name: param.grad for name, param in params.items() if param.grad is not None}
        )

        # Whether a gradient that was there was cleared or added to shows in what the first new one
        # is added to. Its entries are counted on the device, and read only below.
        new: set[str] = set()
        older: dict[str, Tensor | None] = {}

        def look(name: str, _: Tensor | None = None) -> None:
            grad = params[name].grad
            if grad is None:
                new.add(name)
            elif name not in new and name not in older:
                older[name] = None if name in zeros else local(grad).to_dense().count_nonzero()

        hooks = [
            params[name].register_hook(partial(look, name))  # type: ignore[no-untyped-call]
            for name in given
            if params[name].requires_grad
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

        kept = {name for name, grad in given.items() if params[name].grad is grad}
        unused = kept - new - older.keys()
        for name in unused:
            look(name)
        if any(older.get(name) for name in kept):
            raise RuntimeError(
                "the closure added to gradients that were there before step(); accumulate inside "
                "the closure (Lightning: accumulate_grad_batches=1), or clear them first if they "
                "are stale: zero_grad()"
            )
        self._in_place = {name for name in older if params[name].grad is not None}
        for name in unused:
            params[name].grad = None


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
    shards: Shards = WHOLE
    """How the parameters are split over ranks."""

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

    def settle(self) -> None:
        """Leave the gradients: the closure's wrapper has averaged them."""

    def scale(self) -> Tensor:
        """Return the scaler's factor [], made on the device of the parameters."""
        one = torch.ones((), device=next(iter(self.params.values())).device)
        return one if self.scaler is None else self.scaler.scale(one)

    def _take(self) -> Gradients:
        grads = {n: None if p.grad is None else local(p.grad) for n, p in self.params.items()}
        for param in self.params.values():
            param.grad = None
        return grads
