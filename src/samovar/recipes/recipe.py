"""The type of a recipe, and pairs of recipes that differ in SAM alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from samovar.config import Config


@dataclass(frozen=True)
class Recipe:
    """Named settings, and the result to expect from them."""

    name: str
    summary: str
    """One line: network, images, and what is special about the training."""
    expect: str
    """A measured number with n and hardware, or the paper's number with its table; says so where
    nothing was measured yet."""
    make: Callable[[], Config]
    """Makes the settings."""

    def config(self) -> Config:
        """Return the settings, with the recipe's name in them."""
        return replace(self.make(), recipe=self.name)


class MakesForRho(Protocol):
    """A function from SAM's radius to settings."""

    def __call__(self, *, rho: float) -> Config:
        """Return the settings for a radius; 0 is plain training."""


def twins(
    name: str, summary: str, expect: tuple[str, str], rho: float, make: MakesForRho
) -> list[Recipe]:
    """Return a recipe and the same recipe with SAM.

    Args:
        expect: the results without and with SAM.
        rho: SAM's radius in the second recipe.
        make: called for either recipe."""
    return [
        Recipe(name, summary, expect[0], lambda: make(rho=0.0)),
        Recipe(f"{name}-sam", f"{summary}, SAM rho {rho:g}", expect[1], lambda: make(rho=rho)),
    ]
