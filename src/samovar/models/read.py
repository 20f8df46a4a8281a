"""Weights by name: of a run, a timm model with pretrained weights, a folder in timm's layout, or a
file of tensors.

torch and timm are imported where tensors are read, so that what a run's settings say is known
without them."""

from __future__ import annotations

import logging
import pickle
import re
import struct
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from samovar import config as configs
from samovar import words
from samovar.config import ModelConfig
from samovar.models import timm_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth", ".pt", ".npz")
"""Of files of weights; `.npz` is of Google's Flax code."""
_NESTS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training programs save weights, averaged ones first."""
_DAMAGED = (EOFError, LookupError, TypeError, AttributeError, UnicodeDecodeError, struct.error)
"""What torch's reader of pickles raises, besides errors of its own, where bytes are no pickle."""
_PREFIXES = ("module.", "_orig_mod.", "body.")
"""Put before every name by DDP, `torch.compile` and our `Classifier`."""


Kind = Literal["run", "folder", "file", "timm"]


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and what is known of the network they are of."""

    name: str
    """What to call them in a message."""
    tensors: dict[str, Tensor]
    model: ModelConfig | None
    """Name and normalization; None of a bare file."""
    image_size: int
    """Side in pixels of the images they were trained on; 0 of a bare file."""


def read_init(what: str) -> Weights:
    """The weights that `--init` names, on the CPU: of a run its best checkpoint, averaged where it
    keeps an average.

    Raises:
        ValueError: as `read`."""
    with _in_words_of("--init"):
        return read(what)


def read(what: str) -> Weights:
    """The weights of this name, on the CPU: of a run its best checkpoint, averaged where it keeps
    an average.

    Raises:
        ValueError: an unknown name (with the nearest), weights that cannot be downloaded, a file
            that is damaged or holds more than tensors."""
    found = kind(what)
    model, image_size = _facts(what)
    if found == "run":
        name, tensors = _read_run(Path(what))
    elif found == "folder":
        name, tensors = what, _read_file(Path(what) / timm_folder.WEIGHTS)
    else:
        name, tensors = what, _read_file(Path(what)) if found == "file" else _read_timm(what)
    return Weights(name, tensors, model, image_size)


def kind(what: str) -> Kind:
    """What a name is of: a `run`, a `folder` in timm's layout, a `file`, else a `timm` model.

    Raises:
        ValueError: a folder that is neither of the two."""
    path = Path(what)
    if timm_folder.is_one(path):
        return "folder"
    if (path / "config.json").is_file():
        return "run"
    if path.is_dir():
        raise ValueError(
            f"{what} is no run: it has no config.json; give a run folder, a timm name or a file of weights"
        )
    return "file" if path.is_file() or path.suffix in SUFFIXES else "timm"


def facts(what: str) -> tuple[ModelConfig | None, int]:
    """Name and normalization of the network that the weights of `--init` are of, and its image
    size.

    None and 0 of a bare file. Needs no torch for a run or a file.

    Raises:
        ValueError: an unknown name (with the nearest)."""
    with _in_words_of("--init"):
        return _facts(what)


def _facts(what: str) -> tuple[ModelConfig | None, int]:
    found = kind(what)
    if found == "run":
        config = configs.load(Path(what) / "config.json")
        return config.model, config.data.image_size
    if found == "file":
        return None, 0
    if found == "folder":
        described = timm_folder.describe(Path(what))
        name = described.architecture
        pixels = ModelConfig(mean=described.mean, std=described.std)
        return replace(pixels, name=_tagged(name)), described.image_size
    known = _pretrained(what)
    name = what.partition(".")[0] + (
        f".{known.tag}" if known.tag else ""
    )  # with its tag no name hides timm's
    return ModelConfig(name=name, mean=tuple(known.mean), std=tuple(known.std)), known.input_size[
        -1
    ]


@contextmanager
def _in_words_of(flag: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{flag} {error}") from error


def _read_run(folder: Path) -> tuple[str, dict[str, Tensor]]:
    from samovar.runs import checkpoint

    path = checkpoint.choose(folder / "checkpoints", "best")
    found = checkpoint.load(path)
    return f"{'average of ' if found.ema else ''}{path.name} of {folder}", found.ema or found.model


def _pretrained(name: str) -> Any:
    """timm's facts of pretrained weights."""
    import timm

    if not (timm.is_model(name) and timm.is_model_pretrained(name)):
        advice = words.suggest(name, timm.list_pretrained(), instead="give one of these", count=3)
        raise ValueError(
            f"{name} is no run folder, no file and no timm model with pretrained weights; {advice}"
        )
    return timm.get_pretrained_cfg(name)


def _tagged(name: str) -> str:
    """timm's name of a network with a tag it knows, if there is one: with it no name of ours hides
    it."""
    import timm

    known = timm.get_pretrained_cfg(name)
    return f"{name}.{known.tag}" if known and known.tag and "." not in name else name


def _read_timm(name: str) -> dict[str, Tensor]:
    import timm

    try:
        with _quiet("huggingface_hub", "timm"):
            body: nn.Module = timm.create_model(name, pretrained=True)
    except (
        Exception
    ) as error:  # what downloads has errors of its own, and not all of them are OSErrors
        root: BaseException = error
        while root.__cause__ or root.__context__:
            root = root.__cause__ or root.__context__ or root
        reason = (str(root).strip() or type(root).__name__).splitlines()[0]
        raise ValueError(
            f"{name}: its weights are not in the cache and cannot be downloaded ({reason}); connect once, or "
            "give a file"
        ) from error
    return body.state_dict()


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without the warnings of these loggers, such as a line on each attempt at a download."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _read_file(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is a file of another kind; give one of {', '.join(SUFFIXES)}")
    if path.suffix == ".npz":
        from samovar.models.flax import read_npz

        return read_npz(path)
    try:
        if path.suffix == ".safetensors":
            return _named(load_file(path), path)
        # timm's training program saves its arguments beside the weights: plain values, nothing that
        # runs
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # on the pickle's version, before what it is refused for
            return _named(torch.load(path, map_location="cpu", weights_only=True), path)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it holds more than tensors and would call {found[1]}"
            if found
            else "it is no file of tensors"
        )
        raise ValueError(
            f"{path} is not read: {reason}; give a state_dict() saved by itself"
        ) from error
    except (OSError, RuntimeError, SafetensorError, *_DAMAGED) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read ({reason}); give a run folder, a timm name or a file"
        ) from error


def _named(found: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name in what a file holds, without what wrappers put around them."""
    from torch import Tensor

    while isinstance(found, dict) and (
        nest := next((key for key in _NESTS if isinstance(found.get(key), dict)), "")
    ):
        found = found[nest]
    tensors = (
        {key: value for key, value in found.items() if isinstance(value, Tensor)}
        if isinstance(found, dict)
        else {}
    )
    tensors.pop(
        "n_averaged", None
    )  # the one name that torch's AveragedModel leaves without its prefix
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name; give a state_dict() saved by itself")
    while prefix := next(
        (prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in tensors)), ""
    ):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
