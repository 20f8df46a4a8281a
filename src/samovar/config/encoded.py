"""Settings as plain values, in files, by dotted name, and as flags that replay them."""

from __future__ import annotations

import dataclasses
import json
import reprlib
import types
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, TypeVar

from samovar.config import files
from samovar.config.sections import SCHEDULE_STEPS
from samovar.config.settings import Config

Section = TypeVar("Section")


_SHORT = reprlib.Repr()
"""Shows a wrong value, however large it is."""
_SHORT.maxstring = _SHORT.maxother = 200
_UNIONS = (types.UnionType, typing.Union)


class WrongSetting(ValueError):
    """A setting that is unknown or has a value of the wrong type."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.where = [name]
        """Its sections and its name, as far as they are known."""


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as a nested dict of plain values, ready for JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return {k: plain(v) for k, v in dataclasses.asdict(config).items()}


def from_dict(values: dict[str, Any], cls: type[Section] = Config) -> Section:  # type: ignore[assignment]
    """Make a config from a dict of `to_dict`; missing settings take their defaults.

    Raises:
        ValueError: an unknown setting, or a value of the wrong type."""
    # without include_extras, so that ranges do not stand in the way of the types
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise WrongSetting(
            f"unknown setting {unknown[0]!r} in {cls.__name__}; known: {', '.join(hints)}",
            unknown[0],
        )
    return cls(**{name: _typed(value, hints[name], name) for name, value in values.items()})


def _typed(value: Any, hint: Any, name: str) -> Any:
    """Return a JSON value as the type of its setting."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
        try:
            return from_dict(value, hint)
        except WrongSetting as error:
            error.where.insert(0, name)
            raise
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        items = _item_hints(hint, len(value))
        if len(items) == len(value):
            return tuple(_typed(v, h, name) for v, h in zip(value, items, strict=True))
    elif _fits(value, hint):
        # JSON has no paths, and no difference between 1.0 and 1
        return hint(value) if hint in (Path, float) else value
    elif typing.get_origin(hint) in _UNIONS:
        for each in typing.get_args(hint):
            if _fits(value, each):
                return _typed(value, each, name)
    raise WrongSetting(f"setting {name!r} is {_SHORT.repr(value)}; allowed: {_allowed(hint)}", name)


def _item_hints(hint: Any, count: int) -> list[Any]:
    first, *rest = typing.get_args(hint)
    return [first] * count if rest == [Ellipsis] else [first, *rest]


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value can be one of a setting that is neither section nor tuple."""
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if hint is Path:
        return isinstance(value, str)
    if hint is float:
        return type(value) in (int, float)
    if type(value) is int and not -(2**63) <= value < 2**63:
        return False
    # type, not isinstance: True is no number of steps
    is_plain = isinstance(hint, type) and not isinstance(hint, types.GenericAlias)
    return is_plain and type(value) is hint


def _allowed(hint: Any) -> str:
    if typing.get_origin(hint) in _UNIONS:
        return " or ".join(map(_allowed, typing.get_args(hint)))
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint))


def save(config: Config, path: Path) -> None:
    """Write a config as JSON."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")


def load(path: Path, base: Callable[[str], Config] | None = None) -> Config:
    """Read a config written by `save`, or by hand in JSON, YAML or TOML.

    Args:
        path: the file.
        base: called with the recipe that a YAML or TOML file names; returns the settings that the
            file leaves out. Without it, and in JSON, these take their defaults.

    Raises:
        ValueError: not such a file, or not a config of this version; names file and line."""
    values = files.read_values(path)
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} holds no config: expected an object, found {type(values).__name__}"
        )
    try:
        if base and files.by_hand(path) and isinstance(recipe := values.get("recipe"), str):
            return from_dict(_over(to_dict(base(recipe)), values))
        return from_dict(values)
    except WrongSetting as error:
        line = files.line_of(path, error.where)
        where = f"{path}, line {line}" if line else str(path)
        raise ValueError(f"{where}: {error}") from error


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return nested values in which those of `above` replace those of `below`."""
    both = {
        name: _over(below[name], value)
        for name, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(name), dict)
    }
    return below | above | both


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the settings by dotted name, such as `{"sam.rho": 0.05, ...}`."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two configs differ, both values by dotted name."""
    flat_a, flat_b = flatten(a), flatten(b)
    return {name: (flat_a[name], flat_b[name]) for name in flat_a if flat_a[name] != flat_b[name]}


def to_flags(config: Config, base: Config, always: Collection[str] = ()) -> list[str]:
    """Return the command-line flags that turn `base` into `config`.

    Args:
        always: dotted names of settings that are given even where both have the same value."""
    flags: list[str] = []
    whole, differ = flatten(config), differences(config, base)
    named = {name for name in whole if name in differ or name in always}
    for prefix in ("", "head."):
        length = {f"{prefix}epochs", f"{prefix}steps"}
        if length & named:
            # epochs alone would replace the steps of the recipe, and a shorter run has a shorter
            # warm-up unless it is given
            kept = [f"{prefix}steps", *(f"{prefix}optim.{name}" for name in SCHEDULE_STEPS)]
            named |= {name for name in kept if whole[name]}
    # a rate alone would replace the grid of the recipe
    if "optim.lr" in named and config.grid.lr:
        named.add("grid.lr")
    for name, value in whole.items():
        if name not in named:
            continue
        # follows from the command and has no flag
        if name == "recipe":
            continue
        # a switch is off as `--data.no-flip`, the way tyro spells it
        if isinstance(value, bool):
            head, _, last = name.rpartition(".")
            flags.append("--" + dashed(name if value else f"{head}.no-{last}".lstrip(".")))
        elif isinstance(value, tuple):
            flags += ["--" + dashed(name), *map(str, value)]
        else:
            flags += ["--" + dashed(name), str(value)]
    return flags


def dashed(name: str) -> str:
    """Return a setting's name as its flag spells it."""
    return name.replace("_", "-")
