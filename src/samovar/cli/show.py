"""`samovar show`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from samovar import config as configs
from samovar import recipes
from samovar.cli.flags import SWITCH, Flag, flag_lines, read
from samovar.config import Config
from samovar.models import table
from samovar.runs.json_files import read_object
from samovar.words import suggest

FLAGS = (Flag("--schema", SWITCH, "print the JSON schema of a run's config.json"),)

HELP = f"""\
usage: samovar show RECIPE|RUN|MODEL
       samovar show --schema

Show the settings of a recipe or a run, or the facts of a model. A run comes with the command that
trains it again.

{flag_lines(FLAGS)}

examples:
  samovar show vit-cifar10-sam
  samovar show runs/NAME
  samovar show vit-b16
"""


def parse(args: Sequence[str]) -> str | None:
    """Return the name of a recipe, run or model; None asks for the schema.

    Raises:
        ValueError: not one name, an unknown flag."""
    line = read(args, FLAGS, "show")
    if line["--schema"] and line.words:
        raise ValueError(f"--schema is the same for all runs; leave {line.words[0]} out")
    if line["--schema"]:
        return None
    if len(line.words) != 1:
        given = f", not {' '.join(line.words)}" if line.words else ""
        raise ValueError(f"show needs one recipe, run or model{given}; see `samovar show --help`")
    return line.words[0]


def run(args: Sequence[str]) -> None:
    """Print the settings of a recipe or run, the facts of a model, or the schema of settings."""
    name = parse(args)
    if name is None:
        from samovar.config import schema

        print(json.dumps(schema(), indent=2))
    elif name in recipes.RECIPES:
        recipe = recipes.get(name)
        print(f"{name}: {recipe.summary}\nexpect: {recipe.expect}\n")
        _print_settings(recipe.config())
    elif name in (models := table.names()):
        print(f"{name}: {table.summary(name)}")
    elif (Path(name) / "config.json").is_file():
        _show_run(Path(name))
    else:
        hint = suggest(name, [*recipes.RECIPES, *models], count=1, instead="see `samovar list`")
        raise ValueError(f"{name!r} is no recipe, model or run folder; {hint}")


def _show_run(folder: Path) -> None:
    config = configs.load(folder / "config.json")
    # a run of Python code, or of a recipe that is gone, replays from the defaults
    known = config.recipe in recipes.RECIPES
    base = recipes.get(config.recipe).config() if known else Config(recipe=config.recipe)
    flags = " ".join(configs.to_flags(config, base))
    print(f"{folder}\nreplay: samovar train {config.recipe} {flags}".rstrip() + "\n")
    best = folder / "checkpoints" / "best.json"
    if best.is_file():
        values = read_object(best)
        print("best: " + ", ".join(f"{k} {v:g}" for k, v in values.items()) + "\n")
    _print_settings(config)


def _print_settings(config: Config) -> None:
    for name, value in configs.flatten(config).items():
        print(f"  --{name.replace('_', '-'):<28} {value}")
