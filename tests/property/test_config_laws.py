"""Laws of the config: JSON and flags both bring back what was there."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import given, settings
from hypothesis import strategies as st

from samovar import config as configs
from samovar.cli.settings import parse_settings
from samovar.config import Config

_NUMBERS = st.floats(0.001, 0.9, allow_nan=False)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple:
        args = get_args(hint)
        if args[-1] is Ellipsis:
            return st.lists(values_of(args[0]), min_size=1, max_size=3, unique=True).map(tuple)
        return st.tuples(*map(values_of, args))
    if get_origin(hint) in (Union, UnionType):
        return st.one_of(*map(values_of, get_args(hint)))
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return st.builds(hint, **{item.name: values_of(hints[item.name]) for item in fields(hint)})
    by_type = {
        bool: st.booleans(),
        int: st.integers(1, 30),
        float: _NUMBERS,
        str: st.from_regex(r"[a-z][a-z0-9_:/.]{0,12}", fullmatch=True),
        Path: st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).map(Path),
    }
    return by_type[hint]


configs_drawn = values_of(Config)


@given(configs_drawn)
@settings(max_examples=100, deadline=None)
def test_json_brings_back_the_config(config: Config) -> None:
    assert configs.from_dict(configs.to_dict(config)) == config


@given(configs_drawn)
@settings(max_examples=12, deadline=None)
def test_flags_bring_back_the_config(config: Config) -> None:
    base = Config(recipe=config.recipe)
    assert parse_settings(base, configs.to_flags(config, base), "train x") == config


@given(configs_drawn, configs_drawn)
@settings(max_examples=50, deadline=None)
def test_differences_name_exactly_the_settings_that_differ(a: Config, b: Config) -> None:
    flat_a, flat_b = configs.flatten(a), configs.flatten(b)
    assert set(configs.differences(a, b)) == {name for name in flat_a if flat_a[name] != flat_b[name]}
    assert configs.differences(a, replace(a)) == {}
