"""JSON Schema of a run's `config.json`, derived from the dataclasses of settings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from samovar.config.encoded import to_dict
from samovar.config.settings import Config
from samovar.ranges import Range

_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}
_BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a run's `config.json`.

    Descriptions are the docstrings of the settings; a missing setting takes its default, an
    unknown one is an error. Rules that join several settings are not part of it; `validate` checks
    those."""
    parts: dict[str, Any] = {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "samovar: config.json of a run",
        **_section(Config, parts),
        "$defs": parts,
    }


def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring below each public field of a class, inherited fields first.

    A field without one has an empty string."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    # Python keeps no docstrings of fields, so they are read from the source
    docs: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, cls.__bases__):
        docs |= field_docs(base)
    for statement, after in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            is_doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = str(after.value.value) if is_doc else ""  # type: ignore[attr-defined]
            docs[statement.target.id] = inspect.cleandoc(text)
    return {name: text for name, text in docs.items() if name[0] != "_"}


def _section(cls: type, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a dataclass; those of dataclasses inside it are added to `parts`."""
    hints, docs = typing.get_type_hints(cls, include_extras=True), field_docs(cls)
    own = cls()
    properties = {}
    for name, hint in hints.items():
        default = getattr(own, name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            parts.setdefault(hint.__name__, _section(hint, parts))
            properties[name] = {"$ref": f"#/$defs/{hint.__name__}"}
            if default == hint():
                continue  # `head.optim` has defaults of its own, unlike `optim`
        else:
            properties[name] = _value(hint) | {"description": " ".join(docs[name].split())}
        properties[name]["default"] = to_dict(own)[name]
    return {
        "type": "object",
        "description": inspect.cleandoc(cls.__doc__ or ""),
        "properties": properties,
        "additionalProperties": False,
    }


def _value(hint: Any) -> dict[str, Any]:
    """Return the schema of a value that is no section."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        limits = {word: limit for part in args[1:] for word, limit in _bounds(part).items()}
        return _value(args[0]) | limits
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_value(arg) for arg in args]}
    if origin is tuple and args[-1] is Ellipsis:
        return {"type": "array", "items": _value(args[0])}
    if origin is tuple:
        # `items: false` forbids items beyond the prefix
        items = [_value(arg) for arg in args]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    return {"type": _PLAIN[hint]}


def _bounds(part: Any) -> dict[str, float]:
    if not isinstance(part, Range):
        return {}
    limits = {word: getattr(part, name) for name, word in _BOUNDS.items()}
    return {word: limit for word, limit in limits.items() if math.isfinite(limit)}
