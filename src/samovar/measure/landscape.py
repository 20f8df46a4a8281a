"""The measurement `landscape`: loss and accuracy on a line or plane through the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from samovar.anymodel.devices import to_device
from samovar.anymodel.restore import evaluating
from samovar.config import Config, MeasureConfig
from samovar.curvature import Hessian, top_eigenvalues
from samovar.curvature.graphs import free_bytes
from samovar.data.loader import Batch
from samovar.measure.grid import Execution
from samovar.measure.hessian import hessian_of
from samovar.measure.plane import Plane, axis, filter_direction, loss_between, loss_plane
from samovar.measure.subject import Batches, Subject, open_subject, protocol_digest
from samovar.objectives import make_objective
from samovar.runs.records import Record

SOURCE = "arXiv:1712.09913; Figure 1 of arXiv:2106.01548"
OUTPUT_BYTES = 16 << 20
"""Size of a layer's output up to which larger batches are no slower on a CPU (six nets timed)."""


PlaneAndFacts: TypeAlias = tuple[Plane, dict[str, Any]]
"""A plane, and what the record states of its directions."""


def landscape(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Measure loss and accuracy on a line or plane through the weights.

    The directions are filter-normalised Gaussian ones (`random`), the Hessian's top ones of length
    1, so that the second difference at the centre is the eigenvalue (`eigenvectors`), or that to
    another checkpoint (`between`).

    Rows are kept in a folder below `arrays` until the grid is complete, so that an interrupted
    measurement is continued."""
    images = _images(subject, config)
    batches = _in_memory(images)
    settings = {
        "kind": config.landscape,
        "dims": 1 if config.landscape == "between" else config.dims,
        "points": config.points,
        "span": config.span,
        "normalization": "filter" if config.landscape == "random" else "none",
        "landscape_images": sum(map(len, batches)),
        "other": config.other,
    }
    # --dtype is the precision of Hessian products, and only eigenvectors need these
    if config.landscape != "eigenvectors":
        settings["dtype"] = "float32"
    key = protocol_digest("landscape", subject, config)
    folder = arrays / f"landscape-{key}-rows"
    how = Execution(folder, config.processes, subject.runtime.world_size > 1)
    plane, facts = _KINDS[config.landscape](subject, config, images, batches, how)
    name = f"landscape-{config.landscape}-step{subject.where.get('step', 0)}-{key}.npz"
    if subject.runtime.is_main:
        _save(plane, arrays / name)
        shutil.rmtree(folder)  # the rows are in the file of arrays now
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


# a class and not a closure, so that it can be sent to other processes
@dataclass(frozen=True)
class _Judge:
    """The loss and the right answers of a batch, as a function of model and batch."""

    config: Config
    num_classes: int

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        found = make_objective(self.config, self.num_classes)(model, batch)
        return found.value, found.logits.argmax(1) == batch.labels


def _judge(subject: Subject) -> _Judge:
    # label smoothing is a means of training; the landscape is that of the plain loss
    config = replace(subject.config, loss=subject.settings["loss"], label_smoothing=0.0)
    return _Judge(config, len(subject.classes))


def _random(
    subject: Subject, config: MeasureConfig, _: Batches, batches: list[Batch], how: Execution
) -> PlaneAndFacts:
    """Compute the plane along Gaussian directions whose filters have the norms of the weights'."""
    generator = Generator().manual_seed(config.seed)
    directions = [filter_direction(subject.model, generator) for _ in range(config.dims)]
    return _around(subject, config, batches, directions, how), {}


def _eigenvectors(
    subject: Subject, config: MeasureConfig, images: Batches, batches: list[Batch], how: Execution
) -> PlaneAndFacts:
    """Compute the plane along the top eigenvectors of the Hessian over the same images."""
    op = hessian_of(subject, config, batches=images)
    pairs = _kept_pairs(op, config, how)
    directions = [op.split(vector) for vector in to_device(pairs["vectors"], op.device)]
    facts = {name: pairs[name].tolist() for name in ("curvature", "residuals", "converged")}
    return _around(subject, config, batches, directions, how), facts


def _kept_pairs(op: Hessian, config: MeasureConfig, how: Execution) -> dict[str, Tensor]:
    """Return eigenpairs, kept beside the rows: all rows of a grid must have the same vectors."""
    assert how.folder is not None
    path = how.folder / "eigenvectors.pt"
    # Lanczos by another number of threads or ranks gives slightly other vectors
    known: list[Any] = [torch.load(path, weights_only=True) if path.is_file() else None]
    if how.distributed:
        dist.broadcast_object_list(known, src=0)
    if known[0] is not None:
        return dict(known[0])
    generator = Generator().manual_seed(config.seed)
    found = top_eigenvalues(
        op, config.dims, tol=config.tol, max_steps=config.max_steps, generator=generator
    )
    assert found.vectors is not None
    vectors = found.vectors.T.cpu().contiguous()
    # the largest entry is positive, else the sign would depend on the start of Lanczos
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    pairs = {"vectors": vectors * signs, "curvature": found.values, "residuals": found.residuals}
    pairs["converged"] = torch.tensor(found.converged)
    if not how.distributed or dist.get_rank() == 0:
        how.folder.mkdir(parents=True, exist_ok=True)
        torch.save(pairs, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return pairs


def _around(
    subject: Subject,
    config: MeasureConfig,
    batches: list[Batch],
    directions: list[Any],
    how: Execution,
) -> Plane:
    x = axis(config.points, config.span)
    y = x if config.dims == 2 else None
    return loss_plane(subject.model, _judge(subject), batches, directions, x, y, how)


def _between(
    subject: Subject, config: MeasureConfig, _: Batches, batches: list[Batch], how: Execution
) -> PlaneAndFacts:
    """Compute the line to the checkpoint of another run, or to another checkpoint of this one."""
    other = _other(subject, config)
    if other.settings["model"] != subject.settings["model"]:
        raise ValueError(
            f"--other {config.other} is a {other.settings['model']} and {subject.name} a "
            f"{subject.settings['model']}; give a run of the same --model.name"
        )
    x = torch.linspace(0, 1, config.points, dtype=torch.float64)
    plane = loss_between(subject.model, other.model, _judge(subject), batches, x, how)
    return plane, {"other_weights": other.settings["weights"]}


def _other(subject: Subject, config: MeasureConfig) -> Subject:
    """Open the subject at the other end of the line."""
    if (Path(config.other) / "config.json").is_file():
        return open_subject(config.other, config, subject.runtime)
    if subject.run and (config.other.isdigit() or config.other in ("best", "last", "init")):
        return open_subject(subject.name, replace(config, checkpoint=config.other), subject.runtime)
    raise ValueError(
        f"--other {config.other} is no run folder"
        + (f" and no step of {subject.name}; give one of the two" if subject.run else "; give one")
    )


_KINDS: dict[
    str, Callable[[Subject, MeasureConfig, Batches, list[Batch], Execution], PlaneAndFacts]
] = {
    "random": _random,
    "eigenvectors": _eigenvectors,
    "between": _between,
}


def fast_batch_size(model: nn.Module, image: Tensor, most: int) -> int:
    """Return a number of images that a forward pass on a CPU computes at full speed.

    The largest output of a layer then stays within 16 MiB.

    Args:
        image: one image [1, C, H, W].
        most: the largest number to return."""
    largest = 1

    def look(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, output.nbytes if isinstance(output, Tensor) else 0)

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        with evaluating(model), torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    # a power of two, rounded down
    return min(most, 1 << (max(1, OUTPUT_BYTES // largest).bit_length() - 1))


def _images(subject: Subject, config: MeasureConfig) -> Batches:
    """Return the images of the landscape, in batches of a size that is fast."""
    images = subject.batches
    if config.landscape_images:
        images = images.few(config.landscape_images, config.seed)
    if images.device.type != "cpu":
        return images
    # on a CPU the fast size depends on the network; on a GPU --batch-size holds
    first = next(iter(images.few(1, config.seed))).images
    return replace(images, batch_size=fast_batch_size(subject.model, first, images.batch_size))


def _in_memory(images: Batches) -> list[Batch]:
    """Read all batches into memory, since every point needs them.

    Raises:
        ValueError: they do not fit."""
    batches: list[Batch] = []
    for batch in images:
        batches.append(batch)
        need = len(images) * batch.images.nbytes
        if len(batches) == 1 and need > free_bytes(images.device):
            raise ValueError(
                f"the landscape keeps its {len(images.split)} images in memory, "
                f"{need / 2**30:.1f} GiB, and less is free on {images.device}; "
                "give fewer with --landscape-images"
            )
    return batches


def _save(plane: Plane, path: Path) -> None:
    """Write the arrays of a plane, all or nothing."""
    columns: dict[str, Any] = {item.name: getattr(plane, item.name) for item in fields(plane)}
    del columns["num_forwards"]
    aside = path.with_suffix(".partial")
    with aside.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            **{k: np.asarray(v) for k, v in columns.items() if v is not None},
        )
    aside.replace(path)
