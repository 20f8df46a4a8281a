"""Find a run by its name, so that `samovar measure NAME` need not say `runs/NAME`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from samovar import recipes
from samovar.config import Config, CorruptConfig, MeasureConfig
from samovar.models import table
from samovar.models.timm_names import defined_by_timm

Settings = TypeVar("Settings", bound="Config | MeasureConfig | CorruptConfig")


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


def named_runs(settings: Settings, base: Settings) -> Settings:
    """Return settings in which the flags that take a run hold its path where its name was given.

    Args:
        base: the settings before flags."""
    if isinstance(settings, Config) and isinstance(base, Config) and settings.init != base.init:
        # weights of timm keep their name; samovar's own networks have none to start from
        init = settings.init
        return replace(settings, init=init if defined_by_timm(init) else run_path(init))
    if isinstance(settings, MeasureConfig) and not is_step(settings.other):
        return replace(settings, other=run_path(settings.other))
    return settings


def is_step(word: str) -> bool:
    """Return whether `--other` names a step of the run itself."""
    return word.isdigit() or word in ("best", "last", "init")


def config_path(word: str) -> str:
    """Return the file of settings that a word names: a file, a run folder or the name of a run."""
    found = Path(run_path(word))
    return str(found / "config.json" if found.is_dir() else found)


def is_hidden(word: str) -> bool:
    """Return whether a run of this name is hidden by a recipe or a model of the same name."""
    known = word in recipes.RECIPES or word in table.names()
    return known and (Config().output / word / "config.json").is_file()
