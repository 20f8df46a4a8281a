"""What tells the relatives of SAM from it: a few choices, each neutral by default. Nothing in this
file needs torch.

A step of any of them climbs from the weights w to w + e, takes the gradient there, and makes of the
gradients at both points the one that is applied. To add a relative is to add a setting here and the
line that obeys it: a direction in `sam/climb.py`, a use of the two gradients in
    `sam/combine.py`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from samovar.ranges import Range, out_of_range


@dataclass(frozen=True)
class SamVariant:
    """Departures from plain SAM; they go together, unless `conflict` knows better.

    Written: g and g_s are the gradients at the weights and at the top of the climb."""

    momentum: bool = False
    """Momentum-SAM (MSAM): climb along minus the optimizer's momentum, in one pass; wants a rho ten
    times larger."""
    sigma: Annotated[float, Range("a number of 0 or more, 0 for SAM's own direction", ge=0)] = 0.0
    """Friendly SAM (F-SAM): climb along g - sigma x (average gradient of the steps before); its
    authors use 1."""
    sigma_decay: Annotated[float, Range("a decay from 0 up to 1", ge=0, lt=1)] = 0.9
    """Decay per step of that average; its authors use 0.6 to 0.95."""
    ascent_steps: Annotated[int, Range("a number of steps, 1 or more", ge=1)] = 1
    """Steps of the climb, each rho / ascent_steps long and a pass of its own."""
    norms_only: bool = False
    """SAM-ON: only the parameters of normalization layers climb; wants a rho about ten times
    larger."""
    layerwise: bool = False
    """Each parameter climbs along its own unit gradient, rho x |w_l| / |w| far (as LookSAM for
    large batches)."""
    every: Annotated[int, Range("a number of steps, 1 for all of them", ge=1)] = 1
    """Climb at each k-th step only; the steps between are plain."""
    reuse: Annotated[float, Range("a share of 0 or more, 0 for plain steps between", ge=0)] = 0.0
    """LookSAM's alpha: the steps between add this share of |g| along g_s's part across g, parameter
    by parameter."""
    alpha: Annotated[float, Range("a number of 0 or more, 0 for SAM", ge=0)] = 0.0
    """GSAM: g_s - alpha x (the component of g across g_s) is applied."""
    gamma: Annotated[float, Range("a number from 0 (plain) over 0.5 (SAM) up to 1", ge=0, lt=1)] = (
        0.5
    )
    """WSAM: g + gamma / (1 - gamma) x (g_s - g) is applied; 0.5 is SAM, its authors recommend 0.8
    to 0.95."""
    decoupled: bool = False
    """WSAM's other form: g goes to the optimizer, and lr x gamma / (1 - gamma) x (g_s - g) is
    subtracted after it."""

    @property
    def weight(self) -> float:
        """WSAM's gamma / (1 - gamma), the weight of g_s."""
        return self.gamma / (1 - self.gamma)

    @property
    def uses_both(self) -> bool:
        """Whether what is applied, or kept, is made of both gradients."""
        return bool(self.alpha or self.gamma != 0.5 or self.decoupled or self.reuse)

    @property
    def remembers(self) -> bool:
        """Whether a step depends on those before by more than weights and optimizer."""
        return bool(self.sigma or self.every > 1)

    @property
    def needs_memory(self) -> bool:
        """Whether a step needs a `SamMemory`, if only until the optimizer has stepped."""
        return self.remembers or self.decoupled


ALONE = "the optimizer's momentum is the whole direction, and there is no gradient at the weights"
_PAIRS: tuple[tuple[str, str, str], ...] = (
    ("momentum", "sigma", ALONE),
    ("momentum", "ascent_steps", ALONE),
    (
        "momentum",
        "every",
        "a step along the momentum costs what a plain one does, so there is nothing to leave out",
    ),
    ("momentum", "alpha", ALONE),
    ("momentum", "gamma", ALONE),
    ("momentum", "decoupled", ALONE),
    ("alpha", "gamma", "each says in its own way what to apply of the two gradients"),
    ("alpha", "decoupled", "each says in its own way what to apply of the two gradients"),
    ("reuse", "decoupled", "the steps between would have no difference to subtract"),
)
"""Settings that exclude each other, and why."""


def changed(variant: SamVariant) -> dict[str, object]:
    """The settings that are not neutral, by name."""
    names = (field.name for field in dataclasses.fields(SamVariant))
    return {
        name: getattr(variant, name)
        for name in names
        if getattr(variant, name) != getattr(SamVariant, name)
    }


def fault(variant: SamVariant) -> tuple[str, str] | None:
    """Return the first setting out of its range, and what is allowed; None if all fit."""
    return next(((name, allowed) for name, _, allowed in out_of_range(variant)), None)


def conflict(variant: SamVariant) -> tuple[str, str, str] | None:
    """The first two settings that mean nothing together, and why; the second is one that is missing
    where the reason says so."""
    given = changed(variant)
    for one, other, why in _PAIRS:
        if one in given and other in given:
            return one, other, why
    if variant.reuse and variant.every == 1:
        return "reuse", "every", "with no steps between there is none to use it in; give 2 or more"
    if variant.alpha and variant.every > 1 and not variant.reuse:
        return (
            "alpha",
            "every",
            "plain steps between would undo what the others do to the gap; give a share to reuse as well",
        )
    return None
