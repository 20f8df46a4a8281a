"""Recipes: valid, named, twins that differ in SAM alone, and the paper's numbers where they are the paper's."""

from dataclasses import replace

import pytest

from samovar import config as configs
from samovar import recipes, zoo
from samovar.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_says_what_to_expect_and_names_a_model_we_have(name: str) -> None:
    recipe = RECIPES[name]
    config = recipe.config()
    configs.validate(config)
    configs.validate_layout(config, 1)
    assert config.recipe == recipe.name == name
    assert len(recipe.expect) > 20
    assert config.model.name in zoo.MODELS or config.model.name == "vit_tiny_patch16_224"


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("-sam")])
def test_twins_differ_in_rho_alone(name: str) -> None:
    sam, plain = RECIPES[name].config(), RECIPES[name.removesuffix("-sam")].config()
    assert plain.sam.rho == 0 < sam.sam.rho
    assert set(configs.differences(plain, sam)) == {"recipe", "sam.rho"}


# Tables 8 and 9 of arXiv:2106.01548, written out by hand.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "vit-b16-imagenet-sam",
            {
                "data.batch_size": 4096, "epochs": 300, "optim.warmup_steps": 10_000, "optim.lr": 3e-3,
                "optim.schedule": "cosine", "optim.name": "adamw", "optim.betas": (0.9, 0.999),
                "optim.weight_decay": 0.3, "optim.decay": "kernels", "model.dropout": 0.1, "model.drop_path": 0.0,
                "optim.clip_norm": 1.0, "loss": "sigmoid", "model.head_bias": -10.0, "sam.rho": 0.2, "sam.m": 32,
                "data.crop": "inception", "data.flip": True, "data.randaugment_layers": 0, "data.mixup": 0.0,
            },
        ),
        (
            "mixer-b16-imagenet-sam",
            {
                "data.batch_size": 4096, "epochs": 300, "optim.warmup_steps": 10_000, "optim.lr": 3e-3,
                "optim.schedule": "linear", "optim.linear_end": 1e-5, "optim.weight_decay": 0.3, "model.dropout": 0.0,
                "model.drop_path": 0.1, "optim.clip_norm": 1.0, "loss": "sigmoid", "sam.rho": 0.6, "sam.m": 32,
            },
        ),
        (
            "resnet152-imagenet-sam",
            {
                "data.batch_size": 4096, "epochs": 90, "optim.warmup_steps": 5000, "optim.lr": 1.6,
                "optim.schedule": "cosine", "optim.name": "sgd", "optim.momentum": 0.9, "optim.weight_decay": 1e-4,
                "optim.clip_norm": 0.0, "loss": "softmax", "sam.rho": 0.02, "sam.m": 32,
            },
        ),
        (
            "vit-b16-imagenet-aug-sam",
            {
                "optim.lr": 1e-3, "optim.weight_decay": 0.1, "model.dropout": 0.1, "model.drop_path": 0.1,
                "data.randaugment_layers": 2, "data.randaugment_magnitude": 15, "data.mixup": 0.5, "sam.rho": 0.05,
            },
        ),
        ("mixer-b16-imagenet-aug-sam", {"model.dropout": 0.0, "model.drop_path": 0.1, "sam.rho": 0.2}),
    ],
)  # fmt: skip
def test_imagenet_recipes_are_the_papers(name: str, expected: dict) -> None:
    flat = configs.flatten(RECIPES[name].config())
    assert {key: flat[key] for key in expected} == expected


def test_the_schedule_of_the_paper_is_about_93_800_steps() -> None:
    assert configs.num_steps(RECIPES["vit-b16-imagenet"].config(), recipes.IMAGENET_TRAIN) == 93_835


def test_all_radii_of_table_9_are_there() -> None:
    # by hand from the paper's Table 9
    table = {"resnet50": 0.02, "resnet101": 0.05, "vit-s8": 0.15, "vit-b32": 0.15, "mixer-s8": 0.2, "mixer-b8": 0.6}
    assert len(recipes.PAPER_RHO) == 18
    assert {name: recipes.PAPER_RHO[name] for name in table} == table


@pytest.mark.parametrize(
    ("images", "model", "batch", "lr"),
    [(1000, "vit_tiny_patch16_224", 32, 1e-3), (29_999, "vit_tiny_patch16_224", 128, 1e-3),
     (30_000, "vit-s16", 128, 1e-3), (128_116, "vit-s16", 512, 3e-3), (1_281_167, "vit-b16", 4096, 3e-3)],
)  # fmt: skip
def test_the_photos_rule(images: int, model: str, batch: int, lr: float) -> None:
    config = recipes.photos(images)
    configs.validate(replace(config, recipe="photos"))
    assert (config.model.name, config.data.batch_size, config.optim.lr) == (model, batch, lr)
    assert config.optim.warmup_steps < configs.num_steps(config, images)


def test_an_unknown_recipe_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match="did you mean vit-cifar10"):
        recipes.get("vit-cifar-10")
