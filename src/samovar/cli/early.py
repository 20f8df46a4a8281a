"""Checks of names and paths that need no torch, which takes seconds to import."""

from __future__ import annotations

import re
from pathlib import Path

from samovar import config as configs
from samovar.config import Config
from samovar.data.catalog import refuse_missing_source
from samovar.models import known
from samovar.models.table import MODELS, check_patch
from samovar.runtime import DEVICES
from samovar.words import in_words_of


def check(config: Config, *, download: bool = False, data: bool = True) -> None:
    """Refuse settings of a run that name something that is not there.

    Args:
        config: the settings.
        download: also ask the network whether the weights of `--init` can be had.
        data: also refuse a missing folder of images; a rehearsal needs none.

    Raises:
        ValueError: names the flag, what was given, and what is near it."""
    check_device(config.run.device)
    if data:
        refuse_missing_source(config.data.source)
    for stage in configs.stages(config):
        known.refuse_unknown_optimizer(stage.optim.name)
    if config.model.name:
        known.refuse_unknown_model(config.model.name)
    # the size of --init may be another one
    row = MODELS.get(config.model.name)
    patch = row.patch if row else _patch_in_name(config.model.name)
    if config.data.image_size:
        check_patch(patch, config.data.image_size)
    if config.init:
        with in_words_of("--init"):
            known.refuse_missing(config.init, download=download)
    if not config.init or known.kind(config.init) == "file":
        known.refuse_silent(config.init, None, config.model)


def _patch_in_name(name: str) -> int:
    """Return the patch of a plain ViT of timm, which its name says; 0 for other networks."""
    found = re.match(r"(?:vit|deit|deit3)_(?:tiny|small|base|large)_patch(\d+)_(?:224|384)\b", name)
    return int(found[1]) if found else 0


def check_device(name: str) -> None:
    """Refuse a word that is no device.

    Raises:
        ValueError: names those that are."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", name):
        raise ValueError(f"--run.device {name} is no device; give {DEVICES}")


def check_weights(what: str, name: str = "") -> None:
    """Refuse a trained network of `export` or `predict` that is not there.

    Args:
        what: a run folder, an exported folder, a file or a timm name.
        name: the network of a bare file.

    Raises:
        ValueError: suggests the closest name."""
    # what is there is looked at when it is opened
    if ":" not in what and not Path(what).exists():
        known.refuse_missing(what)
    if name:
        known.refuse_unknown_model(name)
