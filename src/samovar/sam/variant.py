"""The settings in which the relatives of SAM differ from it; each is neutral by default. No torch.

A step of any relative climbs from the weights w to w + e, takes the gradient there, and combines
the gradients at both points into the one that the optimizer applies. To add a relative, add a
setting here and the line that obeys it: a direction of the climb in `sam/directions.py` or
`sam/engine.py`, a use of both gradients in `sam/combine.py`. Both front ends use these."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from samovar.ranges import Range, out_of_range


@dataclass(frozen=True)
class SamVariant:
    """Departures from plain SAM. They combine freely, except for the pairs that `conflict` names.

    Notation: g is the gradient at the weights, g_s the gradient at the top of the climb."""

    momentum: bool = False
    """Momentum-SAM (MSAM): climb along minus the optimizer's momentum, in one pass; needs a rho ten
    times larger."""
    sigma: Annotated[float, Range("a number of 0 or more, 0 for SAM's own direction", ge=0)] = 0.0
    """Friendly SAM (F-SAM): climb along g - sigma x (average gradient of the earlier steps); its
    authors use 1."""
    sigma_decay: Annotated[float, Range("a decay from 0 up to 1", ge=0, lt=1)] = 0.9
    """Decay per step of F-SAM's average; its authors use 0.6 to 0.95."""
    ascent_steps: Annotated[int, Range("a number of steps, 1 or more", ge=1)] = 1
    """Steps of the climb, each rho / ascent_steps long and with a pass of its own."""
    norms_only: bool = False
    """SAM-ON: only parameters of normalization layers climb; needs a rho about ten times larger."""
    layerwise: bool = False
    """Each parameter climbs along its own unit gradient, by rho x |w_l| / |w| (LookSAM's rule for
    large batches)."""
    every: Annotated[int, Range("a number of steps, 1 for all of them", ge=1)] = 1
    """Climb at every k-th step only; the steps in between are plain."""
    reuse: Annotated[float, Range("a share of 0 or more, 0 for plain steps between", ge=0)] = 0.0
    """LookSAM's alpha: the steps in between add this share of |g| along the part of g_s orthogonal
    to g, parameter by parameter."""
    alpha: Annotated[float, Range("a number of 0 or more, 0 for SAM", ge=0)] = 0.0
    """GSAM: apply g_s - alpha x (the component of g orthogonal to g_s)."""
    gamma: Annotated[float, Range("a number from 0 (plain) over 0.5 (SAM) up to 1", ge=0, lt=1)] = (
        0.5
    )
    """WSAM: apply g + gamma / (1 - gamma) x (g_s - g); 0.5 is SAM, its authors recommend 0.8 to
    0.95."""
    decoupled: bool = False
    """WSAM's other form: the optimizer gets g, and lr x gamma / (1 - gamma) x (g_s - g) is
    subtracted after its step."""
    stale: bool = False
    """Stale ascent: climb along the gradient that the step before applied, in one pass."""
    noise: bool = False
    """ARWP: move by Gaussian noise of rho x (norm of the weight's row) in place of a climb, in one
    pass; its authors use a rho of 0.005 to 0.02."""
    noise_eta: Annotated[float, Range("a number of 0 or more, 0 for noise by norm alone", ge=0)] = (
        1.0
    )
    """ARWP's eta: the noise of a row is divided by sqrt(1 + eta S), with S the row's sum of the
    running means of squared gradients; those of Adam where the optimizer keeps them."""
    noise_decay: Annotated[float, Range("a decay from 0 up to 1", ge=0, lt=1)] = 0.9
    """Decay per step of ARWP's running mean where the optimizer keeps none."""
    sharp_only: bool = False
    """AE-SAM: climb only where |g|^2 is at least its running mean + c x its standard deviation."""
    c_first: Annotated[float, Range("a number")] = 1.0
    """AE-SAM's c at the first step of the run; it moves linearly."""
    c_last: Annotated[float, Range("a number")] = -1.0
    """AE-SAM's c at the end of the run."""
    c_decay: Annotated[float, Range("a decay from 0 up to 1", ge=0, lt=1)] = 0.9
    """Decay per step of AE-SAM's running mean and variance."""
    c_skip: bool = True
    """Read on the host whether AE-SAM climbs, once for each group, and leave out the second pass
    where it does not. Off: nothing is read, and every step costs two passes."""

    @property
    def weight(self) -> float:
        """Return WSAM's gamma / (1 - gamma), the weight of g_s."""
        return self.gamma / (1 - self.gamma)

    @property
    def uses_both(self) -> bool:
        """Return whether both gradients are needed, to be applied or to be kept."""
        return bool(
            self.alpha or self.gamma != 0.5 or self.decoupled or self.reuse or self.sharp_only
        )

    @property
    def one_pass(self) -> bool:
        """Return whether the climb is known before a gradient at the weights is taken."""
        return self.momentum or self.stale or self.noise

    @property
    def one_climb(self) -> bool:
        """Return whether all groups of a step climb by the same perturbation."""
        return self.momentum or self.stale

    @property
    def remembers(self) -> bool:
        """Return whether a step depends on earlier ones beyond weights and optimizer."""
        squares = self.noise and self.noise_eta
        return bool(self.sigma or self.every > 1 or self.stale or squares or self.sharp_only)

    @property
    def needs_memory(self) -> bool:
        """Return whether a step needs a `SamMemory`, if only until the optimizer has stepped."""
        return self.remembers or self.decoupled


_DIRECTIONS = {
    "momentum": ("the optimizer's momentum", "the momentum"),
    "stale": ("the gradient of the step before", "it"),
    "noise": ("noise", "it"),
}
"""Directions of the climb that are known without a gradient at the weights; whole and in short."""
_ALONE = "{} is the whole direction, and there is no gradient at the weights"
_NOTHING_TO_SPARE = "a step along {} costs what a plain one does, so there is nothing to leave out"
_PAIRS: tuple[tuple[str, str, str], ...] = (
    *(
        (one, other, _NOTHING_TO_SPARE.format(short) if other == "every" else _ALONE.format(whole))
        for one, (whole, short) in _DIRECTIONS.items()
        for other in (
            "sigma", "ascent_steps", "every", "alpha", "gamma", "decoupled", "sharp_only"
        )
    ),
    ("momentum", "stale", "each is a direction of its own; leave one of them out"),
    ("momentum", "noise", "each is a direction of its own; leave one of them out"),
    ("stale", "noise", "each is a direction of its own; leave one of them out"),
    ("noise", "layerwise", "the noise has a length of its own for every row; leave it out"),
    ("sharp_only", "every", "each says in which steps to climb; leave one of them out"),
    ("sharp_only", "alpha", "plain steps between would undo what the others do to the gap"),
    ("sharp_only", "decoupled", "plain steps have no difference to subtract"),
    ("alpha", "gamma", "each says in its own way what to apply of the two gradients"),
    ("alpha", "decoupled", "each says in its own way what to apply of the two gradients"),
    ("reuse", "decoupled", "the steps between would have no difference to subtract"),
)  # fmt: skip
"""Pairs of settings that exclude each other, with the reason."""


def changed(variant: SamVariant) -> dict[str, object]:
    """Return the settings that are not neutral, by name."""
    names = (field.name for field in dataclasses.fields(SamVariant))
    return {
        name: getattr(variant, name)
        for name in names
        if getattr(variant, name) != getattr(SamVariant, name)
    }


def fault(variant: SamVariant) -> tuple[str, str] | None:
    """Return the first setting that is out of range and what is allowed; None if all fit."""
    return next(((name, allowed) for name, _, allowed in out_of_range(variant)), None)


def conflict(variant: SamVariant) -> tuple[str, str, str] | None:
    """Return the first two settings that contradict each other, with the reason; None if none do.

    The second may be one that is missing; the reason then says so."""
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
            "plain steps between would undo what the others do to the gap; "
            "give a share to reuse as well",
        )
    return None
