"""Ranges of settings: each number has one beside its field, and a value outside is refused by name."""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

from samovar import config as configs
from samovar.config import Config, CorruptConfig, MeasureConfig
from samovar.ranges import Range, ranges_of

CHECKS: dict[type, Callable[[Any], None]] = {
    Config: configs.validate,
    MeasureConfig: configs.validate_measure,
    CorruptConfig: configs.validate_corrupt,
}

ANY_NUMBER = {
    "seed": "any integer, taken modulo 2^64",
    "split_seed": "any integer, taken modulo 2^64",
    "head_bias": "an initial weight",
    "mean": "subtracted from pixels, whatever their scale",
}
"""Numbers without a range, and why."""


def numbers(hint: Any) -> bool:
    """Whether a hint is of numbers, of tuples of them, or of words in place of numbers."""
    if get_origin(hint) in (Union, UnionType):
        return any(map(numbers, get_args(hint)))
    if get_origin(hint) in (Annotated, tuple):
        return numbers(get_args(hint)[0])
    return hint in (int, float)


def numeric(cls: type, prefix: str = "") -> dict[str, tuple[type, str]]:
    """Dotted name of each numeric setting, with the dataclass and the name of its field."""
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if is_dataclass(hint):
            found |= numeric(hint, f"{prefix}{name}.")
        elif numbers(hint):
            found[prefix + name] = (cls, name)
    return found


def having(config: Any, name: str, value: Any) -> Any:
    """The config with one setting changed; all items of a tuple, if it is one."""
    head, _, rest = name.partition(".")
    if rest:
        return replace(config, **{head: having(getattr(config, head), rest, value)})
    now = getattr(config, head)
    return replace(config, **{head: (value,) * max(1, len(now)) if isinstance(now, tuple) else value})


def sides(limit: Range, whole: bool) -> list[tuple[float, bool]]:
    """Numbers on each finite bound and next to it outside, and whether they are allowed."""
    found: list[tuple[float, bool]] = [(math.inf, False), (-math.inf, False), (math.nan, False)]
    for bound, outside, open_bound in (
        (limit.ge, -1, False),
        (limit.gt, -1, True),
        (limit.le, 1, False),
        (limit.lt, 1, True),
    ):
        if math.isfinite(bound):
            beyond = bound + outside if whole else math.nextafter(bound, outside * math.inf)
            found += [(bound, not open_bound), (beyond, False)]
    return found


RANGED = [
    (kind, name, *place) for kind in CHECKS for name, place in numeric(kind).items() if place[1] not in ANY_NUMBER
]


@pytest.mark.parametrize("kind", CHECKS)
def test_every_number_has_a_range_or_a_reason_to_have_none(kind):
    bare = {field for cls, field in numeric(kind).values() if field not in ranges_of(cls)}
    assert bare <= set(ANY_NUMBER)


def test_only_settings_that_exist_are_excepted():
    known = {field for kind in CHECKS for _, field in numeric(kind).values()}
    assert set(ANY_NUMBER) <= known


@pytest.mark.parametrize(("kind", "name", "cls", "field"), RANGED, ids=[f"{k.__name__}-{n}" for k, n, *_ in RANGED])
def test_a_value_on_a_bound_is_taken_as_declared_and_one_beyond_is_refused(kind, name, cls, field):
    hint = get_type_hints(cls)[field]
    limit, whole = ranges_of(cls)[field], int in (hint, *get_args(hint))
    flag = "--" + name.replace("_", "-")
    for value, allowed in sides(limit, whole):
        said = complaint(kind, having(kind(), name, value))
        if allowed:  # another rule may need a second setting beside it
            assert "out of range" not in said
        else:
            assert said == f"{flag} {value} is out of range; give {limit.give}"
            assert "\n" not in said


def complaint(kind: type, config: Any) -> str:
    try:
        CHECKS[kind](config)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_in_no_range(value):
    assert value not in Range("anything")


def test_a_range_is_open_or_closed_as_declared():
    share = Range("a share above 0, up to 1", gt=0, le=1)
    assert [x in share for x in (0, 1e-300, 1, 1.0000001)] == [False, True, True, False]
    assert [x in Range("a decay", ge=0, lt=1) for x in (-1e-9, 0, 0.999, 1)] == [False, True, True, False]


def test_fields_of_no_number_have_no_range():
    for kind in CHECKS:
        names = {item.name for item in fields(kind)}
        assert set(ranges_of(kind)) <= {field for cls, field in numeric(kind).values() if cls is kind} <= names
