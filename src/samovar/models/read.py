"""Read weights by name: of a run, of timm, of a folder in timm's layout, or of a file of tensors.

torch and timm are imported where tensors are read, so that the settings of a run are known
without them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samovar import config as configs
from samovar import words
from samovar.config import ModelConfig
from samovar.models import hub, nests, timm_folder
from samovar.models.known import Kind as Kind
from samovar.models.known import kind as kind
from samovar.models.tensor_files import read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and what is known of the network they belong to."""

    name: str
    """What to call them in a message."""
    tensors: dict[str, Tensor]
    model: ModelConfig | None
    """Name and normalization; None for a bare file."""
    image_size: int
    """Side in pixels of the training images; 0 for a bare file."""
    file: nests.Flat = field(default_factory=dict)
    """All tensors of a bare file, from which `for_network` chooses."""
    heads: int = 0
    """Attention heads that the file shows; 0: unknown."""


def read_init(what: str) -> Weights:
    """Read the weights that `--init` names, as `read` does, with errors that name the flag.

    Raises:
        ValueError: as `read`."""
    with words.in_words_of("--init"):
        return read(what)


def read(what: str) -> Weights:
    """Read the weights of this name onto the CPU.

    A run gives its best checkpoint, averaged where it keeps an average.

    Raises:
        ValueError: an unknown name (suggests the closest), weights that cannot be downloaded, or
            a file that is damaged or holds more than tensors."""
    found = kind(what)
    model, image_size = _facts(what)
    if found == "run":
        name, tensors = _read_run(Path(what))
    elif found == "folder":
        name, tensors = what, nests.usual(_read_file(Path(what) / timm_folder.WEIGHTS))
    elif found == "file":
        flat = _read_file(Path(what))
        heads = _heads(Path(what))
        return Weights(what, nests.usual(flat), model, image_size, flat, heads)
    else:
        name, tensors = what, _read_timm(what)
    return Weights(name, tensors, model, image_size)


def for_network(weights: Weights, body: nn.Module) -> Weights:
    """Return the weights that a network's names and shapes choose in a file.

    A file may hold several networks under keys and prefixes of any kind. Weights averaged over
    training win where others fit as well. Where they were is added to the name.

    Raises:
        ValueError: the file's attention has another number of heads. No name and no shape shows it,
            so the weights would load and compute something else."""
    own: set[int] = {getattr(layer, "num_heads", 0) for layer in body.modules()} - {0}
    if weights.heads and own and own != {weights.heads}:
        raise ValueError(
            f"{weights.name}: its attention has {weights.heads} heads, this network's "
            f"{' and '.join(map(str, sorted(own)))}; name the network that the file belongs to, "
            "or a function that makes it, module:function"
        )
    found = nests.matched(weights.file, body.state_dict())
    if found is None:
        return weights
    name = f"{weights.name} ({found.note})" if found.note else weights.name
    return replace(weights, name=name, tensors=found.tensors, file={})


def facts(what: str) -> tuple[ModelConfig | None, int]:
    """Return name and normalization of the network of `--init`, and its image size.

    They are None and 0 for a bare file. Needs no torch for a run or a file.

    Raises:
        ValueError: an unknown name (suggests the closest)."""
    with words.in_words_of("--init"):
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
    # a name of ours hides the same name of timm's, but never one with a tag
    name = what.partition(".")[0] + (f".{known.tag}" if known.tag else "")
    model = ModelConfig(name=name, mean=tuple(known.mean), std=tuple(known.std))
    return model, known.input_size[-1]


def _read_run(folder: Path) -> tuple[str, dict[str, Tensor]]:
    from samovar.runs import checkpoint

    path = checkpoint.choose(folder / "checkpoints", "best")
    found = checkpoint.load(path)
    return f"{'average of ' if found.ema else ''}{path.name} of {folder}", found.ema or found.model


def _pretrained(name: str) -> Any:
    """Return timm's configuration of pretrained weights."""
    import timm

    if not (timm.is_model(name) and timm.is_model_pretrained(name)):
        advice = words.suggest(name, timm.list_pretrained(), instead="give one of these", count=3)
        raise ValueError(
            f"{name} is no run folder, no file and no timm model with pretrained weights; {advice}"
        )
    return timm.get_pretrained_cfg(name)


def _tagged(name: str) -> str:
    """Add timm's tag to its name of a network, so that no name of ours hides it."""
    import timm

    known = timm.get_pretrained_cfg(name)
    return f"{name}.{known.tag}" if known and known.tag and "." not in name else name


def _read_timm(name: str) -> dict[str, Tensor]:
    import timm

    try:
        with _quiet("huggingface_hub", "timm"), hub.bounded(name):
            body: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # libraries that download raise errors of many kinds
        # the root cause says more than the wrappers around it
        root: BaseException = error
        while root.__cause__ or root.__context__:
            root = root.__cause__ or root.__context__ or root
        reason = (str(root).strip() or type(root).__name__).splitlines()[0]
        raise ValueError(
            f"{name}: its weights are not in the cache and cannot be downloaded ({reason}); "
            "connect once, or give a file"
        ) from error
    return body.state_dict()


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silence the warnings of these loggers, such as a line on each attempt at a download."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _heads(path: Path) -> int:
    if path.suffix.lower() != ".npz":
        return 0
    from samovar.models.flax import num_heads

    return num_heads(path)


def _read_file(path: Path) -> nests.Flat:
    try:
        flat = nests.flatten(read_tensors(path))
    except ValueError as error:
        line = str(error)
        raise ValueError(line if line.startswith(str(path)) else f"{path}: {line}") from error
    if not flat:
        raise ValueError(f"{path} holds no tensors by name; give a saved state_dict()")
    return flat
