"""Settings as JSON, by dotted names, and as flags that replay them."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from samovar.config.settings import Config

Section = TypeVar("Section")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a config, ready for JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return {k: plain(v) for k, v in dataclasses.asdict(config).items()}


def from_dict(values: dict[str, Any], cls: type[Section] = Config) -> Section:  # type: ignore[assignment]
    """Config of a dict as `to_dict` makes it; settings that are absent take their defaults.

    Raises:
        ValueError: a setting that does not exist here, or a value of another type."""
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(
            f"unknown setting {unknown[0]!r} in {cls.__name__}; known: {', '.join(hints)}"
        )
    return cls(**{name: _typed(value, hints[name], name) for name, value in values.items()})


def _typed(value: Any, hint: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(value, hint)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if origin is tuple and isinstance(value, list):
        args = typing.get_args(hint)
        items = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(items) == len(value):
            return tuple(_typed(v, h, name) for v, h in zip(value, items, strict=True))
    if origin is Literal and value in typing.get_args(hint):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) and type(value) is hint:
        return value
    allowed = (
        ", ".join(map(str, typing.get_args(hint)))
        if origin is Literal
        else getattr(hint, "__name__", str(hint))
    )
    raise ValueError(f"setting {name!r} is {value!r}; allowed: {allowed}")


def save(config: Config, path: Path) -> None:
    """Write a config as JSON."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")


def load(path: Path) -> Config:
    """Read a config written by `save`.

    Raises:
        ValueError: not JSON, or not a config of this version."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read a config from {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} holds no config: expected an object, found {type(values).__name__}"
        )
    return from_dict(values)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, `{"sam.rho": 0.05, ...}`."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Settings in which two configs differ, by dotted name."""
    flat_a, flat_b = flatten(a), flatten(b)
    return {name: (flat_a[name], flat_b[name]) for name in flat_a if flat_a[name] != flat_b[name]}


def to_flags(config: Config, base: Config) -> list[str]:
    """Command-line flags that turn `base` into `config`."""
    flags: list[str] = []
    for name, (value, _) in differences(config, base).items():
        if name == "recipe":
            continue
        if isinstance(value, bool):
            head, _, last = name.rpartition(".")
            flags.append("--" + dashed(name if value else f"{head}.no-{last}".lstrip(".")))
        elif isinstance(value, tuple):
            flags += ["--" + dashed(name), *map(str, value)]
        else:
            flags += ["--" + dashed(name), str(value)]
    return flags


def dashed(name: str) -> str:
    """A setting as its flag spells it."""
    return name.replace("_", "-")
