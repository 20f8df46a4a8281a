"""Test that the command which a run prints for itself gives the same settings again."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from samovar import cli, recipes
from samovar import config as configs
from samovar.cli.train import parse
from samovar.config import Config
from samovar.export.card import command_of
from samovar.recipes import replay
from samovar.runs.records import RunDir

NUMBERS = (20, 1_999, 5_000, 10_000, 30_000, 2_000_000)
CHANGES = (
    (),
    ("--epochs", "3"),
    ("--steps", "40"),
    ("--lr", "0.02"),
    ("--batch-size", "48"),
    ("--seed", "3", "--name", "my run", "--sam.rho", "0.07", "--data.no-flip"),
    ("--grid.lr", "0.1", "0.2"),  # a contrastive run takes none
)


def again(config: Config, num_train: int = 1_000) -> Config:
    """Return the settings of the run that the printed command starts."""
    command = parse(replay.command(config)[2:])
    assert command.shorten is not None
    return command.shorten(command.config, num_train)[0]


def settings(recipe: str, changes: tuple[str, ...], num_train: int = 1_000) -> Config:
    command = parse([recipe, *changes])
    assert command.shorten is not None
    return command.shorten(command.config, num_train)[0]


@pytest.mark.costly
def test_every_recipe_is_repeated(monkeypatch) -> None:
    monkeypatch.setattr("samovar.cli.settings.count_images", lambda *args: 1_000)
    # neighbours in the list differ little, and reading flags takes time
    for index, name in enumerate(list(recipes.RECIPES)[::5]):
        config = settings(name, CHANGES[index % 6])
        assert again(config) == config, name


@pytest.mark.costly
@pytest.mark.parametrize("recipe", replay.BY_NUMBER)
def test_settings_that_follow_from_the_number_of_images_are_repeated(recipe: str, monkeypatch) -> None:
    for index, number in enumerate(NUMBERS):
        monkeypatch.setattr("samovar.cli.settings.count_images", lambda *args, number=number: number)
        config = settings(recipe, CHANGES[index + 1], number)
        # the folder holds other images by then
        for later in (number, 7_000):
            monkeypatch.setattr("samovar.cli.settings.count_images", lambda *args, later=later: later)
            assert again(config, later) == config, (number, later)


def test_a_grid_that_has_chosen_is_repeated_with_its_rate() -> None:
    config = recipes.get("transfer").config()
    chosen = replace(config, optim=replace(config.optim, lr=0.03))
    words = replay.command(chosen)
    assert words[words.index("--optim.lr") + 1] == "0.03"
    assert words[words.index("--grid.lr") + 1] == "0.001"


def test_epochs_beside_steps_are_repeated() -> None:
    base = replace(recipes.get("vit-digits").config(), steps=100)
    config = replace(base, epochs=7.0)
    assert configs.to_flags(config, base)[:4] == ["--epochs", "7.0", "--steps", "100"]


def test_a_run_of_an_unknown_recipe_and_a_path_with_a_space_are_repeated(tmp_path, capsys) -> None:
    config = replace(Config(recipe="mine", seed=4), output=tmp_path / "my runs")
    run = RunDir.create(config.output, "mine")
    configs.save(config, run.config_path)
    cli.main(["show", str(run.path)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("replay: "))
    words = shlex.split(line.removeprefix("replay: "))
    assert words[:3] == ["samovar", "train", "vit-digits"]
    assert parse(words[2:]).config == replace(config, recipe="vit-digits")


def test_the_command_of_a_card_is_one_command_of_a_shell() -> None:
    config = recipes.get("photos").config()
    data = replace(config.data, source="folder:/home/someone/my photos")
    words = shlex.split(command_of(replace(config, data=data, output=Path("/home/someone/runs"))))
    assert words[words.index("--data.source") + 1] == "folder:my photos"
    assert not any("someone" in word for word in words)
