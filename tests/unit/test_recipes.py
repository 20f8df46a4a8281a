"""Recipes: valid, named, twins that differ in SAM alone, and the paper's numbers where they are the paper's."""

from dataclasses import replace

import pytest

from samovar import config as configs
from samovar import recipes
from samovar.models import table as zoo
from samovar.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_says_what_to_expect_and_names_a_model_we_have(name: str) -> None:
    recipe = RECIPES[name]
    config = recipe.config()
    configs.validate(config)
    configs.validate_layout(config, 1)
    assert config.recipe == recipe.name == name
    assert len(recipe.expect) > 20
    assert config.model.name in zoo.MODELS or name in ("photos", "transfer")


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
        (
            "vit-b16-imagenet-tenth",
            {"data.fraction": 0.1, "data.batch_size": 512, "optim.lr": 3e-3, "epochs": 300, "optim.weight_decay": 0.3},
        ),
        (
            "mixer-b16-imagenet-quarter-aug-sam",
            {
                "data.fraction": 0.25, "data.batch_size": 1024, "optim.lr": 1e-3, "data.mixup": 0.5, "sam.rho": 0.2,
                "optim.schedule": "linear",
            },
        ),
        ("resnet152-imagenet-half", {"data.fraction": 0.5, "data.batch_size": 2048, "optim.lr": 1.6}),
        (
            "mixer-b32-imagenet-adversarial-sam",
            {
                "adversarial.eps": 2 / 255, "adversarial.num_steps": 1, "sam.rho": 0.25, "sam.m": 32,
                "optim.lr": 3e-3, "optim.weight_decay": 0.3,
            },
        ),
        (
            "supcon-vit-s16-imagenet-sam",
            {
                "loss": "supcon", "data.views": 2, "data.batch_size": 2048, "data.autoaugment": "imagenet",
                "contrastive.temperature": 0.1, "epochs": 350, "optim.name": "lamb", "optim.lr": 0.001 * 2048 / 256,
                "optim.schedule": "cosine", "optim.weight_decay": 0.3, "sam.rho": 0.02, "head.epochs": 90,
                "head.optim.name": "rmsproptf", "head.optim.lr": 0.05, "head.optim.schedule": "exponential",
                "head.optim.weight_decay": 1e-6,
            },
        ),
        (
            "transfer",
            {
                "steps": 500, "optim.warmup_steps": 100, "grid.lr": (0.001, 0.003, 0.01, 0.03), "grid.share": 0.1,
                "optim.name": "sgd", "optim.momentum": 0.9, "optim.weight_decay": 0.0, "optim.clip_norm": 1.0,
                "optim.schedule": "cosine", "data.batch_size": 512, "sam.rho": 0.0,
            },
        ),
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


def test_transfer_takes_the_papers_row_for_cifar_where_there_are_many_images() -> None:
    config = recipes.transfer(50_000)
    assert (config.steps, config.optim.warmup_steps, config.grid.share) == (10_000, 500, 0.02)


def test_the_sizes_of_subsets_keep_the_number_of_steps_as_in_the_paper() -> None:
    # about 93.8 thousand for halves and quarters, 75 thousand for a tenth
    for word, images, steps in (("half", 640_583, 93_835), ("quarter", 320_291, 93_835), ("tenth", 128_116, 75_068)):
        assert configs.num_steps(RECIPES[f"vit-b16-imagenet-{word}"].config(), images) == steps


def test_an_unknown_recipe_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match="did you mean vit-cifar10"):
        recipes.get("vit-cifar-10")
