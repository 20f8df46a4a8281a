"""Sharpness-aware minimization as a way to take a gradient.

SAM minimizes the worst loss nearby, max L(w + e) over |e| <= rho. To first order the worst e is rho
g / |g|, so one
gradient costs two passes: the ascent (g, at w) and the descent (the gradient at w + e, then applied
    at w). The examples
that share an ascent are a group of m: call `sam_backward` once per group and the gradients add up.

Source: Foret et al., arXiv:2010.01412; the adaptive form (ASAM): Kwon et al., arXiv:2102.11600."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from samovar.sam.climb import Leaf, against_momentum, climbed, layerwise, leaves_of, norm_parameters
from samovar.sam.combine import combined, laid_out_as, mixed
from samovar.sam.memory import SamMemory
from samovar.sam.scene import Scene, mean_over_ranks
from samovar.sam.settings import check_own_ascent, check_settings, check_variant
from samovar.sam.variant import SamVariant

LossFn = Callable[[nn.Module], Tensor]
LossFns = LossFn | Sequence[LossFn]


class InputAscent(NamedTuple):
    """Inputs that climb the loss along with the weights, such as images under attack."""

    inputs: Sequence[Tensor]
    """Leaves of any shape that the loss functions read; they require a gradient during the ascent
    only."""
    move: Callable[[Sequence[Tensor]], None]
    """Changes the inputs in place, given for each the gradient, in its shape, of the (scaled)
    losses' sum; 0 where that is not finite."""
    num_steps: int = 1
    """How often they move, >= 1; the last move takes its gradients from the weights' own ascent."""


def plain_backward(
    loss_fn: LossFns, model: nn.Module, *, scaler: GradScaler | None = None
) -> Tensor:
    """Add the ordinary gradient to `.grad`: one forward and one backward pass per loss function.

    Args:
        loss_fn: maps the model to a scalar loss; or several of them, one per micro-batch, whose
            losses are summed.
        model: plain, compiled, or wrapped in DDP (which then communicates once, in the last
            backward).
        scaler: scales the losses for fp16; unscaling and the step stay with the caller.

    Returns:
        The summed loss [], detached and unscaled.

    Raises:
        ValueError: an empty sequence of loss functions.
    """
    loss_fns = _as_list(loss_fn)
    losses = []
    for i, each in enumerate(loss_fns, start=1):
        with (
            model.no_sync()
            if isinstance(model, DistributedDataParallel) and i < len(loss_fns)
            else nullcontext()
        ):
            loss = each(model)
            _scaled(loss, scaler).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach().clone())  # a compiled model may reuse the memory of its output
    return torch.stack(losses).sum()


def sam_backward(
    loss_fn: LossFns,
    model: nn.Module,
    *,
    rho: float,
    adaptive: bool = False,
    eta: float = 0.01,
    shared_ascent: bool = False,
    scaler: GradScaler | None = None,
    input_ascent: InputAscent | None = None,
    ascent_loss_fn: LossFns | None = None,
    variant: SamVariant | None = None,
    memory: SamMemory | None = None,
    num_groups: int = 1,
    optimizer: Optimizer | None = None,
) -> Tensor:
    """Add the SAM gradient of one group of examples to `.grad`: two forward and two backward
    passes.

    All passes draw the same random numbers (dropout, stochastic depth). Buffers (BatchNorm
    statistics) are those of the ascent. The weights come back bit for bit, in the same storage,
    also if the descent raises. Where the ascent gradient is zero or not finite nothing is
    perturbed; rho = 0 is `plain_backward`. It takes one copy of the weights.

    Inputs may climb too. Moved k times at the clean weights, the last time by gradients of the same
    backward pass as the ascent's, they cost k - 1 further passes; with rho = 0, k passes and then
    the plain gradient where they ended.

    For several groups in a batch call it once per group, each loss weighted by m / batch; under
    DDP, where every rank is a group of its own, do so inside `model.no_sync()` for all calls but
    the last. The ascent sends nothing.

    A `variant` departs from this as its settings say. One that uses both gradients does so for each
    group, and sends the result by one all-reduce after the passes; what it remembers is of all
    groups and ranks, for one all-reduce a vector more. A climb in part of the steps is rho = 0 in
    the others.

    Args:
        loss_fn: maps the model to a scalar loss; or several of them, one per micro-batch of the
            *same* group, whose losses are summed. Called twice, the first time on the module inside
            DDP.
        model: plain, compiled, or either in DDP. Reentrant activation checkpointing does not work.
        rho: radius of the perturbation, >= 0, in the norm of all weights together.
        adaptive: ASAM, e = rho T^2 g / |T g| with T = |w| + eta for weights and 1 for the rest. As
            in its authors' code, weights are the parameters with "weight" in their names, those of
            norm layers included, biases not.
        eta: ASAM's offset, > 0.
        shared_ascent: average the ascent gradient over the ranks by one all-reduce, so that m is
            the whole batch.
        scaler: scales the losses of all passes for fp16; unscaling and the step stay with the
            caller.
        input_ascent: which inputs climb, and how.
        ascent_loss_fn: the ascent's own loss, for instance that of a quarter of the examples; the
            returned loss and BatchNorm's statistics are then its. None is `loss_fn`.
        variant: a relative of SAM; None is SAM.
        memory: what the variant keeps from step to step, given in every step of the run; None where
            it needs nothing. Of decoupled WSAM, call `memory.subtract_(optimizer, variant)` after
            the optimizer's step.
        num_groups: calls that make a step, of groups of equal size, for a variant with a memory.
        optimizer: whose momentum MSAM climbs along.

    Returns:
        The summed loss [] at the unperturbed weights and before the inputs' last move, detached and
        unscaled; of MSAM, which does not go there, at the perturbed ones.

    Raises:
        ValueError: rho, eta or a number of steps out of range; a model compiled around DDP, or
            sharded; an empty sequence of loss functions; a variant whose settings mean nothing
            together, or without what it needs.

    Source: Foret et al., arXiv:2010.01412; the adaptive form (ASAM): Kwon et al., arXiv:2102.11600;
        each variant's
    beside its setting in `SamVariant`.
    """
    check_settings(rho, eta)
    variant = variant or SamVariant()
    check_variant(variant, adaptive, memory, optimizer)
    if ascent_loss_fn is not None:
        check_own_ascent(variant, "ascent_loss_fn")
    if input_ascent and (ascent_loss_fn is not None or variant.ascent_steps > 1):
        raise ValueError(
            "input_ascent goes with one ascent on the whole group; leave out ascent_loss_fn, ascent_steps"
        )
    step = _Step(
        model, _as_list(loss_fn), _as_list(loss_fn if ascent_loss_fn is None else ascent_loss_fn),
        rho, eta if adaptive else None, shared_ascent, scaler, input_ascent, variant, memory, num_groups, optimizer,
    )  # fmt: skip
    with nullcontext(True) if memory is None else memory.turn(num_groups) as last:
        between = memory is not None and memory.step % variant.every > 0
        if rho > 0 and not between:
            return step.climbing(last)
        loss = step.staying()
        if between and last and rho > 0 and memory is not None and variant.reuse:
            memory.reuse_(step.trainable, variant.reuse)
        return loss


@dataclass(frozen=True)
class _Step:
    """One group's part of a step."""

    model: nn.Module
    loss_fns: Sequence[LossFn]
    ascent_loss_fns: Sequence[LossFn]
    rho: float
    eta: float | None
    shared_ascent: bool
    scaler: GradScaler | None
    input_ascent: InputAscent | None
    variant: SamVariant
    memory: SamMemory | None
    num_groups: int
    optimizer: Optimizer | None

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters by a name that does not change when the model is compiled or wrapped."""
        named = self.model.named_parameters()
        wrapper = "module." if isinstance(self.model, DistributedDataParallel) else ""
        return {_plain_name(name, wrapper): param for name, param in named if param.requires_grad}

    def staying(self) -> Tensor:
        """The plain gradient, where the inputs have climbed if they do; returns the loss before."""
        if self.input_ascent is None:
            return plain_backward(self.loss_fns, self.model, scaler=self.scaler)
        scene = Scene(self.model, mute=True)
        loss, _ = _ascend(scene, self.loss_fns, self.model, [], self.input_ascent, self.scaler)
        with scene.descent():
            plain_backward(self.loss_fns, self.model, scaler=self.scaler)
        return loss

    def climbing(self, last: bool) -> Tensor:
        """The gradient at the top of the climb, or what the variant makes of both; returns the
        clean loss."""
        variant, trainable = self.variant, self.trainable
        climbers = trainable
        if variant.norms_only:
            norms = norm_parameters(self.model.modules())
            climbers = {name: param for name, param in trainable.items() if param in norms}
            if not climbers:
                raise ValueError(
                    "norms_only=True, and the model has no normalization layer that trains; leave it out"
                )
        if variant.momentum:
            return self._along_momentum(climbers)
        wanted = trainable if variant.uses_both or variant.sigma else climbers
        scene = Scene(self.model, mute=True)
        loss, found = _ascend(
            scene,
            self.ascent_loss_fns,
            self.model,
            list(wanted.values()),
            self.input_ascent,
            self.scaler,
        )
        clean = dict(zip(wanted, self._shared(found, list(wanted.values())), strict=True))
        del found
        leaves = self._leaves(climbers, clean)
        if self.memory and (variant.sigma or variant.reuse):
            self.memory.sum_up("clean", clean)
        if not variant.uses_both:
            clean.clear()  # so that `leaves`, emptied before the descent, is the last to hold them
        with climbed(leaves, self._again(scene, climbers)), scene.descent(mute=variant.uses_both):
            if variant.uses_both:
                robust = dict(
                    zip(trainable, self._gradients(list(trainable.values())), strict=True)
                )
            else:
                plain_backward(self.loss_fns, self.model, scaler=self.scaler)
        if variant.uses_both:
            self._apply(clean, robust, trainable)
            scene.average_gradients_()
        if last and self.memory:
            self._remember(scene, trainable)
        return loss

    def _along_momentum(self, climbers: dict[str, nn.Parameter]) -> Tensor:
        assert self.optimizer is not None
        directions = against_momentum(climbers, self.optimizer)
        leaves = self._scaled_leaves(climbers, directions)
        scene = Scene(self.model, mute=True)
        if self.input_ascent is None:
            with scene.ascent(hook=False):  # refuses what SAM cannot do
                pass
            with climbed(leaves):
                return plain_backward(self.loss_fns, self.model, scaler=self.scaler)
        loss, _ = _ascend(scene, self.loss_fns, self.model, [], self.input_ascent, self.scaler)
        with climbed(leaves), scene.descent():
            plain_backward(self.loss_fns, self.model, scaler=self.scaler)
        return loss

    def _shared(
        self, grads: list[Tensor | None], params: list[nn.Parameter]
    ) -> list[Tensor | None]:
        return mean_over_ranks(grads, params, self._group) if self.shared_ascent else grads

    @property
    def _group(self) -> dist.ProcessGroup | None:
        return self.model.process_group if isinstance(self.model, DistributedDataParallel) else None

    def _leaves(
        self, climbers: dict[str, nn.Parameter], grads: dict[str, Tensor | None]
    ) -> list[Leaf]:
        if self.variant.sigma and self.memory:
            # the average is of the whole batch, a group's gradient of its share, and scaled
            grads = self.memory.friendly(grads, self.variant.sigma / self.num_groups, self._scale())
        return self._scaled_leaves(climbers, [grads.get(name) for name in climbers])

    def _scaled_leaves(
        self, climbers: dict[str, nn.Parameter], directions: Sequence[Tensor | None]
    ) -> list[Leaf]:
        rho = self.rho / self.variant.ascent_steps
        leaves = leaves_of(climbers, list(climbers.values()), directions, rho, self.eta)
        return layerwise(leaves) if self.variant.layerwise else leaves

    def _again(
        self, scene: Scene, climbers: dict[str, nn.Parameter]
    ) -> Iterator[Callable[[], list[Leaf]]]:
        """The steps of the climb after the first."""

        def leaves() -> list[Leaf]:
            wanted = self.trainable if self.variant.sigma else climbers
            with scene.rehearsal():
                found = _gradient_of(
                    self.ascent_loss_fns, self.model, list(wanted.values()), self.scaler
                )[1]
            return self._leaves(
                climbers, dict(zip(wanted, self._shared(found, list(wanted.values())), strict=True))
            )

        return iter([leaves] * (self.variant.ascent_steps - 1))

    def _gradients(self, params: list[nn.Parameter]) -> list[Tensor | None]:
        return _gradient_of(self.loss_fns, self.model, params, self.scaler)[1]

    def _apply(
        self,
        clean: dict[str, Tensor | None],
        robust: dict[str, Tensor | None],
        trainable: dict[str, nn.Parameter],
    ) -> None:
        """Add what the variant makes of both gradients to `.grad`."""
        g, g_s = list(clean.values()), list(robust.values())
        for param, grad in zip(trainable.values(), combined(self.variant, g, g_s), strict=True):
            if grad is not None:
                param.grad = laid_out_as(param, grad if param.grad is None else param.grad + grad)
        if self.memory and self.variant.reuse:
            self.memory.sum_up("robust", robust)
        if self.memory and self.variant.decoupled:
            self.memory.sum_up(
                "difference", dict(zip(trainable, mixed(1.0, g_s, -1.0, g), strict=True))
            )

    def _remember(self, scene: Scene, trainable: dict[str, nn.Parameter]) -> None:
        """At the end of a step, with the gradients of all its groups."""
        assert self.memory is not None
        mean = partial(self.memory.mean, params=trainable, average=scene.mean)
        if self.variant.sigma:
            scale = 1 / self._scale()
            unscaled = {name: grad * scale.to(grad) for name, grad in mean("clean").items()}
            self.memory.average_in(unscaled, self.variant.sigma_decay)
        if self.variant.reuse:
            self.memory.keep_component(mean("clean"), mean("robust"))
        if self.variant.decoupled:
            scale = 1 / self._scale()
            found = mean("difference")
            self.memory.difference = [
                (trainable[name], grad * scale.to(grad)) for name, grad in found.items()
            ]

    def _scale(self) -> Tensor:
        """What the losses are multiplied by."""
        one = torch.ones((), device=next(iter(self.trainable.values())).device)
        return _scaled(one, self.scaler)


def _plain_name(name: str, wrapper: str) -> str:
    return name.removeprefix(wrapper).replace("_orig_mod.", "")


def _ascend(
    scene: Scene,
    loss_fns: Sequence[LossFn],
    model: nn.Module,
    params: list[nn.Parameter],
    climb: InputAscent | None,
    scaler: GradScaler | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Clean loss [] and gradients of params, both from before the last move of the inputs, which it
    makes."""
    inputs, num_steps = (climb.inputs, climb.num_steps) if climb else ((), 1)
    if num_steps < 1:
        raise ValueError(
            f"num_steps={num_steps} moves no input; pick num_steps >= 1, or leave out input_ascent"
        )
    with scene.ascent(hook=False), _differentiated(inputs):
        for _ in range(num_steps - 1):
            with scene.rehearsal():
                _move(climb, _gradient_of(loss_fns, model, inputs, scaler)[1])
        loss, grads = _gradient_of(loss_fns, model, [*params, *inputs], scaler)
        _move(climb, grads[len(params) :])
    return loss, grads[: len(params)]


@contextmanager
def _differentiated(inputs: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the inputs require a gradient."""
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


def _gradient_of(
    loss_fns: Sequence[LossFn],
    model: nn.Module,
    params: Sequence[Tensor],
    scaler: GradScaler | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Summed loss [], and its gradient for each of params (None if unused), by the module inside
    DDP; `.grad` is untouched."""
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    losses: list[Tensor] = []
    sums: list[Tensor | None] = [None] * len(params)
    for each in loss_fns:
        loss = each(bare)
        losses.append(loss.detach().clone())
        for i, grad in enumerate(
            torch.autograd.grad(_scaled(loss, scaler), params, allow_unused=True)
        ):
            so_far = sums[i]
            sums[i] = grad if so_far is None else so_far if grad is None else so_far + grad
    return torch.stack(losses).sum(), sums


def _scaled(loss: Tensor, scaler: GradScaler | None) -> Tensor:
    return loss if scaler is None else scaler.scale(loss)


def _as_list(loss_fn: LossFns) -> Sequence[LossFn]:
    loss_fns = list(loss_fn) if isinstance(loss_fn, Sequence) else [loss_fn]
    if not loss_fns:
        raise ValueError("loss_fn is an empty sequence; give at least one function of the model")
    return loss_fns
