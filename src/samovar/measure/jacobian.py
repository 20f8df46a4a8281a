"""The Jacobian of logits by parameters: a row per sample (and logit), in chunks of columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from samovar.anymodel.devices import to_float64_device
from samovar.anymodel.outputs import logits_of
from samovar.curvature.borrow import borrow

Output = Literal["sum", "full"] | int


class Setup(NamedTuple):
    """A model as a function of its parameters, and the point where it is differentiated."""

    model: nn.Module
    state: dict[str, Tensor]
    """Detached copies of parameters and buffers, in the dtype of the kernel."""
    wanted: dict[str, Tensor]
    """Parameters of the kernel, a part of `state`."""
    images: Tensor
    cotangents: Tensor
    """[R, K]: R combinations of the logits, each a row of every sample."""


class Slice(NamedTuple):
    """Columns of the Jacobian: entries `start` to `stop` of one flattened parameter."""

    name: str
    start: int
    stop: int


def set_up(
    model: nn.Module,
    images: Tensor,
    output: Output,
    patterns: Sequence[str] | None,
    dtype: torch.dtype,
) -> Setup:
    """Copy a model's tensors in `dtype` and choose those that are differentiated.

    Args:
        patterns: names of parameters as shell patterns; None chooses all that require a gradient.

    Raises:
        ValueError: a tensor is not finite, no parameter fits, or an unknown output.
        TypeError: the model does not return logits, see `logits_of`."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite; load weights that are")
    # float64 copies of a network on MPS are on the host, and so is all that is computed with them
    double = dtype == torch.float64
    state = {
        k: (to_float64_device(t.detach()) if double else t.detach()).to(
            dtype if t.is_floating_point() else t.dtype, copy=True
        )
        for k, t in tensors.items()
    }
    wanted = {
        name: state[name]
        for name, param in model.named_parameters()
        if param.requires_grad
        and (patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns))
    }
    if not wanted:
        raise ValueError(
            f"params={patterns} selects no parameter that requires a gradient; "
            "None selects all that do"
        )
    place = next(iter(wanted.values())).device
    images = images.to(place).to(dtype, copy=True)
    with torch.no_grad():
        logits = logits_of(functional_call(model, state, (images[:1],)))
    return Setup(model, state, wanted, images, _cotangents(output, logits))


def _cotangents(output: Output, logits: Tensor) -> Tensor:
    """Return the combinations of logits [R, K] that `output` names."""
    eye = torch.eye(logits.numel(), dtype=logits.dtype, device=logits.device)
    if output == "full":
        return eye
    if output == "sum":
        return eye.sum(0, keepdim=True)
    if not isinstance(output, int) or not 0 <= output < len(eye):
        raise ValueError(
            f"output={output!r}; pick 'sum', 'full' or a logit from 0 to {len(eye) - 1}"
        )
    return eye[output : output + 1]


def column_chunks(params: dict[str, Tensor], width: int) -> Iterator[list[Slice]]:
    """Yield all columns in order, at most `width` at a time."""
    # a parameter larger than the rest of a chunk is split between chunks
    chunk: list[Slice] = []
    room = width
    for name, param in params.items():
        start = 0
        while start < param.numel():
            stop = min(param.numel(), start + room)
            chunk.append(Slice(name, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield chunk
                chunk, room = [], width
    if chunk:
        yield chunk


def jacobian_columns(setup: Setup, chunk: list[Slice], chunk_bytes: int) -> Tensor:
    """Compute columns of the Jacobian, [rows, columns].

    Row i * R + r is combination r of the logits of sample i.

    Args:
        chunk: the columns.
        chunk_bytes: most memory of the gradients that are computed together."""
    variables = {piece.name: setup.wanted[piece.name] for piece in chunk}
    per_sample = len(setup.cotangents)
    rows = len(setup.images) * per_sample
    columns = setup.images.new_empty(rows, sum(piece.stop - piece.start for piece in chunk))
    block = chunk_bytes // (sum(p.numel() for p in variables.values()) * columns.itemsize)
    block = max(1, min(block, len(setup.images)))  # no more activations than of a plain batch
    for first in range(0, rows, block):
        index = torch.arange(first, min(rows, first + block), device=columns.device)
        images, cotangents = setup.images[index // per_sample], setup.cotangents[index % per_sample]
        grads = _row_gradients(setup, variables, images, cotangents)
        at = 0
        for name, start, stop in chunk:
            columns[first : first + block, at : at + stop - start] = grads[name].flatten(1)[
                :, start:stop
            ]
            at += stop - start
    return columns


def _row_gradients(
    setup: Setup, variables: dict[str, Tensor], images: Tensor, cotangents: Tensor
) -> dict[str, Tensor]:
    """Compute gradients [rows, *shape], each of one combination of the logits of one image."""

    def combined(variables: dict[str, Tensor], image: Tensor, cotangent: Tensor) -> Tensor:
        logits = logits_of(functional_call(setup.model, setup.state | variables, (image[None],)))
        return (logits.flatten() * cotangent).sum()

    try:
        rows = vmap(grad(combined), in_dims=(None, 0, 0))(variables, images, cotangents)
        return cast("dict[str, Tensor]", rows)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        # vmap cannot follow branches on data, nor operators without a batching rule: row by row
        return _rows_one_by_one(setup, variables, images, cotangents)


def _rows_one_by_one(
    setup: Setup, variables: dict[str, Tensor], images: Tensor, cotangents: Tensor
) -> dict[str, Tensor]:
    """Compute what `_row_gradients` does by one backward pass a row."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in variables.items()}

    def gradients() -> list[tuple[Tensor, ...]]:
        return [
            torch.autograd.grad(
                (setup.model(image[None]).flatten() * cotangent).sum(),
                list(leaves.values()),
                materialize_grads=True,
            )
            for image, cotangent in zip(images, cotangents, strict=True)
        ]

    # The leaves stay in the model until after the backward pass, in which activation checkpointing
    # calls the model once more.
    each = borrow(setup.model, setup.state | leaves, "eval", images.device, gradients)
    columns = zip(*each, strict=True)
    return {name: torch.stack(column) for name, column in zip(leaves, columns, strict=True)}
