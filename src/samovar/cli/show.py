"""`samovar show`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from samovar import config as configs
from samovar import recipes
from samovar.cli import show_run
from samovar.cli.flags import SWITCH, Flag, flag_lines, read
from samovar.cli.named_run import is_hidden, run_path
from samovar.config import Config
from samovar.models import table
from samovar.models.timm_names import defined_by_timm, timm_names
from samovar.words import suggest

FLAGS = (
    Flag("--all", SWITCH, "all settings of a run, not only those that differ from its recipe"),
    Flag("--schema", SWITCH, "print the JSON schema of a run's config.json"),
)

HELP = f"""\
usage: samovar show RECIPE|RUN|MODEL
       samovar show --schema

Show the settings of a recipe, how a run went, or the facts of a model. A run, which may be named
without runs/, comes with the command that trains it again. A model is a name of `samovar list
models` or of timm.

{flag_lines(FLAGS)}

examples:
  samovar show vit-cifar10-sam
  samovar show runs/NAME
  samovar show vit-b16
"""


class ShowCommand(NamedTuple):
    """A `samovar show` command line, read and checked."""

    name: str | None
    """A recipe, run or model; None asks for the schema."""
    whole: bool
    """All settings of a run."""


def parse(args: Sequence[str]) -> ShowCommand:
    """Return what a command line asks for.

    Raises:
        ValueError: not one name, an unknown flag."""
    line = read(args, FLAGS, "show")
    if line["--schema"] and line.words:
        raise ValueError(f"--schema is the same for all runs; leave {line.words[0]} out")
    if line["--schema"]:
        return ShowCommand(None, False)
    if len(line.words) != 1:
        given = f", not {' '.join(line.words)}" if line.words else ""
        raise ValueError(f"show needs one recipe, run or model{given}; see `samovar show --help`")
    return ShowCommand(line.words[0], line["--all"])


def run(args: Sequence[str]) -> None:
    """Print a recipe's settings, how a run went, a model's facts, or the schema of settings."""
    name, whole = parse(args)
    if name is None:
        from samovar.config import schema

        print(json.dumps(schema(), indent=2))
        return
    if is_hidden(name):
        print(f"(a run has this name too: samovar show {Config().output / name})\n")
    if name in recipes.RECIPES:
        recipe = recipes.get(name)
        print(f"{name}: {recipe.summary}\nexpect: {recipe.expect}\n")
        print("\n".join(show_run.setting_lines(configs.flatten(recipe.config()))))
    elif name in table.names():
        print(f"{name}: {table.summary(name)}")
    elif (folder := Path(run_path(name)) / "config.json").is_file():
        print("\n".join(show_run.lines(folder.parent, whole=whole)))
    elif defined_by_timm(name):
        from samovar.models.timm_facts import facts  # imports torch

        print("\n".join(facts(name)))
    else:
        raise _unknown(name)


def _unknown(name: str) -> ValueError:
    output = Config().output
    runs = [path.parent.name for path in output.glob("*/config.json")]
    known = [*recipes.RECIPES, *table.names(), *runs, *timm_names()]
    hint = suggest(name, known, count=1, cutoff=0.6, instead="see `samovar list`")
    return ValueError(f"{name!r} is no recipe, model or run folder; {hint}")
