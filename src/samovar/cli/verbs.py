"""The verbs by name, and the one rule for help.

Each verb has a module of its own, imported when the verb is used. The module has `HELP`, the help
text; `parse(args)`, which reads and checks a command line without importing torch; and `run(args)`,
which does the work. A module that also has `explained(args)` has flags of settings: it returns the
settings that `samovar VERB ARGUMENTS --help` lists below the help text."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from samovar.cli import settings_help
from samovar.cli.flags import is_flag, lines
from samovar.cli.settings import print_flags
from samovar.config import Config

HELP_ALL = "--help-all"
HELP_FLAGS = {"-h", "--help", HELP_ALL}


class Verb(NamedTuple):
    """A command of the command line."""

    module: str
    """File in `samovar.cli`."""
    arguments: str
    """Arguments in short, for the overall help."""
    help: str
    """One line for the overall help."""
    only_prints: bool = False
    """Whether what it prints is all it makes, so that it ends when its reader leaves."""


VERBS: dict[str, Verb] = {
    "demo": Verb("demo", "", "train a small ViT with and without SAM on embedded images"),
    "train": Verb("train", "RECIPE", "train a network by a recipe, or continue a run"),
    "tune": Verb("tune", "RECIPE --rho A,B,C", "find the best rho, lr or decay by short runs"),
    "measure": Verb(
        "measure",
        "RUN|MODEL [NAME...]",
        "measure curvature, flatness, landscapes, robustness and more, with error bars",
    ),
    "report": Verb(
        "report", "RUN...", "write one HTML page that works offline, or figures for a paper"
    ),
    "compare": Verb(
        "compare", "RECIPE", "compare SAM with its relatives: cost, gain, Pareto figure"
    ),
    "reproduce": Verb(
        "reproduce", "WHAT --scale S", "reproduce a table or figure of the paper, with verdicts"
    ),
    "corrupt": Verb("corrupt", "DATA OUT", "write corrupted copies of a folder of images"),
    "export": Verb(
        "export", "RUN --format F", "write a checked copy for timm, ONNX or plain torch"
    ),
    "predict": Verb(
        "predict", "RUN IMAGE...", "predict the classes of image files", only_prints=True
    ),
    "list": Verb(
        "listing",
        "WHAT...",
        "list recipes, models, sources of images, loggers, or your runs",
        only_prints=True,
    ),
    "show": Verb(
        "show",
        "RECIPE|RUN|MODEL",
        "show settings of a recipe or run, facts of a model",
        only_prints=True,
    ),
    "completion": Verb(
        "completion",
        "bash|zsh|fish",
        "print a script that completes commands in a shell",
        only_prints=True,
    ),
}
"""The verbs in the order in which the overall help lists them."""

HELP = f"""\
samovar trains ViT, MLP-Mixer and ResNet from scratch into flat minima.

usage: samovar VERB ...

{lines({f"{name} {verb.arguments}".rstrip(): verb.help for name, verb in VERBS.items()})}

`samovar VERB --help` or `samovar help VERB` explains a verb; -V prints the version.

examples:
  samovar demo
  samovar train vit-cifar10-sam --seed 1
  samovar train photos --data.source folder:my/photos
  samovar measure runs/NAME hessian flatness
  samovar report runs/* -o report.html
  torchrun --nproc-per-node 8 -m samovar train vit-b16-imagenet-sam
"""


def load(name: str) -> ModuleType:
    """Import and return the module of a verb."""
    return import_module(f"samovar.cli.{VERBS[name].module}")


def print_help(name: str, args: Sequence[str]) -> None:
    """Print the help of a verb; behind further arguments, flags of its settings as well.

    Those of a run are so many that `--help` lists the first and `--help-all` the others too."""
    module = load(name)
    print(module.HELP, end="")
    # `--help` may stand anywhere, even where a value should be
    words = [arg for arg in args if arg not in HELP_FLAGS]
    if not words or not hasattr(module, "explained"):
        return
    try:
        settings = module.explained(words)
    except ValueError:  # wrong arguments are a reason to ask for help, not to refuse it
        return
    command = " ".join([name, *(words[:2] if is_flag(words[0]) else words[:1])])
    if isinstance(settings, Config) and HELP_ALL not in args:
        print(f"\nFlags to begin with, and their values in `samovar {command}`:\n")
        print(settings_help.first_flags(settings))
        print(f"\n`samovar {command} {HELP_ALL}` lists all flags.")
        return
    print(f"\nAll flags, with their values in `samovar {command}`:\n")
    if isinstance(settings, Config):
        print(settings_help.all_flags(settings))
    else:
        print_flags(settings, command)
