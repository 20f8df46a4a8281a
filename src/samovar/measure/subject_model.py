"""The network of a subject: with its weights, behind its normalization, fit for the images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from samovar.config import Config, MeasureConfig, ModelConfig
from samovar.data.splits import Source
from samovar.models.built_size import at_most
from samovar.models.factory import Classifier, create, network
from samovar.models.load import load_init
from samovar.models.normalization import Normalization, settle
from samovar.models.open import Opened
from samovar.models.table import has_constructor
from samovar.runs import checkpoint
from samovar.runs.checkpoint import Checkpoint
from samovar.runs.records import RunDir
from samovar.runtime import seed_everything


def check_fits(opened: Opened, source: Source) -> None:
    """Raise ValueError for images of classes that a network was not trained on."""
    same = opened.num_classes == len(source.classes) and opened.channels == source.channels
    if not same:
        raise ValueError(
            f"{opened.name} classifies images of {opened.channels} channels into "
            f"{opened.num_classes} classes, and {source.name} has {source.channels} and "
            f"{len(source.classes)}; give --source with images of the model's classes"
        )
    if opened.classes != tuple(source.classes) and set(opened.classes) == set(source.classes):
        raise ValueError(
            f"{opened.name} and {source.name} have the same classes in another order; "
            "give --source with folders that sort in the order of the model's classes"
        )


def created(
    name: str, base: Config, config: MeasureConfig, run: RunDir | None, source: Source
) -> tuple[Classifier, Normalization, dict[str, Any], int]:
    """Create the network of a run, or one that belongs to none.

    Returns:
        The network, its normalization, the settings that name its weights, and their step."""
    size, num_classes = base.data.image_size, len(source.classes)
    saved = None if run is None or config.checkpoint == "init" else _saved(run, config)
    sizes = {"num_classes": num_classes, "image_size": size, "channels": source.channels}
    # a config that does not fit its weights may ask for any amount of memory
    if saved and not has_constructor(base.model.name):
        with torch.device("meta"), at_most(saved[1].model):
            create(base.model, **sizes)
    # --checkpoint init gives the weights that the run began with
    seed_everything(base.seed if run else config.seed)
    if run is None:
        model, pixels = normalized(network(base.model, **sizes), base.model, config, source)
    else:
        model = create(base.model, **sizes)
        pixels = Normalization(base.model.mean, base.model.std, "the run's config")
    try:
        return model, pixels, *_load_weights(model, base, saved)
    except RuntimeError:  # in place of torch's list of every tensor that does not fit
        raise ValueError(
            f"the weights of {name} do not fit images of {base.data.source}: {num_classes} "
            f"classes, {source.channels} channels, {size} px; "
            "give --source with the data it was trained on"
        ) from None


def normalized(
    body: nn.Module, model: ModelConfig, config: MeasureConfig, source: Source, told: str = ""
) -> tuple[Classifier, Normalization]:
    """Put a network that belongs to no run behind its normalization.

    Args:
        body: the network, or a `Classifier` that was opened with its weights.
        model: its name, and the normalization of a network of ours, of timm or of a file.
        config: the flags.
        source: the images.
        told: who says what `model` has; empty where that is the name of the network."""
    if config.mean or config.std or (has_constructor(model.name) and not told):
        return settle(body, model.name, source.channels, config.mean, config.std)
    known = Normalization(model.mean, model.std, told or f"the default for {model.name}")
    ready = body if isinstance(body, Classifier) else Classifier(body, model.mean, model.std)
    return ready, known


def _saved(run: RunDir, config: MeasureConfig) -> tuple[str, Checkpoint]:
    """Return the name and the content of the checkpoint that `config.checkpoint` names."""
    path = checkpoint.choose(run.checkpoints, config.checkpoint)
    return path.name, checkpoint.load(path)


def _load_weights(
    model: Classifier, base: Config, saved: tuple[str, Checkpoint] | None
) -> tuple[dict[str, Any], int]:
    """Load a checkpoint into the model; without one it stays at its initialisation.

    Returns:
        The settings that name the weights, and their step."""
    if saved is None:
        started = {"init": "; ".join(load_init(model, base))} if base.init else {}
        name = base.model.name
        weights = f"as returned by {name}" if has_constructor(name) else "initialisation"
        return {"weights": weights} | started, 0
    name, found = saved
    model.body.load_state_dict(found.ema or found.model)
    return {"weights": ("average of " if found.ema else "") + name}, found.step
