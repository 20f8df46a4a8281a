"""A folder in the layout of timm's models on a hub: `config.json` that names the architecture, and
its weights.

`timm.create_model("local-dir:PATH", pretrained=True)` opens the same. Reading the description needs
no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_GREY = (0.5,)


@dataclass(frozen=True)
class Described:
    """What `config.json` says of the weights beside it."""

    architecture: str
    """timm's name of the network."""
    num_classes: int
    """Logits K."""
    args: dict[str, Any]
    """Further arguments of `timm.create_model`."""
    mean: tuple[float, ...]
    """Subtracted from images in [0, 1]."""
    std: tuple[float, ...]
    """Divides them after that."""
    channels: int
    """Colours of a pixel, C."""
    image_size: int
    """Height and width in pixels."""
    classes: tuple[str, ...]
    """Names of the classes; empty where it has none."""


def is_one(folder: Path) -> bool:
    """Whether a folder's `config.json` names an architecture, as timm's do and a run's does not."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # none there, or one that the reader of runs will say more about
    return isinstance(found, dict) and "architecture" in found


def describe(folder: Path) -> Described:
    """What `config.json` says.

    Raises:
        ValueError: it says too little to build the network."""
    found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    pixels = found.get("pretrained_cfg", found)  # before 2023 timm wrote all of it side by side
    args = dict(found.get("model_args") or {})
    classes = found.get("label_names") or pixels.get("label_names") or ()
    num_classes = (
        args.pop("num_classes", None) or found.get("num_classes") or pixels.get("num_classes")
    )
    if not num_classes:
        raise ValueError(
            f"{folder / CONFIG} names the architecture but no num_classes; export the model anew"
        )
    channels, *sides = pixels.get("input_size") or (args.get("in_chans", 3), 224)
    given = args.get("img_size", sides[-1])  # what the network was built with, where it says
    return Described(
        found["architecture"],
        int(num_classes),
        args,
        tuple(pixels.get("mean") or _GREY),
        tuple(pixels.get("std") or _GREY),
        int(channels),
        int(given if isinstance(given, int) else given[-1]),
        tuple(map(str, classes)),
    )
