"""Load weights into a network that already exists, resized where that is possible.

`load_init` leaves out the classifier layer, which stays as `create` made it: zero under
`--model.init paper`. `resolve` needs no torch for a run or a file, so torch and timm are
imported where tensors are resized."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from samovar.config import Config, ModelConfig
from samovar.models import trust
from samovar.models.known import refuse_silent, silent
from samovar.models.read import Weights, facts, for_network, read_init

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samovar.models.factory import Classifier

__all__ = ["Weights", "load_init", "load_whole", "read_init", "resolve"]

_COUNTER = "num_batches_tracked"
"""A buffer of BatchNorm that older programs do not save; nothing here depends on it."""
_SHOWN = 3


def resolve(config: Config) -> Config:
    """Fill in the settings that a config leaves to the weights of `init`.

    These are the model's name where it is empty, mean and std unless they are set, and the image
    size where it is 0. Dropout, stochastic depth and initialization stay the config's own. Needs no
    torch for a run or a file.

    Raises:
        ValueError: no weights are given, or they do not say; a run that names code nobody else
            has named."""
    model, image_size = facts(config.init) if config.init else (None, 0)
    refuse_silent(config.init, model, config.model)
    if model is not None:
        if not config.model.name:
            trust.refuse(model.name, Path(config.init) / "config.json")
        config = replace(config, model=_taken(config.model, model))
    if not config.data.image_size:
        if not image_size:
            raise ValueError(
                f"--data.image-size is 0, {silent(config.init)}; give a side in pixels"
            )
        config = replace(config, data=replace(config.data, image_size=image_size))
    return config


def _taken(own: ModelConfig, theirs: ModelConfig) -> ModelConfig:
    free = ModelConfig()
    pixels = {
        key: getattr(theirs, key)
        for key in ("mean", "std")
        if getattr(own, key) == getattr(free, key)
    }
    return replace(own, name=own.name or theirs.name, **pixels)


def load_init(model: Classifier, config: Config) -> tuple[str, ...]:
    """Load the weights of `config.init` into the body of `model`, except its classifier layer.

    Position embeddings are resized to another number of patches (bicubic, with antialias; class
    tokens are kept), kernels of patches to another patch, and the first kernels between one color
    and several, so that gray images give the same outputs (standardized kernels of several colors
    lose their scale). timm resizes in the same way.

    Returns:
        Notes for the reader: whose weights, where in the file they were, and what was resized.

    Raises:
        ValueError: as `read_init`; weights that do not fit; a network without `get_classifier`."""
    weights = for_network(read_init(config.init), model.body)
    own = {id(parameter) for parameter in model.head_parameters()}
    new = {name for name, parameter in model.body.named_parameters() if id(parameter) in own}
    given = {name: tensor for name, tensor in weights.tensors.items() if name not in new}
    notes, complaints = _load(model.body, given, new)
    if complaints:
        raise ValueError(
            f"--init {config.init}: {len(complaints)} weights do not fit {config.model.name} "
            f"({_shown(complaints)}); {_advice(weights, config, complaints)}"
        )
    return (f"starts from {weights.name}; the classifier is new", *notes)


def load_whole(model: Classifier, tensors: dict[str, Tensor], title: str) -> tuple[str, ...]:
    """Load weights into the body of `model`, classifier layer included, resized as in `load_init`.

    Args:
        model: the network.
        tensors: a state dict of its body.
        title: the name of the network in messages.

    Returns:
        Notes on what was resized.

    Raises:
        ValueError: weights that do not fit, with the first few."""
    notes, complaints = _load(model.body, tensors, set())
    if complaints:
        raise ValueError(
            f"{len(complaints)} weights do not fit {title} ({_shown(complaints)}); "
            f"it has {len(tensors)}, {title} has {len(model.body.state_dict())}"
        )
    return tuple(notes)


def _load(body: nn.Module, given: dict[str, Tensor], new: set[str]) -> tuple[list[str], list[str]]:
    """Load `given` into everything but `new`; return notes and complaints.

    Nothing is loaded if there are complaints."""
    wanted = {name: tensor for name, tensor in body.state_dict().items() if name not in new}
    notes: list[str] = []
    given = dict(given)  # the caller keeps its tensors as they are
    for name in (name for name in wanted if name in given):
        given[name], changes = _fitted(name, given[name], wanted[name], body)
        notes += changes
    complaints = _complaints(given, wanted)
    # all or nothing: a network that is loaded in part would train without a word
    if not complaints:
        body.load_state_dict(given, strict=False)
    return notes, complaints


def _shown(complaints: list[str]) -> str:
    return f"{'; '.join(complaints[:_SHOWN])}{'; ...' if len(complaints) > _SHOWN else ''}"


def _complaints(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Return why tensors do not fit: other shapes first, then names that only one side has."""
    shapes = [
        f"{name} is {_size(given[name])}, here {_size(wanted[name])}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    missing = [
        f"{name} is missing" for name in wanted if name not in given and not name.endswith(_COUNTER)
    ]
    unknown = [
        f"{name} is not known here"
        for name in given
        if name not in wanted and not name.endswith(_COUNTER)
    ]
    return shapes + missing + unknown


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _advice(weights: Weights, config: Config, complaints: list[str]) -> str:
    """Return what to do about weights that do not fit."""
    known = weights.model
    if known and known.name != config.model.name:
        return f"give --model.name {known.name}, to which they belong"
    size = (
        f"--data.image-size {weights.image_size}"
        if weights.image_size
        else "the --data.image-size of these weights"
    )
    if all("_tokens." in each for each in complaints):
        return (
            "token-mixing layers depend on the number of patches and cannot be resized; "
            f"give {size}"
        )
    return f"give another --model.name or {size}"


# --- resizing -------------------------------------------------------------------------------------


def _fitted(name: str, tensor: Tensor, wanted: Tensor, body: nn.Module) -> tuple[Tensor, list[str]]:
    """Return the tensor in the wanted shape, if it can be resized, and notes on what was done."""
    if tensor.shape == wanted.shape:
        return tensor, []
    if name == "pos_embed":
        fitted, notes = _fitted_positions(tensor, wanted, body)
    else:
        fitted, notes = _fitted_stem(name, tensor, wanted, body)
    return (fitted, notes) if fitted.shape == wanted.shape else (tensor, [])


def _fitted_positions(tensor: Tensor, wanted: Tensor, body: nn.Module) -> tuple[Tensor, list[str]]:
    from timm.layers.pos_embed import resample_abs_pos_embed

    grid = getattr(getattr(body, "patch_embed", None), "grid_size", None)
    if grid is None or tensor.ndim != 3 or tensor.shape[-1] != wanted.shape[-1]:
        return tensor, []
    # class tokens and the like have no place in the grid and are not resized
    num_prefix = wanted.shape[1] - grid[0] * grid[1]
    num_patches = tensor.shape[1] - num_prefix
    side = math.isqrt(max(0, num_patches))
    if not side or side * side != num_patches:
        return tensor, []
    resized = resample_abs_pos_embed(tensor, list(grid), [side, side], num_prefix_tokens=num_prefix)
    return resized, [f"position embeddings resized from {side} x {side} to {grid[0]} x {grid[1]}"]


def _fitted_stem(
    name: str, tensor: Tensor, wanted: Tensor, body: nn.Module
) -> tuple[Tensor, list[str]]:
    """Adapt the first convolution to other channels, and kernels of patches to other sizes.

    Other kernels keep their size, since their stride belongs to it."""
    from timm.layers.patch_embed import PatchEmbed, resample_patch_embed
    from torch import nn

    stem = next((key for key, layer in body.named_modules() if isinstance(layer, nn.Conv2d)), "")
    if name != f"{stem}.weight" or tensor.ndim != 4:
        return tensor, []
    notes = []
    before, after = tensor.shape[1], wanted.shape[1]
    if before != after and 1 in (before, after):
        # a gray image has the same value in all channels, so only the sum of the kernels counts
        tensor = tensor.sum(1, keepdim=True).expand(-1, after, -1, -1) / after
        notes.append(f"first kernels adapted from {before} to {after} channels")
    if tensor.shape[2:] != wanted.shape[2:] and isinstance(
        body.get_submodule(stem.rpartition(".")[0]), PatchEmbed
    ):
        notes.append(f"patches resized from {_size(tensor[0, 0])} to {_size(wanted[0, 0])} pixels")
        tensor = resample_patch_embed(tensor, list(wanted.shape[2:]))
    return tensor, notes
