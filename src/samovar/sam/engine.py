"""The SAM step: climb from the weights w to w + e, take the gradient there, come back to w.

There is one implementation. `sam_backward` (gradient.py) and the `SAM` optimizer (adapter.py) only
differ in how they run a forward and backward pass; each hands its `Passes` to `sam_gradient`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.optim import Optimizer

from samovar.sam.checks import check_shards
from samovar.sam.climb import add_, climb_, perturbed
from samovar.sam.combine import combined, laid_out_as, mixed, norm
from samovar.sam.directions import (
    Climber,
    Leaf,
    against_momentum,
    layerwise,
    noise,
    second_moments,
)
from samovar.sam.memory import SamMemory
from samovar.sam.scene import Scene
from samovar.sam.shards import Shards, gradient, is_sharded, local
from samovar.sam.variant import SamVariant

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

    @property
    def shards(self) -> Shards:
        """Return how the parameters are split over ranks. All gradients are this rank's parts."""

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

    def settle(self) -> None:
        """Average `.grad` over replicas, at the end of a step's passes, if there are several."""

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
    share: float | None = None,
    last: bool = True,
) -> Any:
    """Add the SAM gradient of one group of examples to `.grad`; return the loss.

    Args:
        passes: runs the forward and backward passes.
        climbers: the parameters that are perturbed, by their names in `passes.params`; without any
            the gradient is the plain one.
        variant: the relative of SAM.
        memory: what the relative keeps from step to step; None if it needs nothing.
        optimizer: whose momentum Momentum-SAM follows, and whose second moments ARWP takes.
        num_groups: groups that make a step.
        share: the group's share of the step's examples; None is 1 / num_groups.
        last: whether this group is the step's last.

    Raises:
        ValueError: the variant cannot be had of sharded parameters.
    """
    check_shards(variant, passes.shards.group is not None)
    if memory is not None:
        memory.attach(passes.params, passes.shards)
    if not climbers:
        loss = passes.plain()
        if last:
            passes.settle()
        return loss

    # Relatives that do not climb in every step take plain steps in between.
    if memory is not None and memory.step % variant.every:
        loss = passes.plain()
        if last:
            passes.settle()
        if last and variant.reuse:
            memory.reuse_(passes.params, variant.reuse)
        return loss

    # Some know their direction without a gradient at w, so one pass is all they take.
    if variant.one_pass:
        shards = passes.shards
        known = _known_direction(climbers, variant, memory, optimizer)
        steps = _leaves(climbers, known, variant, shards)
        loss = passes.plain(perturbed(steps, move=add_ if variant.noise else None, shards=shards))
        if last:
            passes.settle()
        # Adam's second moments serve ARWP from the second step on.
        own = variant.stale or not second_moments(climbers, optimizer)
        if last and memory is not None and variant.remembers:
            if own:
                memory.keep_applied(variant, passes.params, 1 / passes.scale())
            else:
                memory.squares = {}
        return loss

    return _climb_and_descend(passes, climbers, variant, memory, num_groups, share, last)


def _known_direction(
    climbers: Mapping[str, Climber],
    variant: SamVariant,
    memory: SamMemory | None,
    optimizer: Optimizer | None,
) -> Mapping[str, Tensor | None]:
    """Return the direction of a climb that needs no gradient at w; without entries at first."""
    if variant.momentum and optimizer is not None:
        return against_momentum(climbers, optimizer)
    params = {name: climber.param for name, climber in climbers.items()}
    if variant.stale and memory is not None:
        return memory.here(memory.previous, params)
    squares = second_moments(climbers, optimizer)
    if not squares and memory is not None:
        squares = memory.here(memory.squares, params)
    return noise(climbers, squares, variant.noise_eta)


def _climb_and_descend(
    passes: Passes,
    climbers: Mapping[str, Climber],
    variant: SamVariant,
    memory: SamMemory | None,
    num_groups: int,
    share: float | None,
    last: bool,
) -> Any:
    """Run SAM's passes: the gradient g at w, the climb by e, the gradient g_s at w + e."""
    params, shards = passes.params, passes.shards
    moving = {name: climber.param for name, climber in climbers.items()}
    # parts are told apart by identity, so each is taken once
    parts = {n: each._replace(param=local(each.param)) for n, each in climbers.items()}

    # 1. The ascent gradient g, at the weights w.
    loss, g, scene = passes.ascend(params if variant.uses_both or variant.sigma else moving)
    if memory is not None and (variant.sigma or variant.reuse):
        memory.sum_up("clean", g)

    # 2. The climb: e = rho g / |g|, in one step or several.
    def steps(gradients: Gradients) -> list[Leaf]:
        if variant.sigma and memory is not None:
            # The average is that of the whole batch, unscaled; g is one group's share, scaled.
            sigma = variant.sigma / num_groups if share is None else variant.sigma * share
            gradients = memory.friendly(gradients, sigma, passes.scale())
        return _leaves(parts, gradients, variant, shards)

    # AE-SAM climbs where the gradient is long for its time. Where it does not, g is applied.
    sharp = None
    if variant.sharp_only and memory is not None:
        squared = (norm(list(g.values()), shards) / passes.scale()).square()
        memory.sum_up("squared", {"": squared / num_groups})
        sharp = memory.is_sharp(variant, squared)
        # The one host read of a group; it saves the second pass.
        if variant.c_skip and not bool(sharp):
            scene.no_descent()
            _finish(passes, memory, variant, scene, g, g, last)
            return loss

    first = steps(g)
    again = [lambda: steps(passes.ascend_again(scene, moving))] * (variant.ascent_steps - 1)
    if not variant.uses_both:
        g.clear()  # `first`, which is emptied before the descent, is now the last to hold them

    # 3. The descent gradient g_s, at w + e, with the random numbers and buffers of the ascent.
    climb = partial(climb_, where=sharp, shards=shards)
    with perturbed(first, again, climb, shards), scene.descent(mute=variant.uses_both):
        if variant.uses_both:
            g_s = passes.descend_apart()
        else:
            passes.descend()

    # 4. What the relative makes of both gradients, and what later steps need.
    _finish(passes, memory, variant, scene, g, g_s if variant.uses_both else {}, last)
    return loss


def _finish(
    passes: Passes,
    memory: SamMemory | None,
    variant: SamVariant,
    scene: Scene,
    g: Gradients,
    g_s: Gradients,
    last: bool,
) -> None:
    """Apply what the relative makes of both gradients, and keep what later steps need."""
    params = passes.params
    if variant.uses_both:
        _add(params, combined(variant, list(g.values()), list(g_s.values()), passes.shards))
        scene.average_gradients_()
        _sum_up_both(memory, variant, g, g_s)
    if last:
        passes.settle()
    if last and memory is not None:
        _remember(memory, variant, scene, params, passes.scale)


def _leaves(
    climbers: Mapping[str, Climber],
    gradients: Mapping[str, Tensor | None],
    variant: SamVariant,
    shards: Shards,
) -> list[Leaf]:
    """Pair each climber that has a gradient with it; rho is split over the steps of the climb."""
    leaves = [
        Leaf(local(climber.param), grad.to_dense(), climber.rho / variant.ascent_steps, climber.eta)
        for name, climber in climbers.items()
        if (grad := gradients.get(name)) is not None
    ]
    return layerwise(leaves, shards) if variant.layerwise else leaves


def _add(params: Params, gradients: Iterable[Tensor | None]) -> None:
    """Add gradients to `.grad`, laid out as their parameters."""
    for param, grad in zip(params.values(), gradients, strict=True):
        if grad is not None:
            before = gradient(param) if is_sharded(param) else param.grad
            param.grad = laid_out_as(param, grad if before is None else before + grad)


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
    if variant.sharp_only:
        squared = list(memory.sums("squared").values())
        for each in scene.mean(squared, squared):
            if each is not None:
                memory.average_in_sharpness(variant, each)
    if variant.decoupled:
        factor, found = 1 / scale(), mean("difference")
        memory.difference = [(params[name], grad * factor.to(grad)) for name, grad in found.items()]
