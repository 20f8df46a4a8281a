"""What is refused before a pass is made, in the words of the library."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from samovar.sam.variant import SamVariant, changed, conflict, fault


def check_settings(rho: float, eta: float) -> None:
    """Check the radius and ASAM's offset.

    Raises:
        ValueError: one is out of range."""
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
    """Check that a variant's settings go together, and that it has what it needs.

    Raises:
        ValueError: names the settings and what to do."""
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
            "this variant remembers earlier steps; make one memory=SamMemory() and give it in every step"
        )
    if variant.momentum and optimizer is None:
        raise ValueError("momentum=True climbs along the optimizer's momentum; give optimizer=")


def check_own_ascent(variant: SamVariant, name: str) -> None:
    """Check that a variant can take its ascent from other examples than its descent.

    Args:
        name: of the argument that says which.

    Raises:
        ValueError: it cannot."""
    if variant.momentum:
        raise ValueError(
            f"{name} with momentum=True, which takes no gradient for its climb; leave one of them out"
        )
    if variant.uses_both:
        used = next(
            key for key in ("alpha", "gamma", "decoupled", "reuse") if key in changed(variant)
        )
        raise ValueError(
            f"{name} with {used}={getattr(variant, used)}: the two gradients would be of different examples; "
            "leave one of them out"
        )
