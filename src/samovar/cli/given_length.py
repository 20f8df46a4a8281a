"""Let flags of length and learning rate replace what a recipe says in another way."""

from __future__ import annotations

from dataclasses import replace

from samovar.config import Config


def chosen(config: Config, given: frozenset[str]) -> Config:
    """Return the config in which a learning rate that a flag gives replaces the recipe's grid."""
    if "optim.lr" in given and "grid.lr" not in given:
        return replace(config, grid=replace(config.grid, lr=()))
    return config


def timed(config: Config, given: frozenset[str]) -> Config:
    """Return the config in which epochs that a flag gives replace the recipe's steps."""
    if "epochs" in given and "steps" not in given:
        config = replace(config, steps=0)
    if "head.epochs" in given and "head.steps" not in given:
        config = replace(config, head=replace(config.head, steps=0))
    return config


def with_length(config: Config, base: Config) -> Config:
    """Return the config with the length of another."""
    head = replace(config.head, epochs=base.head.epochs, steps=base.head.steps)
    return replace(config, epochs=base.epochs, steps=base.steps, head=head)
