"""Ranges of numbers, written beside the fields they limit.

    rho: Annotated[float, Range("a radius, 0 for plain training", ge=0)] = 0.0

Checks, the JSON Schema and messages all read the range from the annotation."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Bounds of a number; infinities and NaN are always outside."""

    give: str
    """The allowed values in words, such as `a share from 0 to 1`."""
    ge: float = -math.inf
    """Lowest allowed value."""
    gt: float = -math.inf
    """Largest number that is still too low."""
    le: float = math.inf
    """Highest allowed value."""
    lt: float = math.inf
    """Smallest number that is already too high."""

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.gt < value < self.lt and self.ge <= value <= self.le


def out_of_range(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield the dotted name, the value and the allowed values of each number out of its range.

    Args:
        settings: a dataclass instance; dataclasses inside it are visited too.
        prefix: what the names begin with."""
    cls: type = type(settings)
    limits = ranges_of(cls)
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from out_of_range(value, f"{name}.")
        elif limit := limits.get(field.name):
            if isinstance(value, str):  # a word in place of a number
                continue
            numbers = value if isinstance(value, tuple) else (value,)
            yield from ((name, number, limit.give) for number in numbers if number not in limit)


@functools.cache
def ranges_of(cls: type) -> dict[str, Range]:
    """Return the range of each field of a dataclass that has one, by name.

    The range of a tuple limits each of its items."""
    # cached, because resolving annotations is slow and every check asks for them
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {name: _range_in(hint) for name, hint in hints.items()}
    return {name: limit for name, limit in found.items() if limit}


def _range_in(hint: Any) -> Range | None:
    if isinstance(hint, Range):
        return hint
    return next(filter(None, map(_range_in, typing.get_args(hint))), None)
