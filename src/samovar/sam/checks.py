"""Checks of settings before any pass is made, with errors that name the library's arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch.optim import Optimizer

from samovar.sam.calls import closure_caller
from samovar.sam.variant import SamVariant, changed, conflict, fault


def check_settings(rho: float, eta: float) -> None:
    """Check the radius and ASAM's offset.

    Raises:
        TypeError: one of them is no number.
        ValueError: one of them is out of range."""
    for name, value in (("rho", rho), ("eta", eta)):
        if not hasattr(value, "__float__"):
            raise TypeError(f"{name}={value!r} is of type {type(value).__name__}; give a number")
    if rho < 0:
        raise ValueError(f"rho={rho} is negative; pick rho >= 0 (0 is plain training)")
    if not math.isfinite(rho):
        raise ValueError(f"rho={rho} is not finite; pick rho >= 0 (0 is plain training)")
    if not 0 < eta < math.inf:
        raise ValueError(
            f"eta={eta} is not positive and finite; pick eta > 0 (ASAM's authors use 0.01)"
        )


def check_variant(
    variant: SamVariant, adaptive: bool, memory: object | None, optimizer: Optimizer | None
) -> None:
    """Check that a variant's settings agree, and that it has what it needs.

    Raises:
        ValueError: the message names the settings and says what to do."""
    if found := fault(variant):
        name, allowed = found
        raise ValueError(f"{name}={getattr(variant, name)} is out of range; give {allowed}")
    if clash := conflict(variant):
        one, other, why = clash
        raise ValueError(
            f"{one}={getattr(variant, one)} with {other}={getattr(variant, other)}: {why}"
        )
    if variant.layerwise and adaptive:
        raise ValueError(
            "layerwise=True with adaptive=True: each scales the climb by the weights; leave one out"
        )
    if variant.needs_memory and memory is None:
        raise ValueError(
            "this variant remembers earlier steps; make one memory=SamMemory() and give it in "
            "every step"
        )
    if variant.noise and adaptive:
        raise ValueError(
            "noise=True with adaptive=True: each scales the climb by the weights; leave one out"
        )
    moves = variant.sharp_only and variant.c_first != variant.c_last
    if moves and not getattr(memory, "num_steps", 0):
        raise ValueError(
            f"sharp_only=True moves c from {variant.c_first} to {variant.c_last} over the run; "
            "give its length: SamMemory(num_steps=...) or SAM(..., num_steps=...)"
        )
    if variant.momentum and optimizer is None:
        raise ValueError("momentum=True climbs along the optimizer's momentum; give optimizer=")


def check_own_ascent(variant: SamVariant, name: str) -> None:
    """Check that a variant can take its ascent from other examples than its descent.

    Args:
        variant: the relative of SAM.
        name: the argument that gives the other examples, for the message.

    Raises:
        ValueError: the variant cannot."""
    given = changed(variant)
    if variant.one_pass:
        directions: tuple[str, ...] = ("momentum", "stale", "noise")
        used = next(key for key in directions if key in given)
        raise ValueError(
            f"{name} with {used}=True, which takes no gradient for its climb; leave one of them out"
        )
    if variant.uses_both:
        keys = ("alpha", "gamma", "decoupled", "reuse", "sharp_only")
        used = next(key for key in keys if key in given)
        raise ValueError(
            f"{name} with {used}={getattr(variant, used)}: the two gradients would be of different "
            "examples; leave one of them out"
        )


def check_shards(variant: SamVariant, sharded: bool) -> None:
    """Check that a variant can be had of sharded parameters.

    Raises:
        ValueError: the variant cannot."""
    if sharded and variant.noise:
        raise ValueError(
            "noise=True on sharded parameters: each rank would draw noise of its own, which is not "
            "that of one process; use DDP for ARWP"
        )


def check_wrapping(
    base_optimizer: Optimizer,
    settings: Mapping[str, object],
    clip_norm: float | None,
    start: int,
    end: int | None,
) -> None:
    """Check that an optimizer can be wrapped, and the settings of the wrapper itself.

    Args:
        base_optimizer: the optimizer to wrap.
        settings: the wrapper's own hyper-parameters, which go into the groups.
        clip_norm: largest norm of the gradient, or None.
        start: first step that climbs.
        end: first step that is plain again, or None.

    Raises:
        ValueError: the optimizer needs a closure, a hyper-parameter clashes, the optimizer is
            wrapped already, or a setting is out of range."""
    if name := closure_caller(base_optimizer):
        raise ValueError(
            f"{name} calls its closure itself, so it cannot be the base optimizer, which gets its "
            "gradient from SAM; wrap an optimizer that needs no closure, such as torch.optim.SGD"
        )
    if clash := settings.keys() & base_optimizer.defaults.keys():
        raise ValueError(
            f"{type(base_optimizer).__name__} has its own {', '.join(clash)}; pick another "
            "optimizer"
        )
    if hasattr(base_optimizer, "_in_sam"):
        # Both would read the rho of the groups they share, and the later one would win.
        raise ValueError(
            "the base optimizer is in a SAM already; wrap a new one, or set rho in its param_groups"
        )
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(
            f"clip_norm={clip_norm} is not positive; pick clip_norm > 0, or None for no clipping"
        )
    if not 0 <= start <= (start if end is None else end):
        raise ValueError(
            f"start={start} with end={end}: pick 0 <= start <= end, or end=None for all later steps"
        )
