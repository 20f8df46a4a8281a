"""Loss landscapes: the loss and accuracy on a line or plane through trained weights, and between two checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from samovar.config import Config, MeasureConfig
from samovar.curvature import Hessian, top_eigenvalues
from samovar.curvature.graphs import free_bytes
from samovar.data.loader import Batch
from samovar.measure.grid import Direction, Execution, Grid, Offsets, PointLoss, Row, Segment, compute
from samovar.measure.lend import borrowed
from samovar.measure.subject import Batches, Subject, open_subject
from samovar.objectives import make_objective
from samovar.records import Record

__all__ = ["Direction", "Execution", "Plane", "axis", "filter_direction", "landscape", "loss_between", "loss_plane"]

SOURCE = "arXiv:1712.09913; Figure 1 of arXiv:2106.01548"
OUTPUT_BYTES = 16 << 20  # of a layer's output, up to which larger batches are no slower on a CPU (measured on six nets)
POINT_BYTES = 64  # of a point's two numbers, in the files' arrays and the plane's
ALONE = Execution()


@dataclass(frozen=True)
class Plane:
    """The loss around weights, as float64 on the host."""

    x: Tensor
    """[X]."""
    y: Tensor | None
    """[Y]; None for a line."""
    loss: Tensor
    """[Y, X], or [X] for a line: mean over all examples."""
    accuracy: Tensor | None
    """Share of right answers, as `loss`; None if the loss does not tell it."""
    center_loss: float
    """At the weights as they are, whether the grid has that point or not."""
    center_accuracy: float | None
    num_forwards: int
    """Forward passes over a batch that the values took."""

    @property
    def height(self) -> float:
        """Highest finite loss less that at the centre; nan if there is none."""
        finite = self.loss[self.loss.isfinite()]
        return float(finite.max()) - self.center_loss if len(finite) else math.nan


def axis(points: int, span: float) -> Tensor:
    """Coordinates [points] from -span to span, symmetric; 0 is among them, exactly, if points is odd."""
    steps = torch.arange(points, dtype=torch.float64)
    return (2 * steps - (points - 1)) / (points - 1) * span


def filter_direction(model: nn.Module, generator: Generator) -> dict[str, Tensor]:
    """A Gaussian direction in weight space, each filter of which is as long as that of the weights.

    A parameter of two or more dimensions that requires a gradient is cut along dim 0 into filters; position embeddings
    and class tokens [1, ...] are one. Parameters of fewer dimensions, biases and scales of norms, stand still.

    Args:
        generator: on the CPU; numbers are drawn in float32, parameter by parameter.

    Raises:
        ValueError: no parameters to move.

    Source: Li et al., arXiv:1712.09913."""
    direction = {}
    for name, w in model.named_parameters():
        if w.requires_grad and w.ndim >= 2:
            d = torch.randn(w.shape, generator=generator, dtype=torch.float32).to(w.device, w.dtype)
            dims = list(range(1, w.ndim))
            norms = [torch.linalg.vector_norm(x.detach(), dim=dims, keepdim=True) for x in (w, d)]
            direction[name] = d * (norms[0] / norms[1].clamp(min=torch.finfo(w.dtype).tiny))
    if not direction:
        raise ValueError("no trainable parameter has two or more dimensions, so there are no filters; unfreeze some")
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
    """The loss at the weights plus x times a direction, or plus x times one and y times another.

    The weights are moved in place, in eval mode, and are afterwards as they were to the bit, gradients, flags, buffers
    and random states too. At (0, 0) they are exactly the model's. A point costs a forward pass over the batches and
    little else; on a CPU take batches of `fast_batch_size`. Memory: twice what moves, beside model and directions.

    Args:
        loss: maps (model, batch) to the mean loss [] over the batch, or to a pair of it and of which examples are
            right, bool [B]. Random numbers of torch that it draws are the same at every point.
        batches: kept in memory; each weighs as many examples as it has.
        directions: one for a line, two for a plane; steps by names of parameters.
        x: coordinates along the first direction.
        y: coordinates along the second.
        how: processes that share the rows, and the folder that keeps them.

    Raises:
        ValueError: weights, directions or coordinates that are not finite or do not fit; a loss that is not as said;
            what a worker raises."""
    if len(directions) != (1 if y is None else 2):
        raise ValueError(f"{len(directions)} directions: give one with x, or two with x and y")
    xs, ys = _coordinates(x), [0.0] if y is None else _coordinates(y)
    steps = [_fitting(model, direction, "a direction") for direction in directions]
    if y is None:
        return _plane(Grid(model, loss, list(batches), Offsets(steps[0]), _rows(xs, [0.0])), xs, None, how)
    return _plane(Grid(model, loss, list(batches), Offsets(steps[1], steps[0]), _rows(ys, xs)), xs, ys, how)


def loss_between(
    model: nn.Module,
    other: nn.Module,
    loss: PointLoss,
    batches: Iterable[Any],
    x: Sequence[float] | Tensor,
    how: Execution = ALONE,
) -> Plane:
    """The loss on the straight line from a model's weights, at x = 0, to another's, at x = 1: both exactly.

    Buffers, such as BatchNorm's statistics, are interpolated like weights. Everything else is as for `loss_plane`.

    Raises:
        ValueError: models of two architectures, or as `loss_plane`."""
    end = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    missing = [name for name, _ in [*model.named_parameters(), *model.named_buffers()] if name not in end]
    if missing:
        raise ValueError(f"the other model has no {missing[0]}, which the model has; give one of the same architecture")
    xs = _coordinates(x)
    moves = Segment(_fitting(model, end, "the other model"))
    return _plane(Grid(model, loss, list(batches), moves, _rows(xs, [0.0])), xs, None, how)


def _rows(outer: Sequence[float], inner: Sequence[float]) -> tuple[tuple[float, tuple[float, ...]], ...]:
    """Rows of a grid, and if it has no (0, 0), that point as one more."""
    need, free = POINT_BYTES * len(outer) * len(inner), free_bytes(torch.device("cpu"))
    if need > free:
        raise ValueError(
            f"a grid of {len(outer)} x {len(inner)} points takes {need / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
            "free; give fewer points"
        )
    ts = tuple(inner)
    return (*((s, ts) for s in outer), *(() if 0 in outer and 0 in inner else ((0.0, (0.0,)),)))


def _plane(grid: Grid, xs: list[float], ys: list[float] | None, how: Execution) -> Plane:
    for name, tensor in [*grid.model.named_parameters(), *grid.model.named_buffers()]:
        if not _finite(tensor):
            raise ValueError(f"{name} is not finite; a landscape needs finite weights: load an earlier checkpoint")
    if not grid.batches:
        raise ValueError("batches is empty; give at least one batch")
    rows = compute(grid, how)
    outer = xs if ys is None else ys
    values = torch.from_numpy(np.stack(rows[: len(outer)], axis=1))  # [2, Y, X], of a line [2, X, 1]
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


def _center(grid: Grid, rows: Sequence[Row]) -> Any:
    """Loss and accuracy [2] at (0, 0)."""
    return next(row[:, ts.index(0)] for row, (s, ts) in zip(rows, grid.rows, strict=True) if s == 0 and 0 in ts)


def _coordinates(values: Sequence[float] | Tensor) -> list[float]:
    numbers: list[float] = torch.as_tensor(values, dtype=torch.float64).tolist()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"coordinates {numbers[:3]} are none, or not all finite; give at least one finite number")
    return numbers


def _fitting(model: nn.Module, tensors: Direction, title: str) -> dict[str, Tensor]:
    """The tensors on the devices and in the types of the model's own, which they are checked against."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fitting = {}
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            there = f"{list(own[name].shape)} in the model" if name in own else "not in the model"
            raise ValueError(
                f"{title} has {name} of shape {list(tensor.shape)}, which is {there}; give one that fits it"
            )
        fitted = tensor.detach().to(own[name])
        moves_itself = fitted.untyped_storage().data_ptr() == own[name].untyped_storage().data_ptr()
        fitting[name] = fitted.clone() if moves_itself else fitted
        if not _finite(fitted):
            raise ValueError(f"{name} of {title} is not finite; give finite numbers")
    if not fitting:
        raise ValueError(f"{title} is empty; give a tensor for at least one parameter")
    return fitting


def _finite(tensor: Tensor) -> bool:
    # the extremes, and not `isfinite`: nothing of the tensor's size is made
    return not tensor.is_floating_point() or not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


# --- the measurement -------------------------------------------------------------------------------------------------


def landscape(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """The loss and accuracy on a line or plane through the weights, along directions of three kinds.

    `random`: filter-normalised Gaussian ones. `eigenvectors`: the Hessian's top ones, of length 1, so that the second
    difference at the centre is the eigenvalue. `between`: to another checkpoint.

    Rows are kept in a folder below `arrays` until the grid is whole, and found there after an interruption."""
    images = _images(subject, config)
    batches = _held(images)
    settings = {
        "kind": config.landscape,
        "dims": 1 if config.landscape == "between" else config.dims,
        "points": config.points,
        "span": config.span,
        "normalization": "filter" if config.landscape == "random" else "none",
        "landscape_images": sum(map(len, batches)),
        "other": config.other,
    }
    extra = {"tol": config.tol, "max_steps": config.max_steps, "batch_size": config.batch_size}
    key = hashlib.sha256(json.dumps([subject.settings, subject.where, settings, extra]).encode()).hexdigest()[:8]
    folder = arrays / f"landscape-{key}-rows"
    how = Execution(folder, config.processes, subject.runtime.world_size > 1)
    plane, facts = _KINDS[config.landscape](subject, config, images, batches, how)
    name = f"landscape-{config.landscape}-step{subject.where.get('step', 0)}-{key}.npz"
    if subject.runtime.is_main:
        _save(plane, arrays / name)
        shutil.rmtree(folder)
    yield Record(
        "landscape/height",
        plane.height,
        "nats",
        n=plane.loss.numel(),
        settings=settings | {name: value for name, value in facts.items() if name != "converged"},
        cost={"forwards": plane.num_forwards},
        source=SOURCE,
        arrays=f"arrays/{name}",
        converged=bool(plane.loss.isfinite().all()) and facts.get("converged", True),
    )


Found = tuple[Plane, dict[str, Any]]


@dataclass(frozen=True)
class _Judge:
    """Loss and right answers of a batch; not a closure, so that it can be sent to other processes."""

    config: Config
    num_classes: int

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        found = make_objective(self.config, self.num_classes)(model, batch)
        return found.value, found.logits.argmax(1) == batch.labels


def _judge(subject: Subject) -> _Judge:
    config = replace(subject.config, loss=subject.settings["loss"], label_smoothing=0.0)
    return _Judge(config, len(subject.classes))


def _random(subject: Subject, config: MeasureConfig, _: Batches, batches: list[Batch], how: Execution) -> Found:
    """Along Gaussian directions, filter by filter as long as the weights."""
    generator = Generator().manual_seed(config.seed)
    directions = [filter_direction(subject.model, generator) for _ in range(config.dims)]
    return _around(subject, config, batches, directions, how), {}


def _eigenvectors(
    subject: Subject, config: MeasureConfig, images: Batches, batches: list[Batch], how: Execution
) -> Found:
    """Along the Hessian's top eigenvectors over the same images."""
    share = images.share(subject.runtime)
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    distributed = subject.runtime.world_size > 1
    op = Hessian(subject.model, subject.loss, share, dtype=dtype, distributed=distributed)
    pairs = _kept_pairs(op, config, how)
    directions = [op.split(vector) for vector in pairs["vectors"].to(op.device)]
    facts = {name: pairs[name].tolist() for name in ("curvature", "residuals", "converged")}
    return _around(subject, config, batches, directions, how), facts


def _kept_pairs(op: Hessian, config: MeasureConfig, how: Execution) -> dict[str, Tensor]:
    """Eigenpairs, found beside the rows if they were computed before: rows of two runs must have the same vectors."""
    assert how.folder is not None
    path = how.folder / "eigenvectors.pt"
    known: list[Any] = [torch.load(path, weights_only=True) if path.is_file() else None]
    if how.distributed:
        dist.broadcast_object_list(known, src=0)
    if known[0] is not None:
        return dict(known[0])
    generator = Generator().manual_seed(config.seed)
    found = top_eigenvalues(op, config.dims, tol=config.tol, max_steps=config.max_steps, generator=generator)
    assert found.vectors is not None
    vectors = found.vectors.T.cpu().contiguous()
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()  # else that of the start decides
    pairs = {"vectors": vectors * signs, "curvature": found.values, "residuals": found.residuals}
    pairs["converged"] = torch.tensor(found.converged)
    if not how.distributed or dist.get_rank() == 0:
        how.folder.mkdir(parents=True, exist_ok=True)
        torch.save(pairs, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return pairs


def _around(
    subject: Subject, config: MeasureConfig, batches: list[Batch], directions: list[Any], how: Execution
) -> Plane:
    x = axis(config.points, config.span)
    y = x if config.dims == 2 else None
    return loss_plane(subject.model, _judge(subject), batches, directions, x, y, how)


def _between(subject: Subject, config: MeasureConfig, _: Batches, batches: list[Batch], how: Execution) -> Found:
    """From this checkpoint to that of another run, or to another of this one."""
    other = _other(subject, config)
    if other.settings["model"] != subject.settings["model"]:
        raise ValueError(
            f"--other {config.other} is a {other.settings['model']} and {subject.name} a {subject.settings['model']}; "
            "give a run of the same --model.name"
        )
    x = torch.linspace(0, 1, config.points, dtype=torch.float64)
    plane = loss_between(subject.model, other.model, _judge(subject), batches, x, how)
    return plane, {"other_weights": other.settings["weights"]}


def _other(subject: Subject, config: MeasureConfig) -> Subject:
    """The subject at the other end."""
    plain = replace(config, landscape="random", other="")
    if (Path(config.other) / "config.json").is_file():
        return open_subject(config.other, plain, subject.runtime)
    if subject.run and (config.other.isdigit() or config.other in ("best", "last", "init")):
        return open_subject(subject.name, replace(plain, checkpoint=config.other), subject.runtime)
    raise ValueError(
        f"--other {config.other} is no run folder"
        + (f" and no step of {subject.name}; give one of the two" if subject.run else "; give one")
    )


_KINDS: dict[str, Callable[[Subject, MeasureConfig, Batches, list[Batch], Execution], Found]] = {
    "random": _random,
    "eigenvectors": _eigenvectors,
    "between": _between,
}


def fast_batch_size(model: nn.Module, image: Tensor, most: int) -> int:
    """Images a forward pass on a CPU takes at full speed: the largest output of a layer then stays within 16 MiB.

    Args:
        image: one image [1, C, H, W].
        most: not more than these."""
    largest = 1

    def look(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, output.nbytes if isinstance(output, Tensor) else 0)

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        with borrowed(model), torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return min(most, 1 << (max(1, OUTPUT_BYTES // largest).bit_length() - 1))


def _images(subject: Subject, config: MeasureConfig) -> Batches:
    """The images, in batches of a size that is fast."""
    images = subject.batches
    if config.landscape_images:
        images = images.few(config.landscape_images, config.seed)
    if images.device.type != "cpu":
        return images
    first = next(iter(images.few(1, config.seed))).images
    return replace(images, batch_size=fast_batch_size(subject.model, first, images.batch_size))


def _held(images: Batches) -> list[Batch]:
    """The batches, in memory: every point needs them all.

    Raises:
        ValueError: they do not fit."""
    held: list[Batch] = []
    for batch in images:
        held.append(batch)
        need = len(images) * batch.images.nbytes
        if len(held) == 1 and need > free_bytes(images.device):
            raise ValueError(
                f"the landscape keeps its {len(images.split)} images in memory, {need / 2**30:.1f} GiB, and less is "
                f"free on {images.device}; give fewer with --landscape-images"
            )
    return held


def _save(plane: Plane, path: Path) -> None:
    """Write the arrays, in one piece or not at all."""
    columns: dict[str, Any] = {item.name: getattr(plane, item.name) for item in fields(plane)}
    del columns["num_forwards"]
    aside = path.with_suffix(".partial")
    with aside.open("wb") as file:
        np.savez(file, allow_pickle=False, **{k: np.asarray(v) for k, v in columns.items() if v is not None})
    aside.replace(path)
