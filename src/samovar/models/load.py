"""Weights to start from, fitted to the network at hand; `pretrained` tells where they come from.

The classifier layer is never among them: it stays as `create` made it, zero under
    `--model.init paper`. `resolve` needs
no torch for a run or a file, so what brings it is imported where tensors are resized."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from samovar.config import Config, ModelConfig
from samovar.models.read import Weights, facts, read_init

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samovar.models.factory import Classifier

__all__ = ["Weights", "load_init", "load_whole", "read_init", "resolve"]

_COUNTER = "num_batches_tracked"
"""A buffer that older programs do not save; nothing here depends on it."""
_SHOWN = 3


def resolve(config: Config) -> Config:
    """The config with what it leaves to the weights of `init`: the model with its normalization,
    and the image size.

    The model is theirs where its name is empty, and so are mean and std unless they are set; the
    image size is where it is 0. Dropout, stochastic depth and initialisation stay the config's own.
    Needs no torch for a run or a file.

    Raises:
        ValueError: weights that do not say, or no weights."""
    model, image_size = facts(config.init) if config.init else (None, 0)
    if not config.model.name and model is None:
        raise ValueError(f"--model.name is not given, {_silent(config.init)}; give it")
    if model is not None:
        config = replace(config, model=_taken(config.model, model))
    if not config.data.image_size:
        if not image_size:
            raise ValueError(
                f"--data.image-size is 0, {_silent(config.init)}; give a side in pixels"
            )
        config = replace(config, data=replace(config.data, image_size=image_size))
    return config


def _silent(what: str) -> str:
    return (
        f"and --init {what} does not tell it" if what else "and there is no --init to take it from"
    )


def _taken(own: ModelConfig, theirs: ModelConfig) -> ModelConfig:
    free = ModelConfig()
    pixels = {
        key: getattr(theirs, key)
        for key in ("mean", "std")
        if getattr(own, key) == getattr(free, key)
    }
    return replace(own, name=own.name or theirs.name, **pixels)


def load_init(model: Classifier, config: Config) -> tuple[str, ...]:
    """Load the weights that `config.init` names into the body of `model`, all but its classifier
    layer.

    Position embeddings are resized to another number of patches (bicubic, with antialias; class
    tokens are kept), kernels of patches to another patch, and the first kernels between one colour
    and several, so that grey images give what they gave (standardized kernels of several colours
    forget their scale). The same resizing as timm's.

    Returns:
        Notes for the reader: whose weights, and what was resized.

    Raises:
        ValueError: as `read_init`; weights that do not fit; a network that does not tell its
            classifier layer."""
    weights = read_init(config.init)
    own = {id(parameter) for parameter in model.head_parameters()}
    new = {name for name, parameter in model.body.named_parameters() if id(parameter) in own}
    given = {name: tensor for name, tensor in weights.tensors.items() if name not in new}
    notes, complaints = _load(model.body, given, new)
    if complaints:
        raise ValueError(
            f"--init {config.init}: {len(complaints)} of its weights and those of {config.model.name} do not fit "
            f"({_shown(complaints)}); {_advice(weights, config, complaints)}"
        )
    return (f"starts from {weights.name}; the classifier is new", *notes)


def load_whole(model: Classifier, tensors: dict[str, Tensor], title: str) -> tuple[str, ...]:
    """Load weights into the body of `model`, classifier layer included; what can be is resized as
    in `load_init`.

    Args:
        model: the network.
        tensors: a state dict of its body.
        title: what to call the network in a message.

    Returns:
        Notes on what was resized.

    Raises:
        ValueError: weights that do not fit, with the first few."""
    notes, complaints = _load(model.body, tensors, set())
    if complaints:
        raise ValueError(
            f"{len(complaints)} of its weights and those of {title} do not fit ({_shown(complaints)}); it has "
            f"{len(tensors)}, {title} has {len(model.body.state_dict())}"
        )
    return tuple(notes)


def _load(body: nn.Module, given: dict[str, Tensor], new: set[str]) -> tuple[list[str], list[str]]:
    """Load what is given into all but `new`, or nothing where there are complaints; returns notes,
    and those."""
    wanted = {name: tensor for name, tensor in body.state_dict().items() if name not in new}
    notes: list[str] = []
    given = dict(given)
    for name in (name for name in wanted if name in given):
        given[name], changes = _fitted(name, given[name], wanted[name], body)
        notes += changes
    complaints = _complaints(given, wanted)
    if not complaints:
        body.load_state_dict(given, strict=False)
    return notes, complaints


def _shown(complaints: list[str]) -> str:
    return f"{'; '.join(complaints[:_SHOWN])}{'; ...' if len(complaints) > _SHOWN else ''}"


def _complaints(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """What keeps tensors from being loaded: other shapes first, then names that only one side
    has."""
    shapes = [
        f"{name} is {_size(given[name])}, here {_size(wanted[name])}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    missing = [
        f"{name} is missing" for name in wanted if name not in given and not name.endswith(_COUNTER)
    ]
    strange = [
        f"{name} is not known here"
        for name in given
        if name not in wanted and not name.endswith(_COUNTER)
    ]
    return shapes + missing + strange


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _advice(weights: Weights, config: Config, complaints: list[str]) -> str:
    """What to do about weights that do not fit."""
    known = weights.model
    if known and known.name != config.model.name:
        return f"give --model.name {known.name}, which they are of"
    size = (
        f"--data.image-size {weights.image_size}"
        if weights.image_size
        else "the --data.image-size of these weights"
    )
    if all("_tokens." in each for each in complaints):
        return f"token-mixing layers depend on the number of patches and cannot be resized; give {size}"
    return f"give another --model.name or {size}"


# --- what can be resized
# ---------------------------------------------------------------------------------------------


def _fitted(name: str, tensor: Tensor, wanted: Tensor, body: nn.Module) -> tuple[Tensor, list[str]]:
    """The tensor in the shape that is wanted, if it can be resized, and what was done."""
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
    num_prefix = (
        wanted.shape[1] - grid[0] * grid[1]
    )  # class token and the like, which stand at no place
    num_patches = tensor.shape[1] - num_prefix
    side = math.isqrt(max(0, num_patches))
    if not side or side * side != num_patches:
        return tensor, []
    resized = resample_abs_pos_embed(tensor, list(grid), [side, side], num_prefix_tokens=num_prefix)
    return resized, [f"position embeddings resized from {side} x {side} to {grid[0]} x {grid[1]}"]


def _fitted_stem(
    name: str, tensor: Tensor, wanted: Tensor, body: nn.Module
) -> tuple[Tensor, list[str]]:
    """Kernels of the first convolution; only those of patches are resized, others have a stride of
    their own."""
    from timm.layers.patch_embed import PatchEmbed, resample_patch_embed
    from torch import nn

    stem = next((key for key, layer in body.named_modules() if isinstance(layer, nn.Conv2d)), "")
    if name != f"{stem}.weight" or tensor.ndim != 4:
        return tensor, []
    notes = []
    before, after = tensor.shape[1], wanted.shape[1]
    if before != after and 1 in (before, after):
        tensor = tensor.sum(1, keepdim=True).expand(-1, after, -1, -1) / after
        notes.append(f"first kernels adapted from {before} to {after} channels")
    if tensor.shape[2:] != wanted.shape[2:] and isinstance(
        body.get_submodule(stem.rpartition(".")[0]), PatchEmbed
    ):
        notes.append(f"patches resized from {_size(tensor[0, 0])} to {_size(wanted[0, 0])} pixels")
        tensor = resample_patch_embed(tensor, list(wanted.shape[2:]))
    return tensor, notes
