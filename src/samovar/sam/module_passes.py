"""Forward and backward passes over a module, for `sam_backward`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from samovar.anymodel.outputs import OF_MODEL, loss_from
from samovar.sam.combine import laid_out_as
from samovar.sam.directions import Climber, asam_offset, norm_parameters
from samovar.sam.engine import Ascent, Gradients, Params
from samovar.sam.scene import Scene, mean_over_ranks
from samovar.sam.shards import Shards, gradient, local, resharded, shards_of

LossFn = Callable[[nn.Module], Tensor]
LossFns = LossFn | Sequence[LossFn]


class InputAscent(NamedTuple):
    """Inputs that climb the loss together with the weights, such as images under attack."""

    inputs: Sequence[Tensor]
    """Leaf tensors of any shape that the loss functions read. They require a gradient during the
    ascent only."""
    move: Callable[[Sequence[Tensor]], None]
    """Changes the inputs in place. Gets one gradient for each input, in its shape: that of the sum
    of the (scaled) losses, with 0 in place of values that are not finite."""
    num_steps: int = 1
    """Number of moves, >= 1. The last move takes its gradients from the weights' own ascent."""


def plain_backward(
    loss_fn: LossFns, model: nn.Module, *, scaler: GradScaler | None = None
) -> Tensor:
    """Add the ordinary gradient to `.grad`: one forward and one backward pass per loss function.

    Args:
        loss_fn: maps the model to a scalar loss; or several functions, one per micro-batch, whose
            losses are summed.
        model: plain, compiled, or wrapped in DDP, which then communicates once, in the last
            backward pass.
        scaler: scales the losses for fp16. Unscaling and the optimizer's step stay with the caller.

    Returns:
        The summed loss [], detached and unscaled.

    Raises:
        ValueError: `loss_fn` is an empty sequence.
    """
    loss_fns = as_list(loss_fn)
    losses = []
    for i, each in enumerate(loss_fns, start=1):
        with (
            model.no_sync()
            if isinstance(model, DistributedDataParallel) and i < len(loss_fns)
            else nullcontext()
        ):
            loss = loss_from(each, model, example=OF_MODEL)
            _scaled(loss, scaler).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach().clone())  # a compiled model may reuse the memory of its output
    return torch.stack(losses).sum()


@dataclass(frozen=True)
class ModulePasses:
    """Passes over a module: `torch.autograd.grad` on the bare one, `.backward()` on the wrapped.

    The bare module is inside DDP, which therefore communicates nothing for the ascent: every rank
    climbs on its own examples."""

    model: nn.Module
    loss_fns: Sequence[LossFn]
    ascent_loss_fns: Sequence[LossFn]
    shared_ascent: bool
    scaler: GradScaler | None
    input_ascent: InputAscent | None
    replicas: dist.ProcessGroup | None = None
    """The ranks that hold the same shards in other replicas of the weights."""

    @cached_property
    def shards(self) -> Shards:
        """Return how the trainable parameters are split over ranks."""
        return shards_of(self.params.values(), self.model.modules())

    @cached_property
    def params(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by a name that does not change when the model is wrapped."""
        resharded(self.model.modules())
        wrapper = "module." if isinstance(self.model, DistributedDataParallel) else ""
        return {
            name.removeprefix(wrapper).replace("_orig_mod.", ""): param
            for name, param in self.model.named_parameters()
            if param.requires_grad
        }

    def climbers(self, rho: float, eta: float | None, norms_only: bool) -> dict[str, Climber]:
        """Return the parameters that are perturbed.

        Raises:
            ValueError: `norms_only`, and no normalization layer trains."""
        norms = norm_parameters(self.model.modules()) if norms_only else None
        climbers = {
            name: Climber(param, rho, asam_offset(name, eta))
            for name, param in self.params.items()
            if norms is None or param in norms
        }
        if norms_only and not climbers:
            raise ValueError(
                "norms_only=True, and the model has no normalization layer that trains; "
                "leave it out"
            )
        return climbers

    def plain(self, moved: AbstractContextManager[None] | None = None) -> Tensor:
        """Run the plain passes, at the weights inside `moved`, where the inputs have climbed to."""
        if self.input_ascent is None:
            if moved is not None:
                with self._scene().ascent(hook=False):
                    pass  # refuses the models on which SAM would be silently wrong
            with moved or nullcontext():
                return plain_backward(self.loss_fns, self.model, scaler=self.scaler)
        scene = self._scene()
        loss, _ = self._ascend(scene, self.loss_fns, [])
        with moved or nullcontext(), scene.descent():
            plain_backward(self.loss_fns, self.model, scaler=self.scaler)
        return loss

    def ascend(self, wanted: Params) -> Ascent:
        """Take the clean gradients, which also move the inputs for the last time."""
        scene = self._scene()
        loss, found = self._ascend(scene, self.ascent_loss_fns, list(wanted.values()))
        return Ascent(loss, self._by_name(wanted, found), scene)

    def ascend_again(self, scene: Scene, wanted: Params) -> Gradients:
        """Take the ascent's gradients once more, at the weights then."""
        with scene.rehearsal():
            found = self._gradients(self.ascent_loss_fns, list(wanted.values()))[1]
        return self._by_name(wanted, found)

    def descend(self) -> None:
        """Run the descent through the wrapped model, so that DDP averages it."""
        plain_backward(self.loss_fns, self.model, scaler=self.scaler)

    def descend_apart(self) -> Gradients:
        """Take the descent's gradients without touching `.grad`."""
        found = self._gradients(self.loss_fns, list(self.params.values()))[1]
        return dict(zip(self.params, found, strict=True))

    def settle(self) -> None:
        """Average `.grad` over replicas of the weights.

        The mean of a part that was averaged before is that part, so groups may follow."""
        if self.replicas is None:
            return
        params = list(self.params.values())
        parts = [local(param) for param in params]
        means = mean_over_ranks([gradient(param) for param in params], parts, self.replicas)
        for param, mean in zip(params, means, strict=True):
            param.grad = laid_out_as(param, mean)

    def scale(self) -> Tensor:
        """Return the scaler's factor [], made on the device of the parameters."""
        one = torch.ones((), device=next(iter(self.params.values())).device)
        return _scaled(one, self.scaler)

    def _scene(self) -> Scene:
        return Scene(self.model, mute=True, replicas=self.replicas)

    def _by_name(self, wanted: Params, found: list[Tensor | None]) -> Gradients:
        """Name the gradients, averaged over ranks if the ascent is shared."""
        if self.shared_ascent:
            model = self.model
            group = model.process_group if isinstance(model, DistributedDataParallel) else None
            # the ranks of a shard group share their ascent in any case
            if self.shards.group is None or self.replicas is not None:
                parts = [local(param) for param in wanted.values()]
                found = mean_over_ranks(found, parts, self.replicas or group)
        return dict(zip(wanted, found, strict=True))

    def _ascend(
        self, scene: Scene, loss_fns: Sequence[LossFn], params: list[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the clean loss [] and the gradients of params, then move the inputs.

        Both are from before the inputs' last move."""
        climb = self.input_ascent
        inputs, num_steps = (climb.inputs, climb.num_steps) if climb else ((), 1)
        if num_steps < 1:
            raise ValueError(
                f"num_steps={num_steps} moves no input; pick num_steps >= 1, or leave out "
                "input_ascent"
            )
        with scene.ascent(hook=False), _differentiated(inputs):
            for _ in range(num_steps - 1):
                with scene.rehearsal():
                    _move(climb, self._gradients(loss_fns, inputs)[1])
            loss, grads = self._gradients(loss_fns, [*params, *inputs])
            _move(climb, grads[len(params) :])
        return loss, grads[: len(params)]

    def _gradients(
        self, loss_fns: Sequence[LossFn], leaves: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the summed loss [] and its gradient for each leaf, None if unused.

        The module inside DDP is called, and `.grad` is not touched."""
        if self.shards.group is not None:
            return self._sharded_gradients(loss_fns, leaves)
        model = self.model
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        losses: list[Tensor] = []
        sums: list[Tensor | None] = [None] * len(leaves)
        for each in loss_fns:
            loss = loss_from(each, bare, example=OF_MODEL)
            losses.append(loss.detach().clone())
            found = torch.autograd.grad(_scaled(loss, self.scaler), leaves, allow_unused=True)
            for i, grad in enumerate(found):
                so_far = sums[i]
                sums[i] = grad if so_far is None else so_far if grad is None else so_far + grad
        return torch.stack(losses).sum(), sums

    def _sharded_gradients(
        self, loss_fns: Sequence[LossFn], leaves: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return loss and gradients by backward passes, because only these gather and reduce.

        The gradients are the mean over the ranks that share the weights, as this rank's parts.

        Raises:
            RuntimeError: the passes left no gradient, as with gradient sync switched off."""
        touched = [*self.params.values(), *leaves]
        before = [each.grad for each in touched]
        try:
            for each in touched:
                each.grad = None
            loss = plain_backward(loss_fns, self.model, scaler=self.scaler)
            if all(param.grad is None for param in self.params.values()):
                raise RuntimeError(
                    "the ascent left no gradient on sharded parameters; give the model before "
                    "set_requires_gradient_sync(False): SAM needs the sum over ranks in every pass"
                )
            return loss, [gradient(leaf) for leaf in leaves]
        finally:
            for each, grad in zip(touched, before, strict=True):
                each.grad = grad


@contextmanager
def _differentiated(inputs: Sequence[Tensor]) -> Iterator[None]:
    """Make the inputs require a gradient inside."""
    flags = [each.requires_grad for each in inputs]
    try:
        for each in inputs:
            each.requires_grad_()
        yield
    finally:
        for each, flag in zip(inputs, flags, strict=True):
            each.requires_grad_(flag)


@torch.no_grad()
def _move(climb: InputAscent | None, grads: Sequence[Tensor | None]) -> None:
    if climb:
        pairs = zip(climb.inputs, grads, strict=True)
        climb.move(
            [
                torch.zeros_like(x) if g is None else g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
                for x, g in pairs
            ]
        )


def _scaled(loss: Tensor, scaler: GradScaler | None) -> Tensor:
    return loss if scaler is None else scaler.scale(loss)


def as_list(loss_fn: LossFns) -> Sequence[LossFn]:
    """Return the loss functions as a list.

    Raises:
        ValueError: there are none."""
    loss_fns = list(loss_fn) if isinstance(loss_fn, Sequence) else [loss_fn]
    if not loss_fns:
        raise ValueError("loss_fn is an empty sequence; give at least one function of the model")
    return loss_fns
