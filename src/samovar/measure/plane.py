"""The loss on a line or plane through a model's weights, and between two models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from samovar.anymodel.devices import to_device
from samovar.curvature.graphs import free_bytes
from samovar.measure.grid import (
    Direction,
    Execution,
    GridRow,
    LandscapeGrid,
    Offsets,
    PointLoss,
    Segment,
)
from samovar.measure.grid_processes import compute

POINT_BYTES = 64
"""Memory of a point's two numbers: in the arrays of files and plane, and in copies of these."""
ALONE = Execution()
"""One process, without files."""


@dataclass(frozen=True)
class Plane:
    """The loss on a line or plane through a model's weights, as float64 on the host."""

    x: Tensor
    """[X] coordinates along the first direction."""
    y: Tensor | None
    """[Y] coordinates along the second direction; None for a line."""
    loss: Tensor
    """Mean loss over all examples, [Y, X], or [X] for a line."""
    accuracy: Tensor | None
    """Share of right answers, of the shape of `loss`; None if the loss function returns none."""
    center_loss: float
    """Loss at the model's own weights, whether the grid has that point or not."""
    center_accuracy: float | None
    num_forwards: int
    """Number of forward passes that were made, each over a batch."""

    @property
    def height(self) -> float:
        """Highest finite loss minus that at the centre; nan if there is none."""
        finite = self.loss[self.loss.isfinite()]
        return float(finite.max()) - self.center_loss if len(finite) else math.nan


def axis(points: int, span: float) -> Tensor:
    """Return coordinates [points] from -span to span.

    They are symmetric to the bit, and exactly 0 in the middle if `points` is odd."""
    # by integers, since steps of linspace are symmetric only up to rounding
    steps = torch.arange(points, dtype=torch.float64)
    return (2 * steps - (points - 1)) / (points - 1) * span


def filter_direction(model: nn.Module, generator: Generator) -> dict[str, Tensor]:
    """Draw a Gaussian direction whose filters have the norms of the weights' filters.

    A parameter of two or more dimensions that requires a gradient is cut along dim 0 into filters;
    position embeddings and class tokens [1, ...] are one filter. Parameters of fewer dimensions,
    which are biases and scales of norms, do not move.

    Args:
        generator: on the CPU; numbers are drawn in float32, parameter by parameter.

    Raises:
        ValueError: no parameter to move.

    Source: Li et al., arXiv:1712.09913."""
    direction = {}
    for name, w in model.named_parameters():
        if w.requires_grad and w.ndim >= 2:
            d = torch.randn(w.shape, generator=generator, dtype=torch.float32)
            d = to_device(d, w.device).to(w.dtype)
            dims = list(range(1, w.ndim))
            norms = [torch.linalg.vector_norm(x.detach(), dim=dims, keepdim=True) for x in (w, d)]
            direction[name] = d * (norms[0] / norms[1].clamp(min=torch.finfo(w.dtype).tiny))
    if not direction:
        raise ValueError(
            "no trainable parameter has two or more dimensions, so there are no filters; "
            "unfreeze some"
        )
    return direction


def loss_plane(
    model: nn.Module,
    loss: PointLoss,
    batches: Iterable[Any],
    directions: Sequence[Direction],
    x: Sequence[float] | Tensor,
    y: Sequence[float] | Tensor | None = None,
    how: Execution = ALONE,
) -> Plane:
    """Compute the loss at the weights plus x times one direction (plus y times another).

    The weights are moved in place, in eval mode, and restored to the bit, as are gradients, flags,
    buffers and random states. At (0, 0) they are exactly the model's. A point costs a forward pass
    over the batches and little else; on a CPU use batches of `fast_batch_size`. Memory: two copies
    of the tensors that move, in addition to model and directions.

    Args:
        loss: maps (model, batch) to the mean loss [] over the batch, to an object or dict that
            holds it, or to a pair of it and of which examples are right, bool [B]. Random numbers
            of torch that it draws are the same at every point.
        batches: kept in memory, and weighted by their numbers of examples.
        directions: one for a line, two for a plane; steps by names of parameters.
        x: coordinates along the first direction.
        y: coordinates along the second.
        how: processes that share the rows, and the folder that keeps the rows.

    Raises:
        ValueError: weights, directions or coordinates are not finite or do not fit; `loss` returns
            something else; a worker fails.

    Source: Li et al., arXiv:1712.09913; the paper's protocol: appendix B.1 of arXiv:2106.01548."""
    if len(directions) != (1 if y is None else 2):
        raise ValueError(f"{len(directions)} directions: give one with x, or two with x and y")
    xs, ys = _coordinates(x), [0.0] if y is None else _coordinates(y)
    steps = [_fitting(model, direction, "a direction") for direction in directions]
    # rows of a plane are lines of equal y: the inner direction is x
    if y is None:
        return _plane(
            LandscapeGrid(model, loss, list(batches), Offsets(steps[0]), _rows(xs, [0.0])),
            xs,
            None,
            how,
        )
    return _plane(
        LandscapeGrid(model, loss, list(batches), Offsets(steps[1], steps[0]), _rows(ys, xs)),
        xs,
        ys,
        how,
    )


def loss_between(
    model: nn.Module,
    other: nn.Module,
    loss: PointLoss,
    batches: Iterable[Any],
    x: Sequence[float] | Tensor,
    how: Execution = ALONE,
) -> Plane:
    """Compute the loss on the straight line from a model's weights, x = 0, to another's, x = 1.

    Both ends are exact. Buffers, such as BatchNorm's statistics, are interpolated like weights.
    Everything else is as in `loss_plane`.

    Raises:
        ValueError: models of different architectures, or as `loss_plane`."""
    end = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    # buffers as well: without BatchNorm's statistics the ends would not be the two models
    missing = [
        name for name, _ in [*model.named_parameters(), *model.named_buffers()] if name not in end
    ]
    if missing:
        raise ValueError(
            f"the other model has no {missing[0]}, which the model has; "
            "give one of the same architecture"
        )
    xs = _coordinates(x)
    moves = Segment(_fitting(model, end, "the other model"))
    return _plane(LandscapeGrid(model, loss, list(batches), moves, _rows(xs, [0.0])), xs, None, how)


def _rows(
    outer: Sequence[float], inner: Sequence[float]
) -> tuple[tuple[float, tuple[float, ...]], ...]:
    """Return the rows of a grid, and one more of the point (0, 0) if the grid does not have it.

    Raises:
        ValueError: the grid does not fit into memory."""
    need, free = POINT_BYTES * len(outer) * len(inner), free_bytes(torch.device("cpu"))
    if need > free:
        raise ValueError(
            f"a grid of {len(outer)} x {len(inner)} points takes {need / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free; give fewer points"
        )
    ts = tuple(inner)
    return (*((s, ts) for s in outer), *(() if 0 in outer and 0 in inner else ((0.0, (0.0,)),)))


def _plane(grid: LandscapeGrid, xs: list[float], ys: list[float] | None, how: Execution) -> Plane:
    """Check and compute a grid, and return its values as a plane or line."""
    for name, tensor in [*grid.model.named_parameters(), *grid.model.named_buffers()]:
        if not _finite(tensor):
            raise ValueError(
                f"{name} is not finite; a landscape needs finite weights: "
                "load an earlier checkpoint"
            )
    if not grid.batches:
        raise ValueError("batches is empty; give at least one batch")
    rows = compute(grid, how)
    outer = xs if ys is None else ys
    # [2, Y, X], for a line [2, X, 1]
    values = torch.from_numpy(np.stack(rows[: len(outer)], axis=1))
    center = _center(grid, rows)
    loss, accuracy = values.squeeze(-1) if ys is None else values
    known = bool(np.isfinite(center[1]))
    return Plane(
        torch.tensor(xs, dtype=torch.float64),
        None if ys is None else torch.tensor(ys, dtype=torch.float64),
        loss,
        accuracy if known else None,
        float(center[0]),
        float(center[1]) if known else None,
        sum(len(inner) for _, inner in grid.rows) * len(grid.batches),
    )


def _center(grid: LandscapeGrid, rows: Sequence[GridRow]) -> Any:
    """Return loss and accuracy [2] at (0, 0)."""
    return next(
        row[:, ts.index(0)]
        for row, (s, ts) in zip(rows, grid.rows, strict=True)
        if s == 0 and 0 in ts
    )


def _coordinates(values: Sequence[float] | Tensor) -> list[float]:
    numbers: list[float] = torch.as_tensor(values, dtype=torch.float64).tolist()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"coordinates {numbers[:3]} are empty or not all finite; "
            "give at least one finite number"
        )
    return numbers


def _fitting(model: nn.Module, tensors: Direction, title: str) -> dict[str, Tensor]:
    """Return the tensors on the devices and in the types of the model's own.

    Args:
        title: of the tensors in errors.

    Raises:
        ValueError: no tensors, a name or shape that the model does not have, values not finite."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fitting = {}
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            there = f"{list(own[name].shape)} in the model" if name in own else "not in the model"
            raise ValueError(
                f"{title} has {name} of shape {list(tensor.shape)}, which is {there}; "
                "give one that fits the model"
            )
        fitted = tensor.detach().to(own[name])
        # a direction that is the model's own weights would move with them
        moves_itself = fitted.untyped_storage().data_ptr() == own[name].untyped_storage().data_ptr()
        fitting[name] = fitted.clone() if moves_itself else fitted
        if not _finite(fitted):
            raise ValueError(f"{name} of {title} is not finite; give finite numbers")
    if not fitting:
        raise ValueError(f"{title} is empty; give a tensor for at least one parameter")
    return fitting


def _finite(tensor: Tensor) -> bool:
    # by the extremes, since `isfinite` allocates another tensor of the same size
    return (
        not tensor.is_floating_point()
        or not tensor.numel()
        or bool(torch.stack(tensor.aminmax()).isfinite().all())
    )
