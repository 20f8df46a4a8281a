"""A grid of points around a model's weights, and how one process computes its rows in place.

`grid_processes.compute` shares the rows of a grid among processes, `grid_rows` keeps them in files.
A row does not depend on who computes it: workers run on one thread each, and so does the first
process while it shares the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from samovar.anymodel import outputs as returned
from samovar.anymodel.restore import evaluating
from samovar.curvature.borrow import seed
from samovar.curvature.inputs import num_examples
from samovar.runtime import keep_freed_memory

Direction: TypeAlias = Mapping[str, Tensor]
"""A step for parameters and buffers, by name; those that it does not name stand still."""
PointLoss: TypeAlias = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Tensor]]
"""Maps (model, batch) to the mean loss [] over the batch, or to a pair of it and of which examples
are right, bool [B]."""
GridRow: TypeAlias = npt.NDArray[np.float64]
"""[2, T]: loss and share of right answers, nan where the loss function does not return them."""


@dataclass(frozen=True)
class Execution:
    """Settings of how the rows are computed, and where they are kept."""

    folder: Path | None = None
    """Where finished rows are kept, each as soon as it is finished. Rows found here of the same
    weights, images and points are not computed again. One folder per loss; None keeps nothing."""
    processes: int = 1
    """Processes on a CPU, this one included, of one thread each. 1 leaves the number of threads as
    it is, so the last bits may differ. 0 is one per core if the rest of the grid, judged by its
    first row, would take this process more than 20 s. New processes import the main module, so a
    script needs `if __name__ == "__main__":`."""
    distributed: bool = False
    """Share the rows among the processes of the default group; all must call together, and all get
    all rows."""
    progress: Callable[[int, int], None] | None = None
    """Called with the number of finished rows and of all rows, after each row of this process."""


@dataclass(frozen=True)
class Offsets:
    """Points of a plane: the weights w + s * outer + t * inner."""

    outer: Direction
    inner: Direction = field(default_factory=dict)

    def write(self, name: str, kept: Tensor, s: float, out: Tensor) -> None:
        """Write the value at (s, 0) of a tensor that `outer` moves into `out`."""
        torch.add(kept, self.outer[name], alpha=s, out=out)


class Segment(Offsets):
    """Points of a line between two models: (1 - s) w + s * outer, exact to the bit at both ends.

    Integer tensors are those of the nearer end."""

    def write(self, name: str, kept: Tensor, s: float, out: Tensor) -> None:
        """Write the value at s of a tensor into `out`."""
        end = self.outer[name]
        if s == 1 or not end.is_floating_point():
            out.copy_(end if s >= 0.5 else kept)
        else:
            torch.lerp(kept, end, s, out=out)


@dataclass(frozen=True)
class LandscapeGrid:
    """Everything that determines the values of a grid."""

    model: nn.Module
    loss: PointLoss
    batches: Sequence[Any]
    moves: Offsets
    """On the devices and in the types of the tensors that they move."""
    rows: tuple[tuple[float, tuple[float, ...]], ...]
    """Coordinate s of each row, with the coordinates t of its points."""

    @property
    def moving(self) -> list[str]:
        """Names of the parameters and buffers that move."""
        return list({**self.moves.outer, **self.moves.inner})

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(iter([*self.model.parameters(), *self.model.buffers()])).device


def fill(grid: LandscapeGrid, numbers: Iterable[int], keep: Callable[[int, GridRow], None]) -> None:
    """Compute the rows with these numbers; restore the weights after each.

    Args:
        numbers: taken one by one, each when the row before it is finished.
        keep: called with the number of a row and the row."""
    keep_freed_memory()
    # no_grad and not inference mode: a model that caches tensors could not train on with those
    with evaluating(grid.model), torch.no_grad():
        named = {**dict(grid.model.named_parameters()), **dict(grid.model.named_buffers())}
        live = {name: named[name].detach() for name in grid.moving}
        kept = {name: tensor.clone() for name, tensor in live.items()}
        base = {name: torch.empty_like(kept[name]) for name in grid.moves.outer}
        for number in numbers:
            try:
                row = compute_row(grid, live, kept, base, *grid.rows[number])
            finally:
                _set(live, kept)
            keep(number, row)


def compute_row(
    grid: LandscapeGrid,
    live: Direction,
    kept: Direction,
    base: Direction,
    s: float,
    ts: Sequence[float],
) -> GridRow:
    """Compute one row; leaves the weights at its last point.

    Args:
        live: the model's own tensors, which are written to.
        kept: copies of their values at the centre.
        base: room for their values at (s, 0).
        s: coordinate of the row.
        ts: coordinates of its points."""
    if s:
        for name, tensor in base.items():
            grid.moves.write(name, kept[name], s, tensor)
        kept = {**kept, **base}
    points = []
    for t in ts:
        _set(live, kept, grid.moves.inner, t)
        points.append(_point(grid))
    sizes = [num_examples(batch) for batch in grid.batches]
    # one transfer to the host per row; summed in the order of `mean_loss`, so that the centre is
    # its value to the bit
    losses = [
        sum(v * n for v, n in zip(values, sizes, strict=True))
        for values in _to_host([point[0] for point in points])
    ]
    rights = [sum(values) for values in _to_host([point[1] for point in points])]
    return np.array([losses, rights], np.float64) / sum(sizes)


def _set(live: Direction, base: Direction, inner: Direction | None = None, t: float = 0.0) -> None:
    """Set the live weights to base + t * inner; t = 0 sets them to the base, to the bit."""
    for name, tensor in live.items():
        if t and inner and name in inner:
            torch.add(base[name], inner[name], alpha=t, out=tensor)
        else:
            tensor.copy_(base[name])
    # an outer autocast would go on with its 16-bit copies of the weights before
    torch.clear_autocast_cache()


def _point(grid: LandscapeGrid) -> tuple[Tensor, Tensor]:
    """Return the mean loss [batches] and the number of right answers [batches] of each batch."""
    values, rights = [], []
    for number, batch in enumerate(grid.batches):
        # the same random numbers at every point, else their noise would look like a rough surface
        seed(number, grid.device)
        value, right = _loss_and_right(grid, batch)
        values.append(value)
        rights.append(
            value.new_full((), torch.nan).float() if right is None else right.sum().float()
        )
    return torch.stack(values), torch.stack(rights)


def _loss_and_right(grid: LandscapeGrid, batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the loss [] of a batch, and which examples are right, bool [B], if that is known."""
    found: Any = returned.called(grid.loss, grid.model, batch, example=returned.OF_MODEL_AND_BATCH)
    value, right = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    fault = f"the second of the pair is {type(right).__name__}"
    if right is None or (isinstance(right, Tensor) and right.dtype == torch.bool):
        try:
            return returned.loss_of(value), right
        except ValueError as error:
            fault = str(error)
    raise ValueError(
        "the loss function must return the mean loss over the batch, a tensor of shape [], or a "
        f"pair of it and of which examples are right, bool [B]: {fault}"
    )


def _to_host(rows: Sequence[Tensor]) -> list[list[float]]:
    return torch.stack(list(rows)).cpu().double().tolist()


@contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Set torch's number of threads inside, None leaves it; yields the number before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
