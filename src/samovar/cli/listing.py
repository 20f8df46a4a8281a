"""`list` and `show`: what there is by name."""

from __future__ import annotations

import json
from pathlib import Path

from samovar import config as configs
from samovar import recipes
from samovar.cli.flags import nearest
from samovar.config import Config
from samovar.data import catalog
from samovar.models import table


def list_names(args: list[str]) -> None:
    """Print the names that other commands take."""
    tables = {
        "recipes": {name: recipe.summary for name, recipe in recipes.RECIPES.items()},
        "models": {name: table.line(name) for name in table.names()},
        "sources": catalog.listed(),
    }
    if args in (["-h"], ["--help"]):
        print("usage: samovar list [recipes|models|sources]")
        return
    chosen = args or list(tables)
    for name in chosen:
        if name not in tables:
            raise ValueError(f"cannot list {name!r}; {nearest(name, tables)}")
        rows = tables[name]
        width = max(map(len, rows))
        print(f"{name}:" if len(chosen) > 1 else "", end="\n" if len(chosen) > 1 else "")
        for key, text in rows.items():
            print(f"  {key:<{width}}  {text}")
    if "models" in chosen:
        print("  any timm model name, or module:function returning an nn.Module, works as well")


def show(args: list[str]) -> None:
    """Print the settings of a recipe or run, or the facts of a model."""
    if len(args) != 1 or args[0] in ("-h", "--help"):
        print("usage: samovar show RECIPE|RUN|MODEL")
        raise SystemExit(0 if args in (["-h"], ["--help"]) else 2)
    name = args[0]
    if name in recipes.RECIPES:
        recipe = recipes.get(name)
        print(f"{name}: {recipe.summary}\nexpect: {recipe.expect}\n")
        _print_settings(recipe.config())
    elif name in table.names():
        print(f"{name}: {table.summary(name)}")
    elif (Path(name) / "config.json").is_file():
        config = configs.load(Path(name) / "config.json")
        flags = configs.to_flags(config, _base_of(config))
        print(f"{name}\nreplay: samovar train {config.recipe} {' '.join(flags)}".rstrip() + "\n")
        best = Path(name) / "checkpoints" / "best.json"
        if best.is_file():
            values = json.loads(best.read_text(encoding="utf-8"))
            print("best: " + ", ".join(f"{k} {v:g}" for k, v in values.items()) + "\n")
        _print_settings(config)
    else:
        words = [*recipes.RECIPES, *table.names()]
        raise ValueError(
            f"{name!r} is no recipe, model or run folder; {nearest(name, words)[:120]}"
        )


def _base_of(config: Config) -> Config:
    return (
        recipes.get(config.recipe).config()
        if config.recipe in recipes.RECIPES
        else Config(recipe=config.recipe)
    )


def _print_settings(config: Config) -> None:
    for name, value in configs.flatten(config).items():
        print(f"  --{name.replace('_', '-'):<28} {value}")
