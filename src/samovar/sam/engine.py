"""The SAM step: climb from the weights w to w + e, take the gradient there, come back to w.

There is one implementation. `sam_backward` (gradient.py) and the `SAM` optimizer (adapter.py) only
differ in how they run a forward and backward pass; each hands its `Passes` to `sam_gradient`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from samovar.sam.combine import combined, laid_out_as, mixed
from samovar.sam.directions import Climber, Leaf, against_momentum, layerwise
from samovar.sam.memory import SamMemory
from samovar.sam.scene import Scene
from samovar.sam.variant import SamVariant

# Parameters per foreach call: few kernel launches, yet temporaries much smaller than the weights.
CHUNK = 16
CHUNK_ON_CPU = 1  # launches cost nothing there, and the temporaries should stay in the cache

Params = Mapping[str, Tensor]
Gradients = dict[str, Tensor | None]
"""By parameter name; None for a parameter that the pass did not use."""


class Ascent(NamedTuple):
    """The result of the first pass at the clean weights."""

    loss: Any
    """What the caller of the front end gets back: the loss at the clean weights."""
    gradients: Gradients
    scene: Scene
    """Random state, buffers and DDP wrappers of that pass, for the passes that follow."""


class Passes(Protocol):
    """The forward and backward passes of one group of examples, as a front end runs them."""

    @property
    def params(self) -> Params:
        """Return all trainable parameters, by names that are the same in every step."""

    def plain(self, moved: AbstractContextManager[None] | None = None) -> Any:
        """Add the gradient at the weights inside `moved` (None: as they are); return the loss."""

    def ascend(self, wanted: Params) -> Ascent:
        """Take the gradients of `wanted` at the clean weights; `.grad` is as before afterwards."""

    def ascend_again(self, scene: Scene, wanted: Params) -> Gradients:
        """Take the gradients of `wanted` at weights that have moved; `.grad` is as before."""

    def descend(self) -> None:
        """Add the gradient at the perturbed weights to `.grad`."""

    def descend_apart(self) -> Gradients:
        """Take the gradients of all `params` at the perturbed weights; `.grad` is as before."""

    def scale(self) -> Tensor:
        """Return the factor [] that the losses are multiplied by; 1 without a gradient scaler."""


def sam_gradient(
    passes: Passes,
    climbers: Mapping[str, Climber],
    variant: SamVariant,
    memory: SamMemory | None,
    optimizer: Optimizer | None,
    *,
    num_groups: int = 1,
    last: bool = True,
) -> Any:
    """Add the SAM gradient of one group of examples to `.grad`; return the loss.

    Args:
        passes: runs the forward and backward passes.
        climbers: the parameters that are perturbed, by their names in `passes.params`; without any
            the gradient is the plain one.
        variant: the relative of SAM.
        memory: what the relative keeps from step to step; None if it needs nothing.
        optimizer: whose momentum Momentum-SAM follows.
        num_groups: groups that make a step.
        last: whether this group is the step's last.
    """
    if not climbers:
        return passes.plain()

    # Relatives that do not climb in every step take plain steps in between.
    if memory is not None and memory.step % variant.every:
        loss = passes.plain()
        if last and variant.reuse:
            memory.reuse_(passes.params, variant.reuse)
        return loss

    # Momentum-SAM knows its direction without a gradient at w, so one pass is all it takes.
    if variant.momentum and optimizer is not None:
        steps = _leaves(climbers, against_momentum(climbers, optimizer), variant)
        return passes.plain(perturbed(steps))

    return _climb_and_descend(passes, climbers, variant, memory, num_groups, last)


def _climb_and_descend(
    passes: Passes,
    climbers: Mapping[str, Climber],
    variant: SamVariant,
    memory: SamMemory | None,
    num_groups: int,
    last: bool,
) -> Any:
    """Run SAM's passes: the gradient g at w, the climb by e, the gradient g_s at w + e."""
    params = passes.params
    moving = {name: climber.param for name, climber in climbers.items()}

    # 1. The ascent gradient g, at the weights w.
    loss, g, scene = passes.ascend(params if variant.uses_both or variant.sigma else moving)

    # 2. The climb: e = rho g / |g|, in one step or several.
    def steps(gradients: Gradients) -> list[Leaf]:
        if variant.sigma and memory is not None:
            # The average is that of the whole batch, unscaled; g is one group's share, scaled.
            gradients = memory.friendly(gradients, variant.sigma / num_groups, passes.scale())
        return _leaves(climbers, gradients, variant)

    first = steps(g)
    again = [lambda: steps(passes.ascend_again(scene, moving))] * (variant.ascent_steps - 1)
    if memory is not None and (variant.sigma or variant.reuse):
        memory.sum_up("clean", g)
    if not variant.uses_both:
        g.clear()  # `first`, which is emptied before the descent, is now the last to hold them

    # 3. The descent gradient g_s, at w + e, with the random numbers and buffers of the ascent.
    with perturbed(first, again), scene.descent(mute=variant.uses_both):
        if variant.uses_both:
            g_s = passes.descend_apart()
        else:
            passes.descend()

    # 4. What the relative makes of both gradients, and what later steps need.
    if variant.uses_both:
        _add(params, combined(variant, list(g.values()), list(g_s.values())))
        scene.average_gradients_()
        _sum_up_both(memory, variant, g, g_s)
    if last and memory is not None:
        _remember(memory, variant, scene, params, passes.scale)
    return loss


@contextmanager
def perturbed(leaves: list[Leaf], again: Iterable[Callable[[], list[Leaf]]] = ()) -> Iterator[None]:
    """Move the weights to the top of the climb inside; restore them bit for bit on exit.

    Args:
        leaves: the first step of the climb; the list is emptied.
        again: each call returns one further step, taken at the weights then. Parameters that are
            not in the first step do not move."""
    params = [leaf.param for leaf in leaves]
    # Copies, because (w + e) - e restores only 99.6 % of float32 weights exactly.
    copies = [param.detach().clone() for param in params]
    moved = set(map(id, params))
    try:
        climb_(leaves)
        leaves.clear()  # frees the ascent gradient before the descent needs the memory
        # An outer autocast would otherwise go on with its 16-bit copies of the clean weights.
        torch.clear_autocast_cache()
        for more in again:
            climb_([leaf for leaf in more() if id(leaf.param) in moved])
            torch.clear_autocast_cache()
        yield
    finally:
        if params:
            with torch.no_grad():
                torch._foreach_copy_(params, copies)
        torch.clear_autocast_cache()


@torch.no_grad()
def climb_(leaves: list[Leaf]) -> None:
    """Add e = rho T^2 g / |T g| to the weights in place; T is 1, or ASAM's |w| + eta.

    Nothing moves if |T g| is zero or not finite. The host does not wait for the device."""
    if not leaves:
        return
    norms = [
        n
        for params, grads, _, eta in _chunks(leaves)
        for n in torch._foreach_norm(_times_t(params, grads, eta))
    ]
    norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    for params, grads, rho, eta in _chunks(leaves):
        t_squared_g = _times_t(params, _times_t(params, grads, eta), eta)
        steps = torch._foreach_mul(t_squared_g, (rho / norm).to(grads[0]))
        for step in steps:
            # An unusable norm made every step 0, nan (0 * inf among them) or infinite.
            step.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        torch._foreach_add_(params, steps)


def _leaves(
    climbers: Mapping[str, Climber],
    gradients: Mapping[str, Tensor | None],
    variant: SamVariant,
) -> list[Leaf]:
    """Pair each climber that has a gradient with it; rho is split over the steps of the climb."""
    leaves = [
        Leaf(climber.param, grad.to_dense(), climber.rho / variant.ascent_steps, climber.eta)
        for name, climber in climbers.items()
        if (grad := gradients.get(name)) is not None
    ]
    return layerwise(leaves) if variant.layerwise else leaves


def _add(params: Params, gradients: Iterable[Tensor | None]) -> None:
    """Add gradients to `.grad`, laid out as their parameters."""
    for param, grad in zip(params.values(), gradients, strict=True):
        if grad is not None:
            param.grad = laid_out_as(param, grad if param.grad is None else param.grad + grad)


def _sum_up_both(
    memory: SamMemory | None, variant: SamVariant, g: Gradients, g_s: Gradients
) -> None:
    """Add a group's gradients to the step's sums, as far as `_remember` needs them."""
    if memory is not None and variant.reuse:
        memory.sum_up("robust", g_s)
    if memory is not None and variant.decoupled:
        difference = mixed(1.0, list(g_s.values()), -1.0, list(g.values()))
        memory.sum_up("difference", dict(zip(g_s, difference, strict=True)))


def _remember(
    memory: SamMemory,
    variant: SamVariant,
    scene: Scene,
    params: Params,
    scale: Callable[[], Tensor],
) -> None:
    """Keep what later steps need: averages over ranks of the step's sums, unscaled."""
    mean = partial(memory.mean, params=params, average=scene.mean)
    if variant.sigma:
        factor = 1 / scale()
        unscaled = {name: grad * factor.to(grad) for name, grad in mean("clean").items()}
        memory.average_in(unscaled, variant.sigma_decay)
    if variant.reuse:
        memory.keep_component(mean("clean"), mean("robust"))
    if variant.decoupled:
        factor, found = 1 / scale(), mean("difference")
        memory.difference = [(params[name], grad * factor.to(grad)) for name, grad in found.items()]


def _chunks(leaves: list[Leaf]) -> Iterator[tuple[list[Tensor], list[Tensor], float, float | None]]:
    """Yield (params, gradients in at least float32, rho, eta) of a few leaves at a time.

    All leaves of a chunk have the same device, types, rho and eta."""
    alike = defaultdict(list)
    for leaf in leaves:
        alike[leaf.param.device, leaf.param.dtype, leaf.grad.dtype, leaf.rho, leaf.eta].append(leaf)
    for (device, _, dtype, rho, eta), members in alike.items():
        precise = torch.promote_types(dtype, torch.float32)
        size = CHUNK_ON_CPU if device.type == "cpu" else CHUNK
        for start in range(0, len(members), size):
            chunk = members[start : start + size]
            params = [leaf.param for leaf in chunk]
            yield params, [leaf.grad.to(precise) for leaf in chunk], rho, eta


def _times_t(params: list[Tensor], grads: list[Tensor], eta: float | None) -> list[Tensor]:
    """Return T g, with T = |w| + eta, or T = 1 if eta is None.

    `grads` is never written to: autograd may give one tensor to two leaves."""
    if eta is None:
        return grads
    weights = [param.to(grad.dtype) for param, grad in zip(params, grads, strict=True)]
    t = torch._foreach_abs(weights)
    torch._foreach_add_(t, eta)
    torch._foreach_mul_(t, grads)
    return list(t)
