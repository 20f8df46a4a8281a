"""The command line: `samovar VERB ...`. Help, `list` and `show` import no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from samovar.cli import listing, measuring, models, studies, training
from samovar.cli.flags import nearest, parse_flags
from samovar.cli.measuring import parse_measure
from samovar.cli.studies import parse_compare, parse_reproduce
from samovar.cli.texts import HELP, MEASURE_HELP
from samovar.cli.training import parse_train, take_rehearsal

__all__ = [
    "HELP",
    "MEASURE_HELP",
    "VERBS",
    "main",
    "parse_compare",
    "parse_flags",
    "parse_measure",
    "parse_reproduce",
    "parse_train",
    "take_rehearsal",
]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends in one line on stderr and exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(args)
    except (ValueError, TypeError) as error:
        if os.environ.get("SAMOVAR_TRACEBACK"):
            raise
        _say(str(error))
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of `samovar list | head` left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(args: list[str]) -> None:
    verb, rest = (args[0], args[1:]) if args else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
    elif verb == "--version":
        from importlib.metadata import version

        print(version("samovar"))
    elif verb in VERBS:
        VERBS[verb](rest)
    else:
        raise ValueError(f"unknown command {verb!r}; {nearest(verb, VERBS)}")


def _say(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    print(
        f"samovar: {message}" if rank == "0" else f"samovar [rank {rank}]: {message}",
        file=sys.stderr,
    )


VERBS: dict[str, Callable[[list[str]], None]] = {
    "demo": studies.demo,
    "train": training.train,
    "tune": training.tune,
    "measure": measuring.measure,
    "report": measuring.report,
    "compare": studies.compare,
    "reproduce": studies.reproduce,
    "corrupt": measuring.corrupt,
    "export": models.export,
    "predict": models.predict,
    "list": listing.list_names,
    "show": listing.show,
}
