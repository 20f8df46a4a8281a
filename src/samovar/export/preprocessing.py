"""What a classifier takes and gives, as a file beside it can say: how images are prepared, class
names, probabilities.

Images are read and brought to the model's size by the functions that evaluation uses, so the same
file gives the same logits here and there."""

from __future__ import annotations

import json
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

KEY = "samovar"
"""Under which an export says all this."""


@dataclass(frozen=True)
class Interface:
    """What goes into a classifier and what comes out of it."""

    classes: tuple[str, ...]
    """Names by index, [K]; the index itself where nobody tells a name."""
    image_size: int
    """Height and width in pixels."""
    channels: int
    """Colours of a pixel: 1 is grey, 3 is RGB."""
    whole: bool
    """Whether an image is scaled whole to the square; else its shorter side, then a central
    crop."""
    loss: Loss
    """What it was trained by: of `sigmoid` each class has a probability of its own, and they need
    not add up to 1."""


def interface_of(opened: Opened) -> Interface:
    """The interface of an opened model: as an export of ours says, as its run was evaluated, else
    that of photos.

    Raises:
        ValueError: an export that says too little."""
    folder = Path(opened.name)
    if timm_folder.is_one(folder):
        found = json.loads((folder / timm_folder.CONFIG).read_text(encoding="utf-8")).get(KEY)
        if found is not None:
            return replace(from_dict(found), image_size=opened.image_size)
    loss = configs.load(folder / "config.json").loss if opened.data else "softmax"
    return Interface(
        opened.classes or tuple(map(str, range(opened.num_classes))),
        opened.image_size,
        opened.channels,
        whole=opened.data is not None and has_one_size(opened.data),
        loss="sigmoid"
        if loss == "sigmoid"
        else "softmax",  # contrastive runs end in a softmax classifier
    )


def to_dict(interface: Interface) -> dict[str, Any]:
    """Plain values, ready for JSON."""
    return asdict(interface)


def from_dict(values: Any) -> Interface:
    """The interface of what `to_dict` made.

    Raises:
        ValueError: a value that is missing or of another kind."""
    hints: dict[str, type] = {
        "classes": list,
        "image_size": int,
        "channels": int,
        "whole": bool,
        "loss": str,
    }
    for name, kind in hints.items():
        if not isinstance(values, dict) or not isinstance(values.get(name), kind):
            raise ValueError(f"{name!r} is missing among what is said of the model; export it anew")
    found = Interface(
        **{name: values[name] for name in hints} | {"classes": tuple(map(str, values["classes"]))}
    )
    if found.loss not in ("softmax", "sigmoid") or found.image_size < 1:
        raise ValueError(
            f"a model of {found.image_size} pixels trained by {found.loss} is none of ours"
        )
    return found


def read_image(path: Path, interface: Interface) -> Tensor:
    """An image file as evaluation shows it to the model: [C, S, S] uint8.

    Raises:
        UnreadableImage: empty, truncated, damaged or no image.
        OSError: no file that can be read."""
    pixels = decode(path.read_bytes(), interface.channels)
    return frame(pixels[None], interface.image_size, fixed=interface.whole)[0]


def probabilities(logits: Tensor, interface: Interface) -> Tensor:
    """Probabilities of logits [B, K]: softmax over the classes, or the sigmoid of each under the
    sigmoid loss."""
    return logits.softmax(1) if interface.loss == "softmax" else logits.sigmoid()


def resize_side(interface: Interface) -> int:
    """Pixels that the shorter side of an image is scaled to before the central crop; the crop
    itself if whole."""
    size = interface.image_size
    return size if interface.whole else max(size, round(size * 256 / 224))
