"""`samovar list`; a file `list.py` would hide Python's `list` from this package."""

from __future__ import annotations

from collections.abc import Sequence

from samovar import plugins, recipes
from samovar.cli.flags import read
from samovar.config import LOGGERS
from samovar.data import catalog
from samovar.models import table
from samovar.words import suggest

TABLES = ("recipes", "models", "sources", "loggers")

HELP = f"""\
usage: samovar list [{"|".join(TABLES)}]...

List the names that other commands take, each with a line about it. Without arguments: all tables.

  recipes  for train, tune, compare and show
  models   for --model.name, measure, export and show
  sources  for --data.source and --source
  loggers  for --run.loggers

Names that installed packages add are listed too.

examples:
  samovar list
  samovar list recipes | grep cifar10
"""


def parse(args: Sequence[str]) -> tuple[str, ...]:
    """Return the tables to print.

    Raises:
        ValueError: an unknown table or flag."""
    chosen = read(args, (), "list").words
    for name in chosen:
        if name not in TABLES:
            raise ValueError(f"cannot list {name!r}; {suggest(name, TABLES, count=1)}")
    return chosen or TABLES


def run(args: Sequence[str]) -> None:
    """Print tables of names."""
    chosen = parse(args)
    for name in chosen:
        rows = rows_of(name)
        width = max(map(len, rows))
        if len(chosen) > 1:
            print(f"{name}:")
        for key, text in rows.items():
            print(f"  {key:<{width}}  {text}")
        if name == "models":
            print("  any timm model name, or module:function returning an nn.Module, works as well")


def rows_of(name: str) -> dict[str, str]:
    """Return the names of a table with a line about each, ours before those of other packages."""
    if name == "recipes":
        return {key: recipe.summary for key, recipe in recipes.RECIPES.items()}
    if name == "models":
        return {key: table.line(key) for key in table.names()}
    if name == "sources":
        return catalog.listed()
    added = dict.fromkeys(plugins.names("loggers"), "added by an installed package")
    # a name of ours goes first: a package cannot change what it means
    return added | {key: f"needs pip install samovar[{key}]" for key in LOGGERS}
