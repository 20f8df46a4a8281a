"""Open a trained network, classifier included, from any place that weights come from.

The places are those of `--init`: a run folder, a timm name with pretrained weights, a folder in
timm's layout, or a file. The network is used as it is rather than trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from samovar import config as configs
from samovar.anymodel import restore
from samovar.config import DataConfig, ModelConfig
from samovar.data.sources import open_source
from samovar.models import timm_folder, trust
from samovar.models.built_size import at_most
from samovar.models.factory import Classifier, create, describe, network
from samovar.models.load import load_whole
from samovar.models.normalization import settle
from samovar.models.read import Kind, Weights, for_network, kind, read
from samovar.models.recognize import names_of, recognize, side_of
from samovar.models.table import MODELS, has_constructor
from samovar.runs.records import RunDir

_PROBE = 1013
"""Number of classes that no layer has as its width.

A network built with it shows which tensors depend on the number of classes."""


@dataclass(frozen=True)
class Opened:
    """A trained network and what is known of it."""

    name: str
    """The name it was opened by."""
    model: Classifier
    """The network in eval mode, on the CPU."""
    config: ModelConfig
    """Name and normalization."""
    image_size: int
    """Height and width in pixels."""
    channels: int
    """Color channels C."""
    num_classes: int
    """Number of logits K."""
    classes: tuple[str, ...]
    """Class names; empty if unknown."""
    data: DataConfig | None
    """Training data of a run; None for other models."""
    notes: tuple[str, ...]
    """Notes for the reader: whose weights, how the network was identified, what was resized."""
    normalization: str = ""
    """Who says which normalization the network takes; empty if its weights or its name do."""


def open_model(what: str, *, name: str = "", image_size: int = 0) -> Opened:
    """Open a model to be used as it is.

    Args:
        what: a run folder (its best checkpoint, averaged where it keeps an average), a timm name
            with pretrained weights, a folder in timm's layout, or a file. The network of a Flax
            `.npz` is recognized.
        name: the network that the weights belong to, needed for a bare file; otherwise it
            replaces the known one.
        image_size: height and width in pixels; 0: as trained. Weights are resized to other
            sizes.

    Raises:
        ValueError: an unknown name, an unknown network, or weights that do not fit it."""
    if kind(what) == "folder" and not name:
        return _open_folder(Path(what), image_size)
    with _naming(what):
        weights = read(what)
        config, notes = _network(weights, what, name)
        if weights.file:
            body = _probe(config, _side(weights, config, image_size), weights.tensors)
            weights = for_network(weights, body)
        side = _side(weights, config, image_size)
        channels, num_classes = _border(config, weights.tensors, side)
        if channels == 1:  # the network of a name has the normalization of colours
            config = replace(config, mean=_grey(config.mean), std=_grey(config.std))
        with restore.rng():  # the initial weights are overwritten
            sizes = {"num_classes": num_classes or _PROBE, "image_size": side, "channels": channels}
            told = f"as {weights.name} says" if weights.model else ""
            if told or not has_constructor(config.name):
                model = create(config, **sizes)
            else:  # the name of a function does not tell the normalization, its network may
                model, pixels = settle(network(config, **sizes), config.name, channels)
                config = replace(config, mean=pixels.mean, std=pixels.std)
                told = pixels.source
        model.eval()
        notes += load_whole(model, weights.tensors, config.name)
    num_classes = num_classes or _count_logits(model, channels, side)
    opened = Opened(
        what, model, config, side, channels, num_classes, (), None, (weights.name, *notes), told
    )
    return _WITH_CLASSES[kind(what)](opened)


def _side(weights: Weights, config: ModelConfig, asked: int) -> int:
    """Return height and width in pixels: as asked, as trained, or those of the network."""
    return (
        asked or weights.image_size or side_of(weights.tensors) or describe(config.name).image_size
    )


def _probe(config: ModelConfig, image_size: int, tensors: dict[str, Tensor]) -> nn.Module:
    """Return the network with `_PROBE` classes, without memory for its weights.

    Raises:
        ValueError: it would be far larger than the tensors that it is for."""
    # one mean and std fit any number of channels, so a probe with 3 is as good as any
    several = max(len(config.mean), len(config.std))
    channels = several if several > 1 else 3
    with torch.device("meta"), at_most(tensors):
        return create(config, num_classes=_PROBE, image_size=image_size, channels=channels).body


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Prefix errors with the name that was asked for."""
    try:
        yield
    except ValueError as error:
        line = str(error)
        raise ValueError(
            line if line.startswith((what, f"{Path(what)}")) else f"{what}: {line}"
        ) from error


def _network(weights: Weights, what: str, name: str) -> tuple[ModelConfig, tuple[str, ...]]:
    """Return the network that weights belong to, and a note on how it was identified."""
    if name:
        return replace(weights.model or _pixels(name), name=name, init="library"), ()
    if weights.model:
        trust.refuse(weights.model.name, Path(what) / "config.json")
        return replace(weights.model, init="library"), ()
    if Path(what).suffix.lower() == ".npz":
        found = recognize(weights.tensors, weights.heads)
        return ModelConfig(found, init="library"), (f"{found} by its names and shapes",)
    try:
        known = recognize(weights.tensors)
        hint = f"its shapes are those of {known}, but timm's network may compute something else"
    except ValueError as error:
        hint = str(error)
    raise ValueError(
        f"cannot tell which network these weights belong to; give --model NAME ({hint})"
    )


def _pixels(name: str) -> ModelConfig:
    """Return the normalization of a network: timm's if it has one, else Google's, to [-1, 1]."""
    ours = name in MODELS or has_constructor(name)
    known = None if ours else timm.get_pretrained_cfg(name)
    return ModelConfig(mean=tuple(known.mean), std=tuple(known.std)) if known else ModelConfig()


def _grey(values: tuple[float, ...]) -> tuple[float, ...]:
    """Return the mean over channels, which normalizes grey images as their copies in colours."""
    return (sum(values) / len(values),)


def _border(config: ModelConfig, tensors: dict[str, Tensor], image_size: int) -> tuple[int, int]:
    """Return channels and number of classes as the tensors show them; 0 classes: unknown.

    Raises:
        ValueError: the classifier layer is not among the tensors."""
    body = _probe(config, image_size, tensors)
    stem = next((name for name, layer in body.named_modules() if isinstance(layer, nn.Conv2d)), "")
    kernel = tensors.get(f"{stem}.weight")
    channels = kernel.shape[1] if kernel is not None and kernel.ndim == 4 else 3
    # tensors whose first axis is the probe's number of classes form the classifier layer
    wanted = {
        name: tensor for name, tensor in body.state_dict().items() if tensor.shape[:1] == (_PROBE,)
    }
    found = [
        tensors[name]
        for name in wanted
        if name in tensors and tensors[name].ndim == wanted[name].ndim
    ]
    if wanted and not found:
        raise ValueError(
            f"its classifier layer ({', '.join(wanted)}) is missing among {names_of(tensors)}"
        )
    return channels, len(found[0]) if found else 0


@torch.no_grad()
def _count_logits(model: Classifier, channels: int, image_size: int) -> int:
    logits: Tensor = model(torch.zeros(1, channels, image_size, image_size))
    return logits.shape[1]


def _with_classes_of_run(found: Opened) -> Opened:
    """Add the class names that a run has kept, else those of its data, else a note."""
    run = RunDir.open(Path(found.name))
    data = configs.load(run.config_path).data
    try:
        classes = run.classes() or tuple(
            open_source(replace(data, fraction=1.0, tune_share=0.0)).classes
        )
        fits = len(classes) == found.num_classes
        reason = "" if fits else f"{data.source} has {len(classes)} classes"
    except (ValueError, OSError) as error:
        classes, reason = (), str(error)
    if reason:
        note = f"the names of its classes are not known: {reason}"
        return replace(found, data=data, notes=(*found.notes, note))
    return replace(found, data=data, classes=classes)


def _with_classes_of_imagenet(found: Opened) -> Opened:
    """Add ImageNet's class names to a timm model with as many classes."""
    subset = infer_imagenet_subset({"num_classes": found.num_classes})
    return (
        replace(found, classes=tuple(ImageNetInfo(subset).label_descriptions()))
        if subset
        else found
    )


_WITH_CLASSES: dict[Kind, Callable[[Opened], Opened]] = {
    "run": _with_classes_of_run,
    "timm": _with_classes_of_imagenet,
    "file": lambda found: found,
    "folder": lambda found: replace(found, classes=timm_folder.describe(Path(found.name)).classes),
}


def _open_folder(folder: Path, image_size: int) -> Opened:
    """Open a folder in timm's layout, built as its description says.

    Raises:
        ValueError: timm does not know the architecture, or weights do not fit it."""
    spec = timm_folder.describe(folder)
    side = image_size or spec.image_size
    known = timm.get_pretrained_cfg(spec.architecture)
    options: dict[str, Any] = {"in_chans": spec.channels} | spec.args
    # networks of convolutions take images of any size and have no argument for it
    if "img_size" in options or (known and known.fixed_input_size):
        options["img_size"] = side
    config = ModelConfig(spec.architecture, init="library", mean=spec.mean, std=spec.std)
    with _naming(str(folder)):
        tensors = read(str(folder)).tensors
    build = partial(timm.create_model, spec.architecture, num_classes=spec.num_classes, **options)
    try:
        # a description may ask for far more than the weights beside it fill
        with torch.device("meta"), at_most(tensors):
            build()
        with restore.rng():
            body: nn.Module = build()
    except Exception as error:  # timm raises whatever wrong arguments lead to
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{folder}: timm cannot build the {spec.architecture} of its config.json ({reason})"
        ) from error
    model = Classifier(body, spec.mean, spec.std).eval()
    with _naming(str(folder)):
        notes = load_whole(model, tensors, spec.architecture)
    return Opened(
        str(folder),
        model,
        config,
        side,
        spec.channels,
        spec.num_classes,
        spec.classes,
        None,
        (str(folder), *notes),
        f"as {folder / timm_folder.CONFIG} says",
    )
