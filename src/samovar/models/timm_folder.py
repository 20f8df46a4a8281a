"""Read a folder in timm's hub layout: `config.json` with the architecture, and weights beside it.

`timm.create_model("local-dir:PATH", pretrained=True)` opens the same folder. Reading the
description needs no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samovar.runs.json_files import read_object

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_GREY = (0.5,)
_FACTORY = frozenset(
    (
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args"),
        *("pretrained_strict", "pretrained_filter_fn", "checkpoint_path", "cache_dir"),
        *("scriptable", "exportable", "no_jit", "device", "dtype", "features_only", "feature_cfg"),
        *("kwargs_filter", "model_cfg"),
    )
)
"""Arguments of timm's factories that are none of the network; some of them fetch files."""
_MOST = {"num_classes": 1_000_000, "channels": 1024, "image_size": 4096}
"""Largest numbers that a description may give."""
_MOST_ARGUMENT = 65_536
"""Largest whole number among the arguments of a network, such as its width."""


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
        return "architecture" in read_object(folder / CONFIG)
    except ValueError:
        return False  # if the file is damaged, the reader of runs says so


def describe(folder: Path) -> Described:
    """Read `config.json`.

    Raises:
        ValueError: it says too little to build the network, asks for what lies elsewhere, or has
            values that no network has."""
    file = folder / CONFIG
    found = read_object(file)
    try:
        return _described(found, file)
    except (TypeError, AttributeError, LookupError, OverflowError) as error:
        raise ValueError(f"{file} does not describe a network: {error}") from error


def _described(found: dict[str, Any], file: Path) -> Described:
    architecture = found["architecture"]
    # timm would take hf-hub:USER/NAME, a URL or local-dir:PATH here, and fetch what they name
    if not isinstance(architecture, str) or not re.fullmatch(r"\w+(\.\w+)?", architecture):
        raise ValueError(
            f"{file} names {str(architecture)[:80]!r} as its architecture, which lies outside of "
            f"the folder and is not fetched; give {file.with_name(WEIGHTS)} --model NAME"
        )
    pixels = found.get("pretrained_cfg", found)  # before 2023 timm wrote one flat dict
    args = dict(found.get("model_args") or {})
    if refused := sorted(_FACTORY & set(args)):
        raise ValueError(
            f"{file} gives timm {', '.join(refused)}, which is no argument of a network; "
            "remove it from model_args"
        )
    classes = found.get("label_names") or pixels.get("label_names") or ()
    num_classes = (
        args.pop("num_classes", None) or found.get("num_classes") or pixels.get("num_classes")
    )
    if not num_classes:
        raise ValueError(
            f"{file} names the architecture but no num_classes; export the model again"
        )
    channels, *sides = pixels.get("input_size") or (args.get("in_chans", 3), 224)
    given = args.get("img_size", sides[-1])  # the size the network was built with wins
    described = Described(
        architecture,
        int(num_classes),
        args,
        tuple(map(float, pixels.get("mean") or _GREY)),
        tuple(map(float, pixels.get("std") or _GREY)),
        int(channels),
        int(given if isinstance(given, int) else given[-1]),
        tuple(map(str, classes)),
    )
    _check(described, file)
    return described


def _check(found: Described, file: Path) -> None:
    """Refuse numbers that no network has, before anything is built by them.

    Raises:
        ValueError: names the number."""
    for name, most in _MOST.items():
        if not 1 <= getattr(found, name) <= most:
            raise ValueError(f"{file}: {name} {getattr(found, name)} is not within 1 to {most:,}")
    if found.classes and len(found.classes) != found.num_classes:
        raise ValueError(f"{file} names {len(found.classes)} of {found.num_classes} classes")
    for name in ("mean", "std"):
        values = getattr(found, name)
        if not all(map(math.isfinite, values)) or len(values) not in (1, found.channels):
            raise ValueError(
                f"{file}: {name} {values[:8]} are not 1 or {found.channels} finite numbers"
            )
    if min(found.std) <= 0:
        raise ValueError(f"{file}: std {found.std} divides by a number that is not positive")
    for name, value in found.args.items():
        large = [n for n in _numbers(value) if not abs(n) <= _MOST_ARGUMENT]
        if large:
            raise ValueError(f"{file}: {name} {large[0]} in model_args is above {_MOST_ARGUMENT:,}")


def _numbers(value: Any) -> Iterator[float]:
    """Yield the numbers in a value of JSON."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)
