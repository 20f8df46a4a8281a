"""Find the tests that train or start processes, by reading which functions they call.

`make quick` leaves them out. The marker is set on every test whose function, fixtures or helpers in tests/ name one of
`SLOW`, so a new test needs no mark of its own; `@pytest.mark.trains` marks what this cannot see."""

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType

import pytest

SLOW = tuple(f"samovar.{x}" for x in ("train.fit", "train.command", "train.trials", "train.transfer", "studies.demo"))
"""Modules whose functions train networks; a test that names one of these functions is taken to call it."""
PROCESSES = {"shell", "subprocess", "Shell", "ranks"}
"""Names in a test that mean another process, which takes seconds to import torch."""


def mark(items: list[pytest.Item]) -> None:
    """Add the marker `trains` to each test that trains."""
    known: dict[FunctionType, bool] = {}
    for item in items:
        if isinstance(item, pytest.Function) and any(_trains(function, known) for function in _functions(item)):
            item.add_marker("trains")


def _functions(item: pytest.Function) -> Iterator[FunctionType]:
    """Yield the test and the fixtures it asks for, as plain functions."""
    yield item.function
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        yield from (inspect.unwrap(x.func) for x in definitions if x.func.__module__.startswith("tests."))


def _trains(function: FunctionType, known: dict[FunctionType, bool]) -> bool:
    """Return whether a function of tests/ names a slow function, itself or through helpers."""
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        return False
    if function not in known:
        known[function] = False  # ends circles
        names = set(_names(function.__code__))
        known[function] = bool(PROCESSES & (names | set(function.__code__.co_varnames))) or any(
            _slow(value, known) for value in _values(names, function.__globals__)
        )
    return known[function]


def _names(code: CodeType) -> Iterator[str]:
    """Yield global names and attributes in a function and in the functions it defines."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _values(names: set[str], scope: dict) -> Iterator:
    """Yield what the names stand for, and the attributes of modules among them."""
    for name in names & scope.keys():
        yield scope[name]
        if isinstance(scope[name], ModuleType) and scope[name].__name__.startswith(("samovar.", "tests.")):
            yield from (vars(scope[name])[other] for other in names & vars(scope[name]).keys())


def _slow(value, known: dict[FunctionType, bool]) -> bool:
    if not isinstance(value, FunctionType):
        return False
    return value.__module__.startswith(SLOW) or (value.__module__.startswith("tests.") and _trains(value, known))
