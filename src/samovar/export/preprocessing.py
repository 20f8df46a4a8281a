"""The input and output of a classifier: how images are prepared, class names, probabilities.

An export saves this beside the model. Images are read and resized by the functions of
evaluation, so the same file gives the same logits in both."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from samovar import config as configs
from samovar.config import Loss
from samovar.data.decode import decode
from samovar.data.pipeline import frame
from samovar.data.sources import has_one_size
from samovar.models import timm_folder
from samovar.models.open import Opened
from samovar.runs.json_files import read_object
from samovar.words import read_regular

KEY = "samovar"
"""Key of the interface in an export's files."""


@dataclass(frozen=True)
class Interface:
    """The input and output of a classifier."""

    classes: tuple[str, ...]
    """Class names by index, [K]; the index itself where no name is known."""
    image_size: int
    """Height and width in pixels."""
    channels: int
    """Color channels: 1 is gray, 3 is RGB."""
    whole: bool
    """Whether an image is scaled whole; else by its shorter side, with a central crop."""
    loss: Loss
    """Training loss; under `sigmoid` the probabilities of the classes need not add up to 1."""


def interface_of(opened: Opened) -> Interface:
    """Return the interface of an opened model: from our export, from its run, else one for photos.

    Raises:
        ValueError: an export that says too little."""
    folder = Path(opened.name)
    if timm_folder.is_one(folder):
        found = read_object(folder / timm_folder.CONFIG).get(KEY)
        if found is not None:
            return _agreed(replace(from_dict(found), image_size=opened.image_size), opened)
    loss = configs.load(folder / "config.json").loss if opened.data else "softmax"
    return Interface(
        opened.classes or tuple(map(str, range(opened.num_classes))),
        opened.image_size,
        opened.channels,
        whole=opened.data is not None and has_one_size(opened.data),
        # contrastive runs end with a softmax classifier
        loss="sigmoid" if loss == "sigmoid" else "softmax",
    )


def _agreed(interface: Interface, opened: Opened) -> Interface:
    """Return an interface that a file states, if it is that of the file's network.

    Raises:
        ValueError: another number of classes or channels."""
    stated = len(interface.classes), interface.channels
    if stated != (opened.num_classes, opened.channels):
        raise ValueError(
            f"{opened.name} states {stated[0]} classes and {stated[1]} channels, its network has "
            f"{opened.num_classes} and {opened.channels}; export the model again"
        )
    return interface


def to_dict(interface: Interface) -> dict[str, Any]:
    """Return the interface as plain values, ready for JSON."""
    return asdict(interface)


def from_dict(values: Any) -> Interface:
    """Return the interface from the values of `to_dict`.

    Raises:
        ValueError: a value that is missing or of another type."""
    # a copy may come from anywhere, so nothing in it is trusted
    hints: dict[str, type] = {
        "classes": list,
        "image_size": int,
        "channels": int,
        "whole": bool,
        "loss": str,
    }
    for name, kind in hints.items():
        if not isinstance(values, dict) or not isinstance(values.get(name), kind):
            raise ValueError(
                f"the export's interface has no valid {name!r}; export the model again"
            )
    found = Interface(
        **{name: values[name] for name in hints} | {"classes": tuple(map(str, values["classes"]))}
    )
    if found.loss not in ("softmax", "sigmoid") or found.image_size < 1:
        raise ValueError(
            f"the export's interface has {found.image_size} pixels and loss {found.loss!r}; "
            "export the model again"
        )
    return found


def read_image(path: Path, interface: Interface) -> Tensor:
    """Read an image file as evaluation shows it to the model: [C, S, S] uint8.

    Raises:
        UnreadableImage: the file is empty, truncated, damaged or no image.
        OSError: the file cannot be read."""
    pixels = decode(read_regular(path), interface.channels)
    return frame(pixels[None], interface.image_size, fixed=interface.whole)[0]


def probabilities(logits: Tensor, interface: Interface) -> Tensor:
    """Return the probabilities of logits [B, K]: softmax, or sigmoids under the sigmoid loss."""
    return logits.softmax(1) if interface.loss == "softmax" else logits.sigmoid()


def resize_side(interface: Interface) -> int:
    """Return the pixels that the shorter side is scaled to before the central crop.

    It is the size of the crop itself if the image is scaled whole."""
    size = interface.image_size
    return size if interface.whole else max(size, round(size * 256 / 224))
