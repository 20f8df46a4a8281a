"""Find a run by its name, so that `samovar measure NAME` need not say `runs/NAME`."""

from __future__ import annotations

from pathlib import Path

from samovar import recipes
from samovar.config import Config
from samovar.models import table
from samovar.models.timm_names import defined_by_timm


def run_path(word: str, *, models: bool = False) -> str:
    """Return the path of the run that a word names, or the word as it is.

    A path that exists goes first. So does the name of a model where the verb takes models, so that
    no run changes what that name means.

    Args:
        word: of the command line.
        models: whether the verb takes names of models as well."""
    place = Config().output / word
    plain = word and not {"/", ":", "\\"} & set(word) and not Path(word).exists()
    if not plain or not (place / "config.json").is_file():
        return word
    if models and (word in table.names() or defined_by_timm(word)):
        return word
    return str(place)


def is_hidden(word: str) -> bool:
    """Return whether a run of this name is hidden by a recipe or a model of the same name."""
    known = word in recipes.RECIPES or word in table.names()
    return known and (Config().output / word / "config.json").is_file()
