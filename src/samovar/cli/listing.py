"""`samovar list`; a file `list.py` would hide Python's `list` from this package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from samovar import plugins, recipes
from samovar.cli import list_recipes, list_runs
from samovar.cli.flags import SWITCH, Flag, Kind, flag_lines, one_of, read
from samovar.config import LOGGERS, Config
from samovar.data import catalog
from samovar.models import table
from samovar.words import suggest

TABLES = ("recipes", "models", "sources", "loggers")
FLAGS = (
    Flag("--all", SWITCH, "a line a recipe, in place of a line a family"),
    Flag("--filter", Kind("TEXT", "a text"), "only lines, or names of runs, that have it", ""),
    Flag("--sort", one_of("KEY", list_runs.SORTS),
         f"order of runs: {', '.join(list_runs.SORTS)}", "when"),
)  # fmt: skip

HOW = f"""\
usage: samovar list {"|".join(TABLES)}...
       samovar list runs [FOLDER]

List the names that other commands take, each with a line about it, or the runs of a folder.

  recipes  for train, tune, compare and show
  models   for --model.name, measure, export and show
  sources  for --data.source and --source
  loggers  for --run.loggers
  runs     what was trained and measured in FOLDER (default: {Config().output})
"""
HELP = f"""\
{HOW}
{flag_lines(FLAGS)}

Names that installed packages add are listed too.

examples:
  samovar list recipes
  samovar list recipes --filter cifar10
  samovar list runs --sort accuracy --filter vit
"""


class ListCommand(NamedTuple):
    """A `samovar list` command line, read and checked."""

    tables: tuple[str, ...]
    """Tables to print; none asks how to list."""
    folder: Path | None
    """Folder of runs; None lists none."""
    sort: str
    text: str
    """Only lines that have it."""
    whole: bool
    """A line for each recipe."""


def parse(args: Sequence[str]) -> ListCommand:
    """Return what a command line asks for.

    Raises:
        ValueError: an unknown table or flag, several folders of runs."""
    line = read(args, FLAGS, "list")
    first, *rest = line.words or ("",)
    folder = None
    if first == "runs":
        if len(rest) > 1:
            raise ValueError(f"list runs takes one folder, not {' and '.join(rest)}")
        folder = Path(*rest) if rest else Config().output
    for name in () if folder else line.words:
        if name not in TABLES:
            known = TABLES if len(line.words) > 1 else (*TABLES, "runs")
            raise ValueError(f"cannot list {name!r}; {suggest(name, known, count=1)}")
    tables = () if folder else line.words
    return ListCommand(tables, folder, line["--sort"], line["--filter"], line["--all"])


def run(args: Sequence[str]) -> None:
    """Print tables of names, the runs of a folder, or how to list."""
    command = parse(args)
    if command.folder:
        print("\n".join(list_runs.lines(command.folder, command.sort, command.text)))
    elif not command.tables:
        print(HOW, end="")
    for name in command.tables:
        if len(command.tables) > 1:
            print(f"{name}:")
        print("\n".join(_table(name, command.text, command.whole)))


def _table(name: str, text: str, whole: bool) -> Iterable[str]:
    if name == "recipes" and not text and not whole:
        return list_recipes.lines()
    rows = rows_of(name)
    width = max(map(len, rows))
    found = [f"  {key:<{width}}  {line}" for key, line in rows.items()]
    found = [line for line in found if text.lower() in line.lower()]
    if name == "models":
        found.append(
            "  any timm model name, or module:function returning an nn.Module, works as well"
        )
    return found or [f"  nothing with {text!r} among the {name}"]


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
