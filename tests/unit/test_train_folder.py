"""`samovar train FOLDER`: what is chosen, what is said, what the plan says, and what it leaves alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from samovar import config as configs
from samovar import recipes
from samovar.cli.train import parse
from samovar.recipes.own import FEW, PRETRAINED
from samovar.recipes.replay import BY_NUMBER
from tests.conftest import Shell


def folder(path: Path, per_class: int = 10, size: int = 8) -> Path:
    """Make a folder of two classes of noisy color images."""
    draw = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (path / name).mkdir(parents=True)
        for k in range(per_class):
            pixels = draw.integers(0, 128, (size, size, 3), dtype=np.uint8) + 127 * label
            Image.fromarray(pixels.astype(np.uint8)).save(path / name / f"{k}.png")
    return path


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "rates", "share"),
    [(20, 16, 20, 2, 0.2), (245, 16, 20, 2, 0.2), (499, 32, 20, 2, 0.2), (540, 32, 20, 3, 0.1), (1000, 64, 20, 3, 0.1),
     (1999, 64, 20, 3, 0.1), (2000, 512, 128, 4, 0.1), (9999, 512, 25.6, 4, 0.1), (50_000, 512, 102.4, 4, 0.02)],
)  # fmt: skip
def test_fine_tuning_is_sized_by_the_number_of_images(
    images: int, batch: int, epochs: float, rates: int, share: float
) -> None:
    config = recipes.transfer(images)
    steps = configs.num_steps(config, images)
    assert (config.data.batch_size, len(config.grid.lr), config.grid.share) == (batch, rates, share)
    assert steps * batch / images == pytest.approx(epochs, rel=0.02)
    assert config.optim.warmup_steps <= steps / 5
    assert config.run.eval_every == steps
    configs.validate(config)


@pytest.mark.parametrize("batch", [1, 16, 24, 48, 96, 512])
def test_a_given_batch_wins_and_steps_follow(batch: int) -> None:
    photos, few, many = recipes.photos(540, batch), recipes.transfer(540, batch), recipes.transfer(5000, batch)
    for config in (photos, few, many):
        assert config.data.batch_size == batch
        configs.validate_layout(config, 1)
    assert configs.num_steps(few, 540) == round(20 * 540 / batch)
    assert configs.num_steps(photos, 540) == round(100 * 540 / batch)
    assert configs.num_steps(many, 5000) == 500


def test_the_defaults_are_the_papers_settings() -> None:
    assert recipes.transfer() == recipes.transfer(FEW)
    assert recipes.photos().epochs == 300
    assert set(BY_NUMBER) == {"photos", "transfer"}


@pytest.mark.parametrize("spelled", ["{}", "folder:{}"])
def test_a_folder_is_fine_tuned_and_says_why(tmp_path: Path, spelled: str) -> None:
    images = folder(tmp_path / "mine")
    command = parse([spelled.format(images), "--image-size", "64", "--seed", "3"])
    config = command.config
    assert (config.recipe, config.data.source, config.seed) == ("transfer", f"folder:{images}", 3)
    assert config.init == recipes.weights_for(64) == "resnet18.a1_in1k"
    assert command.why == (
        f"{images}: 18 training images, fewer than 50,000: fine-tuning, recipe transfer; --scratch trains from scratch",
        "weights: resnet18.a1_in1k, the default for images of 64 pixels; --init NAME, RUN or FILE gives others",
        "sizes: 22 steps of 16 images (19.6 epochs), warm-up 2, lr 0.003 0.01, from the number of images; "
        "flags change them",
    )


def test_scratch_and_init_choose_the_way(tmp_path: Path, monkeypatch) -> None:
    images = str(folder(tmp_path / "mine"))
    scratch = parse([images, "--scratch", "--batch-size", "8"]).config
    assert (scratch.recipe, scratch.init, scratch.data.batch_size) == ("photos", "", 8)
    given = parse([images, "--init", "mine.pth"])
    assert given.config.init == "mine.pth"
    assert "weights: mine.pth, from --init" in given.why
    monkeypatch.setattr("samovar.cli.folder.count_images", lambda *args: 50_000)
    assert parse([images]).config.recipe == "photos"
    assert parse([images, "--init", "mine.pth"]).config.recipe == "transfer"


def test_a_learning_rate_that_is_given_is_not_searched_for(tmp_path: Path) -> None:
    images = str(folder(tmp_path / "mine"))
    assert parse([images, "--lr", "0.02"]).config.grid.lr == ()
    assert parse(["transfer", "--data.source", f"folder:{images}", "--lr", "0.02"]).config.optim.lr == 0.02
    assert parse([images, "--lr", "0.02", "--grid.lr", "0.1", "0.2"]).config.grid.lr == (0.1, 0.2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("no/where", "there is no folder no/where; check the path"),
        ("mine --data.source digits", "mine and --data.source digits both say where the images are"),
        ("mine --scratch --init x.pth", "--scratch and --init x.pth exclude each other"),
        ("vit-digits --scratch", "--scratch goes with a folder of images"),
        ("run", "run is a run, not a folder of images; --resume run continues it"),
        ("./file.jpg", "./file.jpg is a file; give a folder of images"),
        ("folder:", "folder: names no folder"),
        ("mine --sam.roh 1", "unknown flag --sam.roh; did you mean --sam.rho?"),
        ("mine photos", "train takes one recipe, not mine and photos"),
        ("mine more --scratch", "train takes one recipe, not mine and more, or one folder of images; quote a path"),
        ("mien", "unknown recipe 'mien'; did you mean mine?"),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224 is a model, not a recipe; give a recipe or a folder"),
        ("vit-b16", "vit-b16 is a model, not a recipe"),
    ],
)
def test_wrong_folders_are_refused_in_one_line(tmp_path: Path, monkeypatch, args: str, message: str) -> None:
    folder(tmp_path / "mine")
    (tmp_path / "run").mkdir()
    configs.save(configs.Config(), tmp_path / "run" / "config.json")
    (tmp_path / "file.jpg").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        parse(args.split())
    assert message in str(error.value)


def test_every_image_size_has_default_weights() -> None:
    import timm

    for name in PRETRAINED.values():
        assert timm.is_model_pretrained(name)
    assert recipes.weights_for(384) != recipes.weights_for(224) != recipes.weights_for(64)


@pytest.mark.costly
def test_the_plan_comes_first_and_changes_nothing(shell: Shell, monkeypatch) -> None:
    folder(shell.folder / "mine")
    made = shell.run_here("train", "vit-digits", "--steps", "2", "--name", "before", "--data.image-size", "8")
    assert made.returncode == 0, made.stderr
    common = ("--init", "runs/before", "--steps", "3", "--run.device", "cpu", "--grid.lr", "0.01", "0.02")
    planned = shell.run_here("train", "mine", *common, "--name", "a")
    assert planned.returncode == 0, planned.stderr
    lines = planned.stdout.splitlines()
    assert lines[0].startswith("mine: 18 training images, --init is given")
    plan = next(line for line in lines if line.startswith("plan: "))
    assert plan == (
        "plan: 18 + 2 images of 2 classes, 3 steps of 16 (2.67 epochs), warm-up 0, "
        "lr 0.01 0.02 tried first on 80% of the training images"
    )
    cost = lines[lines.index(plan) + 1]
    assert cost.startswith("cost: ")
    assert "a step here, measured on 2 steps" in cost
    assert lines.index(cost) < next(k for k, line in enumerate(lines) if line.startswith("before fine-tuning"))
    # without the plan's steps the run ends in the same weights
    monkeypatch.setattr("samovar.train.command.plan_lines", lambda *args: ["no plan"])
    again = shell.run_here("train", "mine", *common, "--name", "b")
    assert again.returncode == 0, again.stderr
    assert "cost: " not in again.stdout
    weights = [
        load_file(next((shell.folder / "runs" / name / "checkpoints").glob("step-*3")) / "model.safetensors")
        for name in ("a", "b")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
