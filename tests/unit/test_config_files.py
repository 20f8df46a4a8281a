"""Settings in JSON, YAML and TOML: one meaning, errors with file and line; short names of flags."""

import json
from pathlib import Path

import pytest

from samovar import config as configs
from samovar import recipes
from samovar.cli.compare import parse as parse_compare
from samovar.cli.flags import ALIASES
from samovar.cli.settings import flag_names
from samovar.cli.train import parse
from samovar.cli.tune import parse as parse_tune
from samovar.config import Config

YAML = """\
recipe: vit-digits-sam
epochs: 3
optim:
  lr: 1e-3
  betas: [0.9, 0.95]
run:
  compile: false
"""
TOML = """\
recipe = "vit-digits-sam"
epochs = 3

[optim]
lr = 1e-3
betas = [0.9, 0.95]

[run]
compile = false
"""


@pytest.mark.parametrize(("name", "text"), [("c.yaml", YAML), ("c.yml", YAML), ("c.toml", TOML)])
def test_a_file_by_hand_changes_the_recipe_it_names(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    config = parse(["--config", str(file)]).config
    recipe = recipes.get("vit-digits-sam").config()
    changed = {name: values[0] for name, values in configs.differences(config, recipe).items()}
    assert changed == {"epochs": 3.0, "optim.lr": 1e-3, "optim.betas": (0.9, 0.95)}
    assert parse(["--config", str(file), "--rho", "0.3"]).config.sam.rho == 0.3


def test_every_setting_comes_back_from_yaml_as_from_json(tmp_path: Path) -> None:
    import yaml

    config = recipes.get("vit-cifar10-aug-sam").config()
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(configs.to_dict(config)), encoding="utf-8")
    configs.save(config, tmp_path / "c.json")
    assert configs.load(tmp_path / "c.yaml") == configs.load(tmp_path / "c.json") == config


def test_a_file_without_a_recipe_takes_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 3\n", encoding="utf-8")
    assert configs.load(tmp_path / "c.yaml") == Config(seed=3)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "epochs: 3\nsam:\n  roh: 0.1\n", "c.yaml, line 3: unknown setting 'roh' in SamConfig"),
        ("c.yaml", "sam:\n  rho: big\n", "c.yaml, line 2: setting 'rho' is 'big'; allowed: float"),
        ("c.yaml", "seed: 1\noptim: [1\nx", "cannot read a config from c.yaml, line 3: "),
        ("c.yaml", "seed: 1\nsam:\n  rho: 1.0\n  rho: 2.0\n", "c.yaml, line 4: setting 'rho' stands on line 3 already"),
        ("c.yaml", "- 1\n", "c.yaml holds no config: expected an object, found list"),
        ("c.yaml", "a: !!python/object:os.system x\n", "cannot read a config from c.yaml, line 1: "),
        ("c.toml", "[sam]\nrho = 0.1\nroh = 0.1\n", "c.toml, line 3: unknown setting 'roh'"),
        ("c.toml", "sam.rho = true\n", "c.toml, line 1: setting 'rho' is True; allowed: float"),
        ("c.toml", "sam = {rho = 'x'}\n", "c.toml, line 1: setting 'rho' is 'x'"),
        ("c.toml", "seed = \n", "cannot read a config from c.toml: Invalid value (at line 1"),
        ("c.json", '{\n"sam": {\n\t"roh": 1}}', "c.json, line 3: unknown setting 'roh'"),
        ("c.json", '{\n"sam": }', "cannot read a config from c.json: Expecting value: line 2"),
        ("c.yaml", "recipe: nothing\n", "unknown recipe 'nothing'"),
    ],
)  # fmt: skip
def test_errors_name_file_and_line(tmp_path: Path, monkeypatch, name: str, text: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        parse(["--config", name])
    assert str(error.value).startswith(message)


def test_short_names_stand_for_settings_that_exist() -> None:
    known = flag_names(Config())
    assert set(ALIASES.values()) <= set(known)
    assert not set(ALIASES) & set(known)


def test_short_names_mean_the_long_ones_in_train_tune_and_compare() -> None:
    pairs = [("--lr", "0.1"), ("--batch-size", "32"), ("--image_size", "16"), ("--rho", "0.2"), ("--device", "cpu"),
             ("--precision", "fp32"), ("--workers", "0")]  # fmt: skip
    short = [word for pair in pairs for word in pair]
    long = [word for flag, value in pairs for word in (ALIASES[flag.replace("_", "-")], value)]
    assert parse(["vit-digits", *short]).config == parse(["vit-digits", *long]).config
    assert parse(["vit-digits", "--rho=0.2"]).config.sam.rho == 0.2
    assert parse_compare(["vit-digits", *short[2:]])[0] == parse_compare(["vit-digits", *long[2:]])[0]
    tuned = ["vit-digits-sam", "--rho", "0.1,0.2", "--batch-size", "32"]
    found = parse_tune(tuned)
    assert found.config.data.batch_size == 32
    assert found.search.values["rho"] == (0.1, 0.2)


def test_a_misspelt_short_name_is_answered_by_it() -> None:
    with pytest.raises(ValueError, match="unknown flag --bath-size; did you mean --batch-size?"):
        parse(["vit-digits", "--bath-size", "3"])


def test_json_keeps_its_meaning(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"recipe": "vit-digits-sam", "seed": 3}), encoding="utf-8")
    assert configs.load(tmp_path / "c.json", lambda name: Config(seed=9)) == Config(recipe="vit-digits-sam", seed=3)
