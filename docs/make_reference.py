"""Write docs/reference.md from docstrings, help texts and defaults.

Usage: `python docs/make_reference.py [FILE]`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import samovar
from samovar import cli, config
from samovar.cli.verbs import load
from samovar.config.schema import field_docs
from samovar.measure.catalog import CATALOG

PAGE = Path(__file__).parent / "reference.md"
INTRO = """\
# Reference

This page lists every public name, command, setting, measurement and record field with its
docstring. `make reference` writes it from the code; do not edit it. [index.md](index.md) lists the
pages that explain.

"""


def reference() -> str:
    """Return the whole page."""
    return INTRO + "\n".join(line for chapter in CHAPTERS for line in chapter()).rstrip() + "\n"


def python_names() -> Iterator[str]:
    """Yield the public names of the package, each result type after its first function."""
    yield "## Python\n\n`from samovar import NAME`; a name is imported when it is first used.\n"
    seen: set[type] = set()
    for name in sorted(samovar.__all__, key=str.lower):
        item = getattr(samovar, name)
        yield f"### `{name}`\n\nIn `{item.__module__}`.\n"
        yield from documented(name, item)
        result = result_of(item)
        if result and result not in seen and result.__name__ not in samovar.__all__:
            seen.add(result)
            yield f"#### `{result.__name__}`\n\nWhat `{name}` returns, of `{result.__module__}`.\n"
            yield from documented(result.__name__, result)


def documented(name: str, item: Any) -> Iterator[str]:
    """Yield the signature and docstring of a name; for a class, its methods and fields too."""
    yield f"```text\n{signature(name, item)}\n\n{inspect.getdoc(item) or ''}"
    if inspect.isclass(item):
        for method, value in vars(item).items():
            function = (
                value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            )
            if method[0] != "_" and inspect.isfunction(function) and function.__doc__:
                head = method if isinstance(value, property) else signature(method, function)
                yield f"\n.{head}\n{textwrap.indent(inspect.getdoc(function) or '', '    ')}"
    yield "```\n"
    if item not in sections() and (dataclasses.is_dataclass(item) or hasattr(item, "_fields")):
        yield from (bullet(f"`{field}`: {text}") for field, text in field_docs(item).items())
        yield ""


def signature(name: str, item: Any) -> str:
    """Return `name(arguments) -> result` as the source writes it.

    Versions of Python print annotations differently; the page must not depend on them."""
    if inspect.isclass(item):
        own = None if dataclasses.is_dataclass(item) else vars(item).get("__init__")
        return signature(name, own).partition(" -> ")[0] if own else name
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(item)))
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    header = (
        "\n".join(source.splitlines()[node.lineno - 1 : node.body[0].lineno - 1])
        .strip()
        .removesuffix(":")
    )
    header = re.sub(r"\(\s*(self|cls)(,\s*(?=\S))?", "(\n    " if "\n" in header else "(", header)
    return header.replace(f"def {node.name}", name, 1)


def result_of(item: Any) -> type | None:
    """Return the dataclass that a function returns, or None."""
    function = inspect.unwrap(item)
    name = getattr(function, "__annotations__", {}).get("return")
    result = function.__globals__.get(name) if isinstance(name, str) else name
    return result if inspect.isclass(result) and dataclasses.is_dataclass(result) else None


def commands() -> Iterator[str]:
    """Yield what `samovar VERB --help` prints for each verb."""
    yield f"## Commands\n\n```text\n{cli.HELP}```\n"
    for verb in cli.VERBS:
        yield f"### `samovar {verb}`\n\n```text\n{load(verb).HELP}```\n"


def sections() -> dict[type, str]:
    """Return the dataclasses of settings, with the prefix of their flags."""
    hints = typing.get_type_hints(config.Config)
    tree: dict[type, str] = {
        hint: f"{name}." for name, hint in hints.items() if dataclasses.is_dataclass(hint)
    }
    others = [
        x for x in vars(config).values() if inspect.isclass(x) and dataclasses.is_dataclass(x)
    ]
    return {config.Config: ""} | dict.fromkeys((x for x in others if x not in tree), "") | tree


def settings() -> Iterator[str]:
    """Yield every flag with its default and docstring, section by section."""
    yield (
        "## Settings\n\nDefaults are in brackets. A recipe may have others; `samovar show RECIPE` "
        "prints them.\n"
    )
    for section, prefix in sections().items():
        hints, docs, defaults = typing.get_type_hints(section), field_docs(section), section()
        yield f"### `{section.__name__}`\n\n{inspect.getdoc(section)}\n"
        for name, text in docs.items():
            value = getattr(defaults, name)
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            if name != "recipe" and not dataclasses.is_dataclass(hints[name]):
                flag = f"--{prefix}{name}".replace("_", "-")
                yield bullet(f"`{flag}`{f' (`{shown}`)' if shown else ''}: {text}")
        yield ""


def bullet(text: str) -> str:
    """Return text as an item of a list, wrapped to 120 columns."""
    text = " ".join(text.split())
    return textwrap.fill(
        text,
        120,
        initial_indent="* ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def cell(text: str) -> str:
    """Return text fit for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def measurements() -> Iterator[str]:
    """Yield the names that `samovar measure` takes."""
    yield "## Measurements\n\n| name | split | what |\n|---|---|---|"
    for each in CATALOG.values():
        yield f"| `{each.name}` | {each.split} | {cell(each.help)} |"


CHAPTERS = (python_names, commands, settings, measurements)

if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE).write_text(reference(), encoding="utf-8")
