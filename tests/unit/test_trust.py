"""Code that a file names is not imported, unless the command line names it too or says --trust-code."""

import json
import shutil
import sys

import pytest
from PIL import Image

from samovar import cli
from samovar import config as configs
from samovar.config import Config, ModelConfig
from samovar.models import trust
from samovar.models.factory import create
from samovar.models.open import open_model
from tests.conftest import assert_refused
from tests.unit.made_run import made_run

NETS = """
from pathlib import Path
from torch import nn

Path("imported").touch()

def tiny(num_classes, image_size, channels):
    return nn.Sequential(nn.Conv2d(channels, 2, 3), nn.Flatten(), nn.Linear(2 * (image_size - 2) ** 2, num_classes))
"""
REFUSED = "runs/made/config.json names code, {name}, which is not imported"


@pytest.fixture
def name(tmp_path, monkeypatch):
    """The function that a run of somebody else names, in a module of the working folder that no test has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trust, "_named", set())
    module = f"nets_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{module}.py").write_text(NETS)
    Image.new("L", (8, 8)).save("image.png")
    # made with the code beside it, then the mark of that import is taken away, and the memory of it
    monkeypatch.syspath_prepend(tmp_path)
    made_run(tmp_path / "runs", Config(model=ModelConfig(f"{module}:tiny")), classes=10, channels=1)
    (tmp_path / "imported").unlink()
    del sys.modules[module]
    trust._named.clear()
    return f"{module}:tiny"


COMMANDS = [
    "measure runs/made hessian --images 20",
    "predict runs/made image.png",
    "export runs/made --format timm",
    "train --resume runs/made",
    "train --resume runs/made --dry-run",
    "train --branch runs/made@3",
    "train --config runs/made/config.json",
    "train --config runs/made/config.json --dry-run",
    "train transfer --init runs/made --data.source digits",
    "tune --config runs/made/config.json --rho 0,0.1",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_verb_imports_what_a_file_names(name, command, tmp_path, capsys) -> None:
    assert_refused(command, "--trust-code", capsys)
    assert not (tmp_path / "imported").exists()


def test_the_refusal_names_file_and_function(name, capsys) -> None:
    assert_refused("measure made", REFUSED.format(name=name), capsys)


def test_resume_auto_does_not_either(name, tmp_path, capsys) -> None:
    values = json.loads((tmp_path / "runs/made/config.json").read_text())
    values["recipe"] = "vit-digits"
    (tmp_path / "runs/made/config.json").write_text(json.dumps(values))
    assert_refused("train vit-digits --name made --resume auto", REFUSED.format(name=name), capsys)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("command", ["report runs/made", "show runs/made", "list runs"])
def test_verbs_that_only_read_neither_import_nor_refuse(name, command, tmp_path) -> None:
    cli.main(command.split())
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    "command",
    [
        "predict runs/made image.png --trust-code",
        "predict --trust-code runs/made image.png",
        "predict runs/made image.png --model NAME",
        "measure runs/made flatness --images 20 --draws 2 --trust-code",
        "train --config runs/made/config.json --dry-run --trust-code",
        "train --config runs/made/config.json --dry-run --model.name NAME",
        "train --config runs/made/config.json --dry-run --model.name=NAME",
    ],
)
def test_a_person_who_names_it_or_trusts_it_gets_it(name, command, tmp_path) -> None:
    cli.main(command.replace("NAME", name).split())
    assert (tmp_path / "imported").exists()


def test_trust_ends_with_the_command(name) -> None:
    cli.main(["predict", "runs/made", "image.png", "--trust-code"])
    trust._named.clear()
    with pytest.raises(ValueError, match="names code"):
        open_model("runs/made")


def test_another_name_on_the_command_line_trusts_nothing_else(name, tmp_path, capsys) -> None:
    assert_refused("train --resume runs/made --data.source folder:tiny", "--trust-code", capsys)
    assert not (tmp_path / "imported").exists()


def test_in_python_what_the_caller_has_built_is_trusted(name) -> None:
    with pytest.raises(ValueError, match="names code"):
        open_model("runs/made")
    config = configs.load(configs.Config().output / "made" / "config.json")
    create(config.model, num_classes=10, image_size=8, channels=1)
    assert open_model("runs/made").num_classes == 10


def test_the_line_after_an_interruption_goes_on_with_own_code(name, tmp_path, capsys, monkeypatch) -> None:
    from samovar.train import command

    def stop(*args):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(command, "fit", stop)
    with pytest.raises(SystemExit):
        cli.main(["train", "vit-digits", "--model.name", name, "--name", "mine", "--steps", "2"])
    assert "samovar train --resume runs/mine --trust-code\n" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "runs" / "mine")
