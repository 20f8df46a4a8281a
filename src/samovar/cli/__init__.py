"""The command line: `samovar VERB ...`. Help, `list` and `show` import no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from samovar.cli.verbs import HELP, HELP_FLAGS, VERBS, load, print_help
from samovar.runtime.heartbeat import beating
from samovar.words import suggest

__all__ = ["HELP", "VERBS", "main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends in one line on stderr and exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(args)
    except (ValueError, TypeError) as error:
        if os.environ.get("SAMOVAR_TRACEBACK"):
            raise
        rank = os.environ.get("RANK", "0")
        speaker = "samovar" if rank == "0" else f"samovar [rank {rank}]"
        print(f"{speaker}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        # work that can be continued says so itself and ends by SystemExit
        if os.environ.get("SAMOVAR_TRACEBACK"):
            raise
        print("samovar: interrupted before anything was begun", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of `samovar list | head` left. Python flushes stdout once more on exit, which
        # would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(args: list[str]) -> None:
    verb, *rest = args or ["--help"]
    if verb == "help" and rest:
        verb, rest = rest[0], ["--help"]
    if verb in {"help", *HELP_FLAGS}:
        print(HELP, end="")
    elif verb in ("--version", "-V"):
        from importlib.metadata import version

        print(version("samovar"))
    elif verb not in VERBS:
        raise ValueError(f"unknown command {verb!r}; {suggest(verb, VERBS, count=1)}")
    elif HELP_FLAGS & set(rest):
        print_help(verb, rest)
    else:
        with beating(f"samovar {verb}"):
            load(verb).run(rest)
