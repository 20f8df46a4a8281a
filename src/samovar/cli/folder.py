"""`samovar train FOLDER`: fine-tune or train from scratch, by the number of images, and say why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from samovar import config as configs
from samovar import recipes
from samovar.cli.flags import Flag, Line
from samovar.cli.named_run import run_path
from samovar.cli.settings import given_settings, parse_settings
from samovar.config import Config
from samovar.data.catalog import count_images
from samovar.models import table
from samovar.models.timm_names import defined_by_timm
from samovar.words import suggest

_PREFIX = "folder:"


class Choice(NamedTuple):
    """Settings for a folder of images before flags, and the reason for them."""

    base: Config
    num_images: int
    """Training images."""
    reason: str
    """One line: what is done, and what the other way is."""
    weights: str
    """One line: which weights or which network, and why."""


def is_folder(word: str) -> bool:
    """Return whether a word where a recipe is expected is a path; names of recipes are none."""
    if word in recipes.RECIPES:
        return False
    return word.startswith(_PREFIX) or "/" in word or word in (".", "..") or Path(word).is_dir()


def no_recipe(word: str) -> ValueError:
    """Return the error for a word that is neither a recipe nor a folder of images."""
    if word in table.names() or defined_by_timm(word):
        return ValueError(
            f"{word} is a model, not a recipe; give a recipe or a folder of images, and "
            f"--model.name {word}"
        )
    if Path(run_path(word)) != Path(word):
        run = run_path(word)
        return ValueError(
            f"{word} is a run; --resume {word} continues it, --config {run} repeats it"
        )
    folders = [path.name for path in Path().glob("*/") if path.is_dir()]
    neither = "no folder of that name is here either, see `samovar list recipes`"
    advice = suggest(word, [*recipes.RECIPES, *folders], instead=neither)
    return ValueError(f"unknown recipe {word!r}; {advice}")


def choose(word: str, line: Line, own: tuple[Flag, ...], *, scratch: bool) -> Choice:
    """Return settings for a folder of images.

    Pretrained weights are fine-tuned below `recipes.ENOUGH` training images and where `--init`
    gives weights; else a network is trained from scratch.

    Raises:
        ValueError: no folder that can train, or flags that contradict it."""
    path = word.removeprefix(_PREFIX)
    _refuse_others(path, word)
    start = Config(init="", data=replace(recipes.transfer().data, source=_PREFIX + path))
    command = f"train {word}"
    given = frozenset(given_settings(start, line.settings))
    config = parse_settings(start, line.settings, command, own)
    if "data.source" in given:
        raise ValueError(
            f"{word} and --data.source {config.data.source} both say where the images are; "
            "leave one of them out"
        )
    if scratch and config.init:
        raise ValueError(f"--scratch and --init {config.init} exclude each other; give one of them")
    number = count_images(config.data.source, config.data.val_share, config.data.fraction)
    batch = config.data.batch_size if "data.batch_size" in given else 0
    enough = f"{recipes.ENOUGH:,}"
    if scratch or (number >= recipes.ENOUGH and not config.init):
        base = replace(recipes.photos(number, batch), recipe="photos")
        why = "--scratch is given" if scratch else f"{enough} or more"
        reason = f"{number:,} training images, {why}: training from scratch, recipe photos"
        other = "" if scratch else "; --init NAME, RUN or FILE fine-tunes"
        name = config.model.name if "model.name" in given else base.model.name
        weights = f"network: {name} at random; --model.name gives another"
    else:
        base = replace(recipes.transfer(number, batch), recipe="transfer")
        why = "--init is given" if config.init else f"fewer than {enough}"
        reason = f"{number:,} training images, {why}: fine-tuning, recipe transfer"
        other = "; --scratch trains from scratch"
        side = config.data.image_size or 224
        init = config.init or recipes.weights_for(side)
        base = replace(base, init=init)
        weights = f"weights: {init}, from --init"
        if not config.init:
            weights = (
                f"weights: {init}, the default for images of {side} pixels; "
                "--init NAME, RUN or FILE gives others"
            )
    base = replace(base, data=replace(base.data, source=config.data.source))
    return Choice(base, number, f"{path}: {reason}{other}", weights)


def why_lines(choice: Choice, config: Config) -> tuple[str, ...]:
    """Return three lines on what is done with a folder and why.

    Args:
        choice: the settings before flags.
        config: the settings after them."""
    number = choice.num_images
    steps = configs.num_steps(config, number)
    batch, optim = config.data.batch_size, config.optim
    rates = " ".join(f"{lr:g}" for lr in config.grid.lr or (optim.lr,))
    sizes = (
        f"sizes: {steps:,} steps of {batch} images ({steps * batch / number:.3g} epochs), "
        f"warm-up {optim.warmup_steps:,}, lr {rates}, from the number of images; flags change them"
    )
    return choice.reason, choice.weights, sizes


def _refuse_others(path: str, word: str) -> None:
    """Refuse what can be typed in place of a folder: a run, a file, nothing."""
    if not path:
        raise ValueError(f"{word} names no folder; give folder:PATH")
    if (Path(path) / "config.json").is_file():
        raise ValueError(
            f"{path} is a run, not a folder of images; --resume {path} continues it, "
            f"--config {Path(path) / 'config.json'} trains it again"
        )
    if Path(path).is_file():
        raise ValueError(
            f"{path} is a file; give a folder of images, or settings as --config {path}"
        )
