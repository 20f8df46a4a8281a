"""Read a folder in timm's hub layout: `config.json` with the architecture, and weights beside it.

`timm.create_model("local-dir:PATH", pretrained=True)` opens the same folder. Reading the
description needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_GREY = (0.5,)


@dataclass(frozen=True)
class Described:
    """The content of `config.json`: the network and how images are prepared for it."""

    architecture: str
    """timm's name of the network."""
    num_classes: int
    """Number of logits K."""
    args: dict[str, Any]
    """Further arguments of `timm.create_model`."""
    mean: tuple[float, ...]
    """Value per channel that is subtracted from images in [0, 1]."""
    std: tuple[float, ...]
    """Value per channel by which images are divided after that."""
    channels: int
    """Color channels C."""
    image_size: int
    """Height and width in pixels."""
    classes: tuple[str, ...]
    """Class names; empty if the file has none."""


def is_one(folder: Path) -> bool:
    """Return whether a folder's `config.json` names an architecture; that of a run does not."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # if the file is damaged, the reader of runs says so
    return isinstance(found, dict) and "architecture" in found


def describe(folder: Path) -> Described:
    """Read `config.json`.

    Raises:
        ValueError: it says too little to build the network."""
    found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    pixels = found.get("pretrained_cfg", found)  # before 2023 timm wrote one flat dict
    args = dict(found.get("model_args") or {})
    classes = found.get("label_names") or pixels.get("label_names") or ()
    num_classes = (
        args.pop("num_classes", None) or found.get("num_classes") or pixels.get("num_classes")
    )
    if not num_classes:
        raise ValueError(
            f"{folder / CONFIG} names the architecture but no num_classes; export the model again"
        )
    channels, *sides = pixels.get("input_size") or (args.get("in_chans", 3), 224)
    given = args.get("img_size", sides[-1])  # the size the network was built with wins
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
