"""Recipes: named settings that are known to work, or that the paper used.

A recipe is a function that returns a Config; the flags of `samovar train NAME` override its
settings. No file of this room imports torch."""

from __future__ import annotations

from samovar.recipes.own import ENOUGH, OWN, photos, sizes, transfer, weights_for
from samovar.recipes.paper import IMAGENET_TRAIN, PAPER_RHO, imagenet, paper
from samovar.recipes.recipe import Recipe
from samovar.recipes.relatives import RELATIVES, published, related
from samovar.recipes.small import cifar, digits, small
from samovar.words import suggest

__all__ = [
    "ENOUGH",
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
    "sizes",
    "transfer",
    "weights_for",
]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in [*small(), *OWN, *paper(), *published()]
}
"""All recipes by name, in the order in which `samovar list recipes` prints them."""


def get(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        ValueError: no recipe has that name; suggests the closest ones."""
    if name in RECIPES:
        return RECIPES[name]
    hint = suggest(name, RECIPES, instead="see `samovar list recipes`")
    raise ValueError(f"unknown recipe {name!r}; {hint}")
