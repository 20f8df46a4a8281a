"""Decide whether code that a file names may be imported.

A run's config may name a `module:function` that builds the network. Importing it runs code that
whoever sent the run has chosen, from the working folder or any other place on Python's path. So a
name from a file is imported only where the person has given it too: on the command line, or by
building the network in the same Python process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

VARIABLE = "SAMOVAR_TRUST_CODE"
"""Environment variable with the names that are trusted, separated by spaces; `all` trusts any.

It holds for worker processes as well, which inherit it."""
FLAG = "--trust-code"
_MODELS = ("--model", "--model.name")
"""Flags that name a network."""
_named: set[str] = set()
"""Names that the caller's own code has imported in this process."""


def remember(name: str) -> None:
    """Trust a name from now on, since the caller has given it."""
    _named.add(name)


def refuse(name: str, file: Path | str) -> None:
    """Refuse a network that a file names if it is code that nobody else has named.

    Args:
        name: the network.
        file: the file that names it.

    Raises:
        ValueError: says which code, and how to allow it."""
    if ":" not in name:
        return
    trusted = os.environ.get(VARIABLE, "").split()
    if name not in _named and name not in trusted and "all" not in trusted:
        raise ValueError(
            f"{file} names code, {name}, which is not imported because only the file names it; "
            f"if you trust it, add {FLAG}"
        )


@contextmanager
def by(args: Sequence[str]) -> Iterator[None]:
    """Trust what a command line names or allows, inside.

    Args:
        args: the command line, as it was given."""
    before = os.environ.get(VARIABLE)
    named = [after for flag, after in pairwise(args) if flag.replace("_", "-") in _MODELS]
    named += [value for flag, _, value in (arg.partition("=") for arg in args) if flag in _MODELS]
    allowed = ["all"] if FLAG in args else []
    os.environ[VARIABLE] = " ".join([*(before or "").split(), *named, *allowed])
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
