"""Read files of settings: JSON, YAML or TOML, by suffix; find the line of a setting in them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samovar.words import read_regular

MOST_BYTES = 2**24
"""Largest file of settings."""
_YAML = (".yaml", ".yml")
_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")
"""A number of YAML 1.2. YAML 1.1, which PyYAML reads, takes 1e-3 for text."""


def by_hand(path: Path) -> bool:
    """Return whether a file is one that people write, not one of a run."""
    return path.suffix.lower() in (*_YAML, ".toml")


def read_values(path: Path) -> Any:
    """Return what a file holds, as plain values; a suffix other than .yaml, .yml and .toml is JSON.

    Raises:
        ValueError: not readable, or not of that format; names file and line."""
    try:
        text = read_regular(path, MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read a config from {path}: {error}") from error
    if path.suffix.lower() in _YAML:
        return _read_yaml(path, text)
    try:
        return tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except RecursionError:
        raise ValueError(f"cannot read a config from {path}: it is nested too deeply") from None
    except ValueError as error:  # also a number of thousands of digits
        raise ValueError(f"cannot read a config from {path}: {error}") from error


def line_of(path: Path, setting: Sequence[str]) -> int:
    """Return the line, counted from 1, on which a file gives a setting; 0 where none is found.

    Args:
        path: a file that `read_values` reads.
        setting: its sections and its name, such as `["sam", "rho"]`."""
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".toml":
        return _line_of_toml(text, setting)
    import yaml

    try:  # JSON is YAML too, except that tabs may indent it
        node = yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return 0
    line = 0
    for name in setting:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [(key, value) for key, value in pairs if key.value == name]
        if not found:
            break
        key, node = found[-1]
        line = key.start_mark.line + 1
    return line


def _read_yaml(path: Path, text: str) -> Any:
    # takes a while to import, and most commands read JSON alone
    import yaml

    # PyYAML's safe loader with the numbers of YAML 1.2
    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(rf"(?!\d+$)({_FLOAT.pattern})$"),
        list("-+.0123456789"),
    )
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _refuse_repeated(path, node)
        return yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"cannot read a config from {path}{where}: {error.problem}") from error
    except RecursionError:
        raise ValueError(f"cannot read a config from {path}: it is nested too deeply") from None
    except yaml.YAMLError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"cannot read a config from {path}: {reason}") from error


def _refuse_repeated(path: Path, node: Any) -> None:
    """Refuse a setting that stands twice, of which YAML would take the last."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value in seen:
            raise ValueError(
                f"{path}, line {line}: setting {key.value!r} stands on line {seen[key.value]} "
                "already; leave one of them out"
            )
        seen[str(key.value)] = line
        _refuse_repeated(path, value)


def _line_of_toml(text: str, setting: Sequence[str]) -> int:
    wanted, best = list(setting), 0
    section: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            section = _toml_names(header[1])
            if section == wanted[: len(section)] and not best:
                best = number
        elif assigned := re.match(r"\s*([\w.\"'\s-]+?)\s*=", line):
            full = section + _toml_names(assigned[1])
            # an inline table gives the whole section on one line
            if full == wanted[: len(full)]:
                return number
    return best


def _toml_names(text: str) -> list[str]:
    return [name.strip().strip("\"'") for name in text.split(".")]
