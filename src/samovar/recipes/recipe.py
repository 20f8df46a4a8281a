"""What a recipe is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from samovar.config import Config


@dataclass(frozen=True)
class Recipe:
    """Settings with a name, and what to expect of them."""

    name: str
    summary: str
    expect: str
    """A measured number with n and hardware, or the paper's with its table; says so where nothing
    was measured yet."""
    make: Callable[[], Config]

    def config(self) -> Config:
        """The settings, stamped with the recipe's name."""
        return replace(self.make(), recipe=self.name)


def twins(
    name: str, summary: str, expect: tuple[str, str], rho: float, make: Callable[[float], Config]
) -> list[Recipe]:
    """A recipe and the same with SAM, from a function of rho; what to expect of either."""
    return [
        Recipe(name, summary, expect[0], lambda: make(0.0)),
        Recipe(f"{name}-sam", f"{summary}, SAM rho {rho:g}", expect[1], lambda: make(rho)),
    ]
