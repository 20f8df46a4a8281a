"""The command line: quick answers without torch, one clear line and exit code 2 for bad input."""

import subprocess
import sys

import pytest

from samovar import cli, recipes
from samovar.config import Config
from tests.conftest import assert_refused


@pytest.mark.parametrize(
    "args",
    ["--help", "train --help", "demo --help", "list", "list recipes", "show vit-b16-imagenet-sam", "show vit-b16",
     "train vit-cifar10 --help", "tune --help"],
)  # fmt: skip
def test_help_list_and_show_answer_without_torch(args: str) -> None:
    code = (
        "import sys\nfrom samovar.cli import main\n"
        f"try:\n    main({args.split()!r})\nexcept SystemExit as e:\n    assert not e.code\n"
        "assert not {'torch', 'timm', 'torchvision', 'numpy'} & set(sys.modules), 'heavy import'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout) > 100


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("tran", "unknown command 'tran'; did you mean train?"),
        ("train", "train needs a recipe"),
        ("train vit-cifer10", "unknown recipe 'vit-cifer10'; did you mean vit-cifar10"),
        ("train vit-digits --sam.roh 0.1", "unknown flag --sam.roh; did you mean --sam.rho?"),
        ("train vit-digits --sam.rho", "--sam.rho"),
        ("train vit-digits --sam.rho big", "--sam.rho: could not convert string to float: 'big'"),
        ("train vit-digits --sam.rho -0.1", "--sam.rho -0.1 is out of range; give a radius"),
        ("train vit-digits --data.crop zoom", "invalid choice 'zoom'"),
        ("train vit-digits --recipe x", "unknown flag --recipe"),
        ("train --resume nowhere", "--resume nowhere is not a run"),
        ("train --config nowhere.json", "cannot read a config from nowhere.json"),
        ("train --config a --resume b", "exclude each other"),
        ("train --resume", "--resume needs a path"),
        ("train photos --data.source folder:nowhere", "nowhere"),
        ("train vit-digits --model.name vit-digist", "unknown model 'vit-digist'"),
        ("train vit-digits --model.name no_such:thing", "no_such"),
        ("train vit-digits --data.image-size 7", "7"),
        ("train vit-digits --data.source digist", "digist"),
        ("train vit-digits --data.source folder:nowhere", "nowhere"),
        ("train vit-digits-sam --sam.m 33", "--sam.m 33 does not divide the 64 images of a rank"),
        ("train vit-digits --run.device cuda:99", "--run.device cuda:99 asks for GPU 99"),
        ("train vit-digits --run.device gpu", "--run.device gpu is no device"),
        ("train vit-digits --optim.name adamx", "adamx"),
        ("train vit-digits --optim.warmup-steps 99999", "99999"),
        ("train vit-digits --output /proc/nothing", "cannot write to --output"),
        ("list recipe", "cannot list 'recipe'; did you mean recipes?"),
        ("show nothing-like-it", "'nothing-like-it' is no recipe, model or run folder"),
        ("demo --sed 3", "unknown flag --sed; did you mean --seed?"),
        ("demo --seed x", "--seed x is not a whole number"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(args: str, line: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(args, line, capsys)
    assert not list(tmp_path.glob("runs/*")), "a run that cannot start leaves no folder"


def test_flags_override_the_recipe_and_nothing_else() -> None:
    config, resumed = cli.parse_train(["vit-cifar10-sam", "--sam.rho", "0.3", "--seed", "5", "--data.no-flip"])
    base = recipes.get("vit-cifar10-sam").config()
    assert resumed is None
    assert (config.sam.rho, config.seed, config.data.flip) == (0.3, 5, False)
    assert config.optim == base.optim
    assert config.model == base.model


def test_every_recipe_can_be_shown_and_parsed(capsys) -> None:
    for name in recipes.RECIPES:
        cli.main(["show", name])
        assert recipes.get(name).expect in capsys.readouterr().out
    assert isinstance(cli.parse_train(["vit-b16-imagenet-sam"])[0], Config)


def test_the_photos_recipe_follows_from_the_number_of_images(tmp_path) -> None:
    for label in ("cat", "dog"):
        folder = tmp_path / "train" / label
        folder.mkdir(parents=True)
        for i in range(40):
            (folder / f"{i}.jpg").write_bytes(b"")
    (tmp_path / "val").mkdir()
    config, _ = cli.parse_train(["photos", "--data.source", f"folder:{tmp_path}"])
    assert config.recipe == "photos"
    assert config.data.batch_size == 32
    assert config.model.name == "vit_tiny_patch16_224"
    assert recipes.photos(1_281_167).data.batch_size == 4096
    assert recipes.photos(1_281_167).model.name == "vit-b16"
