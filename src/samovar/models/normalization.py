"""The normalization of images before a network: mean and std, and where they are known from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg
from torch import Tensor, nn

from samovar.anymodel.restore import bare
from samovar.config import ModelConfig
from samovar.models.factory import Classifier

Pixels: TypeAlias = "tuple[float, ...] | Literal['imagenet', 'timm', 'none']"
"""A value of `--mean` or `--std`; an empty tuple is none given."""

_PAIRS = (
    ("mean", "std"),
    ("mu", "sigma"),
    ("image_mean", "image_std"),
    ("pixel_mean", "pixel_std"),
)
"""Names under which layers that normalize keep their numbers."""


@dataclass(frozen=True)
class Normalization:
    """What is subtracted from images in [0, 1], what divides them then, and who says so."""

    mean: tuple[float, ...]
    """One value, or one a channel."""
    std: tuple[float, ...]
    """One value, or one a channel."""
    source: str
    """Where the numbers are from, to be read after a colon."""

    @property
    def line(self) -> str:
        """One line for the reader."""
        return f"images are normalized with {_written(self)}: {self.source}"

    @property
    def settings(self) -> dict[str, Any]:
        """The entries of a record."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "normalization_from": self.source,
        }


def settle(
    body: nn.Module, name: str, channels: int, mean: Pixels = (), std: Pixels = ()
) -> tuple[Classifier, Normalization]:
    """Put a network behind its normalization.

    These are asked in turn: the flags; a `Classifier`; a layer of the network that normalizes, in
    front of which nothing is added; timm's `pretrained_cfg`; the image processor of Hugging Face.
    If all are silent, mean and std are 0.5, and the source says that this is assumed.

    Args:
        body: the network; a `Classifier` is taken as it is, unless flags are given.
        name: what to call the network in messages.
        channels: of the images.
        mean, std: values of the flags.

    Raises:
        ValueError: flags that do not fit each other, the channels or the network."""
    inner = body.body if isinstance(body, Classifier) else body
    if mean or std:
        found = _flagged(inner, name, channels, mean, std)
    elif isinstance(body, Classifier):
        return body, _of_classifier(body, f"the Classifier that {name} returned")
    else:
        found = known(body, name, channels) or _assumed(name)
    return Classifier(inner, found.mean, found.std), found


def known(body: nn.Module, name: str, channels: int) -> Normalization | None:
    """Return the normalization that a network itself tells; None if it does not."""
    if layer := _own_layer(body):
        return Normalization((0.0,), (1.0,), f"none is added, since {name} normalizes ({layer})")
    return _fitted(_of_timm(body, name), channels) or _fitted(
        _of_hugging_face(body, name), channels
    )


def note_of_training(model: Classifier, config: ModelConfig, channels: int) -> str:
    """Return a line on the normalization with which a network of another package is trained.

    Args:
        model: the network behind its normalization.
        config: its name.
        channels: of the images."""
    used, told = _of_classifier(model, ""), known(model.body, config.name, channels)
    line = f"images are normalized with {_written(used)} (--model.mean, --model.std)"
    if told and not (_close(told.mean, used.mean) and _close(told.std, used.std)):
        line += f"; {config.name} asks for {_written(told)}: {told.source}"
    return line


def _of_classifier(model: Classifier, source: str) -> Normalization:
    mean, std = (tuple(map(float, each.flatten())) for each in (model.mean, model.std))
    return Normalization(mean, std, source)


def _written(found: Normalization) -> str:
    mean, std = (" ".join(f"{x:.4g}" for x in values) for values in (found.mean, found.std))
    return f"mean {mean}, std {std}"


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    wide = max(len(a), len(b))
    a, b = (tuple(each) * (wide if len(each) == 1 else 1) for each in (a, b))
    return len(a) == len(b) and all(abs(x - y) < 1e-4 for x, y in zip(a, b, strict=True))


def _assumed(name: str) -> Normalization:
    free = ModelConfig()
    return Normalization(
        free.mean,
        free.std,
        f"assumed, since {name} does not say; all numbers are wrong if it was trained with others; "
        "give --mean and --std, such as --mean imagenet",
    )


def _flagged(body: nn.Module, name: str, channels: int, mean: Pixels, std: Pixels) -> Normalization:
    """Return the normalization that the flags ask for."""
    if isinstance(mean, str) or isinstance(std, str):
        word = mean or std
        if std and mean and std != mean:
            raise ValueError(
                f"--mean {_flag(mean)} with --std {_flag(std)}: one word stands for both; "
                "give it once, or numbers for both"
            )
        return _named(str(word), body, name, channels)
    for flag, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            what = f"has {len(values)} values" if values else "is missing"
            raise ValueError(
                f"--{flag} {what}, and images have {channels} channels; give --mean and --std, "
                f"each with 1 or {channels} numbers"
            )
    return Normalization(mean, std, "given by --mean and --std")


def _flag(value: Pixels) -> str:
    return value if isinstance(value, str) else " ".join(map(str, value))


def _named(word: str, body: nn.Module, name: str, channels: int) -> Normalization:
    if word == "none":
        return Normalization((0.0,), (1.0,), "none, given by --mean none")
    told = (
        Normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "given by --mean imagenet")
        if word == "imagenet"
        else _of_timm(body, f"{name}, asked for by --mean timm")
    )
    if told is None:
        raise ValueError(
            f"--mean timm: {name} has no pretrained_cfg of timm; give numbers, imagenet or none"
        )
    found = _fitted(told, channels)
    if found is None:
        raise ValueError(
            f"--mean {word} has {len(told.mean)} values, and images have {channels} channels; "
            "give --mean and --std as numbers"
        )
    return found


def _fitted(told: Normalization | None, channels: int) -> Normalization | None:
    """Return the numbers for images of so many channels; None if they do not fit.

    A gray image takes the mean of the numbers for colors."""
    if told is None or {len(told.mean), len(told.std)} <= {1, channels}:
        return told
    if channels != 1:
        return None
    mean, std = (sum(values) / len(values) for values in (told.mean, told.std))
    return Normalization((mean,), (std,), f"{told.source}, averaged over colors")


# --- what networks tell


def _own_layer(body: nn.Module) -> str:
    """Return the name of the part of a network that normalizes its images; empty if none does."""
    body = bare(body)
    first = dict(_first_layers(body))
    # layers at the top wherever they stand, as networks seldom define layers in their order
    for name, module in {"": body, **dict(body.named_children()), **first}.items():
        pairs = [(getattr(module, one, None), getattr(module, two, None)) for one, two in _PAIRS]
        title = type(module).__name__
        # by its name, since layers that add noise have a mean and a std as well
        says_so = re.search("(normal|standard)i[sz]", title, re.IGNORECASE) and not any(
            True for _ in module.parameters()
        )
        is_one = (name in first or any(_are_numbers(*pair) for pair in pairs)) and says_so
        if is_one or any(_are_fixed_tensors(*pair) for pair in pairs):
            return name or title
    return ""


def _are_numbers(*values: object) -> bool:
    return all(isinstance(each, Tensor | float | tuple | list) for each in values)


def _are_fixed_tensors(*values: object) -> bool:
    return all(isinstance(each, Tensor) and not each.requires_grad for each in values)


def _first_layers(body: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the first child of a network, the first child of that, and so on."""
    path = ""
    while child := next(iter(body.named_children()), None):
        path, body = f"{path}.{child[0]}".lstrip("."), child[1]
        yield path, body


def _of_timm(body: nn.Module, name: str) -> Normalization | None:
    """Return mean and std of the first part of a network that timm built."""
    for module in body.modules():
        for key in ("pretrained_cfg", "default_cfg"):
            config: Any = getattr(module, key, None)
            if isinstance(config, PretrainedCfg):
                config = vars(config)
            if isinstance(config, Mapping) and config.get("mean") and config.get("std"):
                source = f"timm's {key} of {name}"
                return Normalization(tuple(config["mean"]), tuple(config["std"]), source)
    return None


def _of_hugging_face(body: nn.Module, name: str) -> Normalization | None:
    """Return mean and std of the image processor that belongs to a part of a network."""
    for module in body.modules():
        config = getattr(module, "config", None)
        holders = (getattr(module, "image_processor", None), getattr(module, "processor", None))
        for holder in (*holders, config):
            if found := _of_processor(holder, name):
                return found
        # loaded by transformers, which has written down from where
        path = getattr(config, "_name_or_path", "")
        by_transformers = any(
            c.__module__.startswith("transformers.") for c in type(module).__mro__
        )
        if by_transformers and path:
            return _of_processor(_processor(path), name)
    return None


def _processor(path: str) -> Any:
    """Return the image processor beside a model of Hugging Face; None if there is none."""
    import transformers

    reader: Any = transformers.AutoImageProcessor
    try:
        return reader.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, ImportError):
        return None


def _of_processor(holder: Any, name: str) -> Normalization | None:
    holder = getattr(holder, "image_processor", holder)  # of a processor for images and text
    mean, std = getattr(holder, "image_mean", None), getattr(holder, "image_std", None)
    source = f"Hugging Face's {type(holder).__name__} of {name}"
    # pixels from 0 to 255 are scaled first, by default to [0, 1]
    scale = getattr(holder, "rescale_factor", 1 / 255) if _does(holder, "rescale") else 1.0
    if not _does(holder, "normalize"):
        mean, std = (0.0,), (1.0,)
    if mean is None or std is None:
        return None
    both = ([each] if isinstance(each, int | float) else each for each in (mean, std))
    mean, std = (tuple(x / (255 * scale) for x in values) for values in both)
    return Normalization(mean, std, source)


def _does(holder: Any, what: str) -> bool:
    found = getattr(holder, f"do_{what}", True)
    return True if found is None else bool(found)
