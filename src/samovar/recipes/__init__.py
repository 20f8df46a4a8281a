"""Recipes: names for settings that are known to work, or that are the paper's. Nothing in this room
needs torch.

A recipe is a function that returns a Config; `samovar train NAME --flag value` overrides what it
returns."""

from __future__ import annotations

import difflib

from samovar.recipes.own import OWN, photos, transfer
from samovar.recipes.paper import IMAGENET_TRAIN, PAPER_RHO, imagenet, paper
from samovar.recipes.recipe import Recipe
from samovar.recipes.relatives import RELATIVES, published, related
from samovar.recipes.small import cifar, digits, small

__all__ = [
    "IMAGENET_TRAIN",
    "PAPER_RHO",
    "RECIPES",
    "RELATIVES",
    "Recipe",
    "cifar",
    "digits",
    "get",
    "imagenet",
    "photos",
    "related",
    "transfer",
]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in [*small(), *OWN, *paper(), *published()]
}


def get(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: there is none; says the nearest."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `samovar list recipes`"
    raise ValueError(f"unknown recipe {name!r}; {hint}")
