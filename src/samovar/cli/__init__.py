"""The command line: `samovar VERB ...`. Help, `list` and `show` import no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from samovar.cli import failures
from samovar.cli.verbs import HELP, HELP_FLAGS, VERBS, load, print_help
from samovar.models import trust
from samovar.runtime import lock, terminal
from samovar.runtime.heartbeat import beating
from samovar.runtime.signals import ended_by_second
from samovar.words import suggest

__all__ = ["HELP", "VERBS", "main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; whatever ends it otherwise than well is one line on stderr.

    Raises:
        SystemExit: 2 for bad input; 1 for a fault of the machine or of samovar, whose traceback is
            written to a file; 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    verb = VERBS.get(args[0]) if args else None
    lock.forget_last()
    with terminal.output(goes_on=bool(verb and not verb.only_prints)):
        try:
            _dispatch(args)
        except BrokenPipeError:
            # The reader of `samovar list | head` left. Python flushes stdout once more on exit,
            # which would fail again.
            terminal.to_nowhere(sys.stdout)
        except (Exception, KeyboardInterrupt) as error:
            if os.environ.get("SAMOVAR_TRACEBACK"):
                raise
            raise SystemExit(failures.tell(error, args)) from None


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
        with ended_by_second(), trust.by(rest), beating(f"samovar {verb}"):
            load(verb).run(rest)
