"""The JSON Schema of a run's config.json: it takes every recipe and refuses what `validate` and `from_dict` refuse."""

import json
from typing import Any

import pytest

from samovar import config as configs
from samovar import recipes
from samovar.config import Config
from samovar.config.schema import field_docs


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(configs.schema())
    return jsonschema.Draft202012Validator(configs.schema())


def refused(validator: Any, section: str, name: str, value: Any) -> bool:
    values = configs.to_dict(Config())
    (values[section] if section else values)[name] = value
    return not validator.is_valid(values)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_config_of_every_recipe_is_valid(validator, name):
    validator.validate(configs.to_dict(recipes.get(name).config()))


def test_settings_may_be_missing_as_when_a_config_is_read(validator):
    validator.validate({"sam": {"rho": 0.1}})
    assert configs.from_dict({"sam": {"rho": 0.1}}).sam.rho == 0.1


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("sam", "rho", -0.1),
        ("sam", "gamma", 1.0),
        ("data", "fraction", 0),
        ("data", "batch_size", 0),
        ("data", "batch_size", 1.5),
        ("data", "crop", "zoom"),
        ("optim", "betas", [0.9]),
        ("optim", "betas", [0.9, 0.99, 0.999]),
        ("optim", "betas", [0.9, 1.0]),
        ("model", "std", [0.0]),
        ("", "label_smoothing", 2),
        ("", "sam", 0.1),
        ("sam", "rhoo", 0.1),
        ("", "nothing", 1),
    ],
)
def test_a_value_out_of_range_a_wrong_type_and_an_unknown_key_are_refused(validator, section, name, value):
    assert refused(validator, section, name, value)


@pytest.mark.parametrize(("section", "name", "value"), [("sam", "rho", 0), ("data", "fraction", 1), ("", "seed", -3)])
def test_a_value_on_a_closed_bound_is_taken(validator, section, name, value):
    assert not refused(validator, section, name, value)


def test_the_schema_is_json_with_a_description_of_every_setting_and_its_default():
    schema = json.loads(json.dumps(configs.schema()))
    sections = [schema, *schema["$defs"].values()]
    settings = [prop for part in sections for prop in part["properties"].values() if "$ref" not in prop]
    assert len(settings) > 90
    for prop in settings:
        assert prop["description"]
        assert "default" in prop
    assert schema["$defs"]["DataConfig"]["properties"]["crop"]["enum"] == ["none", "affine", "pad", "inception"]
    assert schema["properties"]["head"] == {"$ref": "#/$defs/HeadConfig"}
    head = schema["$defs"]["HeadConfig"]["properties"]["optim"]
    assert head["default"] == configs.to_dict(Config().head.optim)


def test_docstrings_of_fields_come_with_those_inherited():
    docs = field_docs(configs.SamConfig)
    assert list(docs) == list(configs.flatten(configs.SamConfig()))
    assert all(docs.values())
