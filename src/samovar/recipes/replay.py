"""The command that trains a run's settings again, whatever its folder of images holds by then."""

from __future__ import annotations

from collections.abc import Callable

from samovar import config as configs
from samovar import recipes
from samovar.config import Config
from samovar.recipes.own import photos, transfer

BY_NUMBER: dict[str, Callable[[int, int], Config]] = {"photos": photos, "transfer": transfer}
"""Recipes whose settings follow from the number of training images; called with it and with the
batch, 0 if it is not given."""

_NUMBERS = (100, 1_000, 5_000, 20_000, 100_000, 1_000_000)
"""Numbers of images, one for each row of the rules of these recipes."""


def flags(config: Config, base: Config) -> list[str]:
    """Return the flags that turn the recipe of a command into `config`.

    Settings that the recipe takes from the number of images are always among them: the number may
    be another one when the command is typed, and so may be what `base` holds.

    Args:
        base: the settings of the recipe."""
    return configs.to_flags(config, base, _varying(config.recipe))


def command(config: Config) -> list[str]:
    """Return the words of the command that trains a config again."""
    # a run of Python code, or of a recipe that is gone, starts from the defaults of all settings
    known = config.recipe if config.recipe in recipes.RECIPES else Config.recipe
    return ["samovar", "train", known, *flags(config, recipes.get(known).config())]


def _varying(recipe: str) -> set[str]:
    """Return the settings of a recipe that follow from the number of images or from the batch."""
    if recipe not in BY_NUMBER:
        return set()
    make = BY_NUMBER[recipe]
    found = [make(number, batch) for number in _NUMBERS for batch in (0, 1)]
    return {name for each in found for name in configs.differences(each, found[0])}
