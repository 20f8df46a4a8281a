"""Products with the mean of one matrix per batch, retaining as many graphs as memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from samovar.anymodel.devices import check_float64
from samovar.anymodel.restore import bare
from samovar.curvature.borrow import Mode, borrow, refuse_batch_coupling, seed
from samovar.curvature.check import check_products, symmetric
from samovar.curvature.graphs import Graph, Parts, free_bytes, held_bytes
from samovar.curvature.inputs import (
    cast,
    check_finite,
    checked_distributed,
    checked_retain,
    choose,
    convert,
    fingerprint,
    num_examples,
    stamp,
    working_dtype,
)

Retain = bool | int | Literal["auto"]

FREE_SHARE = 0.25
"""Share of the free memory for retained graphs; a second backward pass needs room beside them."""


class MeanOverBatches:
    """The mean over examples of a matrix that each batch gives by a graph.

    The arguments are those of `operators.Hessian`."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        params: Iterable[str | Tensor] | str | None,
        dtype: torch.dtype | None,
        retain: Retain,
        distributed: bool,
        mode: Mode,
        check: bool,
    ) -> None:
        if isinstance(batches, Iterator):
            raise ValueError(
                "batches can be read only once; give a list or a DataLoader, as every product "
                "reads them"
            )
        self._model, self._batches, self._mode = bare(model), batches, mode
        refuse_batch_coupling(self._model, mode)
        self._params = choose(self._model, params)
        self._sizes = [param.numel() for param in self._params.values()]
        self.size = sum(self._sizes)
        self.device = next(iter(self._params.values())).device
        self.dtype = working_dtype(dtype, self._params.values())
        check_float64(self.dtype, self.device)
        self._retain, self._distributed = checked_retain(retain), checked_distributed(distributed)
        self._trainable = {name for name, param in self._params.items() if param.requires_grad}
        self._leaves: list[Tensor] = []
        self._tensors: dict[str, Tensor] = {}
        self._stamp: Any = None
        self._kept: dict[int, tuple[int, Graph]] = {}
        self._prints: list[Any] = []
        self._budget = 0
        self._check, self._sample = check, None
        self.checked = False
        """Whether the products were found to be those of the loss."""
        self.num_products = 0
        """Number of products with single vectors so far."""
        self.num_graphs = 0
        """Number of graphs built so far: one per batch and pass that found no retained graph."""

    @property
    def names(self) -> list[str]:
        """Return the names of the chosen parameters, in the order of the flat vector."""
        return list(self._params)

    def split(self, v: Tensor) -> dict[str, Tensor]:
        """Return views of a flat vector [P], one per parameter, in its shape."""
        parts = torch.split(v, self._sizes)
        return {
            name: part.view(param.shape)
            for part, (name, param) in zip(parts, self._params.items(), strict=True)
        }

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the matrix times v [P], or times each column of v [P, k].

        For several columns the graph of a batch is built once.

        Raises:
            ValueError: v has another shape; weights or loss are not finite; the loss is not a
                scalar; there are no batches, or they differ from those of the product before;
                another process failed; the first product does not pass the check."""
        if v.dim() not in (1, 2) or v.shape[0] != self.size:
            raise ValueError(
                f"v has shape {list(v.shape)}; the operator takes [{self.size}] or [{self.size}, k]"
            )
        columns = v.detach().to(self.device, self.dtype).reshape(self.size, -1).T.contiguous()
        pieces = [self._pieces(column) for column in columns]
        self.num_products += len(columns)

        def products(graph: Graph, keep: bool) -> Iterator[Parts]:
            for i, piece in enumerate(pieces, start=1):
                yield graph.product(piece, keep=keep or i < len(pieces))

        mean = self._mean(products, len(columns), check=self._check)
        return mean[:, : self.size].T.reshape(v.shape)

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """Return the mean loss and its gradient [P] over the chosen parameters.

        It costs nothing for batches whose graph is retained."""
        mean = self._mean(lambda graph, keep: iter([graph.gradient()]), 1)[0]
        return float(mean[-1]), mean[: self.size]

    def see_symmetry(self, apart: float, size: float) -> None:
        """Take |u.Hv - v.Hu| of two unit vectors, and the size of H u and H v.

        Raises:
            ValueError: in float64 they are apart, in products that were found to be right.

        Warns:
            UserWarning: in float32 or on several processes they are; `checked` is False then."""
        if self.checked:  # which may differ between processes: all of them have to go on
            strict = self.dtype == torch.float64 and not self._distributed
            self.checked = symmetric(apart, size, strict=strict)

    def release(self) -> None:
        """Free the retained graphs; the next product builds them again."""
        self._kept.clear()
        self._stamp = None

    @torch.inference_mode(False)
    def _mean(
        self,
        rows: Callable[[Graph, bool], Iterator[Parts]],
        num_rows: int,
        *,
        check: bool = False,
    ) -> Tensor:
        """Return the mean over examples [num_rows, P + 1] of the rows that each graph yields.

        The last column is the mean loss."""
        # Two more columns, the loss and the number of examples, so that ranks need one all-reduce;
        # NaN in it says that a rank failed.
        means = torch.empty(num_rows, self.size + 2, device=self.device, dtype=self.dtype)

        def average_all() -> None:
            examples = 0
            for weight, graph, keep in self._graphs():
                examples += weight
                if check and self._check:
                    self._check_products()
                for mean, row in zip(means, rows(graph, keep), strict=True):
                    self._average(mean, row, graph.loss, weight / examples)
                # Freed before the next is built: at most one graph is alive that is not retained.
                del graph
            means[:, -1] = examples

        try:
            self._refresh()
            # Copies, because a layer may write to its buffers.
            buffers = {
                name: cast(x, self.dtype, copy=True) for name, x in self._model.named_buffers()
            }
            borrow(self._model, self._tensors | buffers, self._mode, self.device, average_all)
        except Exception:
            if self._distributed:
                dist.all_reduce(means.fill_(torch.nan))
            raise
        if self._distributed:
            means[:, :-1] *= means[:, -1:].clone()
            dist.all_reduce(means)
            if means[0, -1].isnan():
                raise ValueError("another process failed in this product; its own message says why")
            means[:, :-1] /= means[:, -1:].clone()
        return means[:, :-1]

    def _average(self, mean: Tensor, row: Parts, loss: float, share: float) -> None:
        """Fold one batch's row and loss into the running mean with weight `share`; 1 begins it."""
        with torch.no_grad():
            if share < 1:
                mean[:-1] *= 1 - share
            elif len(self._trainable) < len(self._params) or any(part is None for part in row):
                mean.zero_()  # for the entries that no gradient reaches
            views = self._pieces(mean[: self.size])
            found = [
                (view, each.to(view.device))
                for view, each in zip(views, row, strict=True)
                if each is not None
            ]
            parts, each = [view for view, _ in found], [each for _, each in found]
            if share < 1:
                torch._foreach_add_(
                    [*parts, mean[self.size]], [*each, mean.new_tensor(loss)], alpha=share
                )
            else:
                torch._foreach_copy_([*parts, mean[self.size]], [*each, mean.new_tensor(loss)])

    def _pieces(self, v: Tensor) -> list[Tensor]:
        """Return views of a flat vector, one per leaf (a trainable parameter)."""
        parts = self.split(v)
        return [part for name, part in parts.items() if name in self._trainable]

    def _graphs(self) -> Iterator[tuple[int, Graph, bool]]:
        """Yield (examples, graph, is it retained) of every batch; build what is missing."""
        if self._kept and len(self._kept) == len(self._prints):
            yield from ((weight, graph, True) for weight, graph in self._kept.values())
            return
        known, self._prints = self._prints, []
        for i, batch in enumerate(self._batches):
            self._prints.append(fingerprint(batch))
            if known and self._prints != known[: i + 1]:
                raise ValueError(_CHANGED)
            yield self._kept[i] + (True,) if i in self._kept else self._built(i, batch)
        if not self._prints:
            raise ValueError("there are no batches; give at least one")
        if len(self._prints) < len(known):
            raise ValueError(_CHANGED)

    def _built(self, i: int, batch: Any) -> tuple[int, Graph, bool]:
        if i == 0 and self._check:
            self._sample = batch
        weight, batch = num_examples(batch), convert(batch, self.device, self.dtype)
        seed(i, self.device)
        graph = self._graph(batch, self._leaves)
        self.num_graphs += 1
        keep = self._has_room_for(graph)
        if keep:
            self._kept[i] = weight, graph
        return weight, graph, keep

    def _check_products(self) -> None:
        names = [name for name in self._params if name in self._trainable]
        self.checked = check_products(
            *(self._model, names, self._sample, self.dtype, self._mode),
            *(self._graph, self._slope),
        )
        self._check, self._sample = False, None

    def _graph(self, batch: Any, leaves: Sequence[Tensor]) -> Graph:
        raise NotImplementedError

    def _slope(self, batch: Any, leaves: Sequence[Tensor]) -> Parts:
        """Return the slope of the batch's graph without building it."""
        raise NotImplementedError

    def _has_room_for(self, graph: Graph) -> bool:
        if isinstance(self._retain, bool):
            return self._retain
        if self._retain == "auto" and isinstance(self._batches, Sized) and len(self._batches) == 1:
            return True  # a fresh graph would need as much memory at its peak
        self._budget -= held_bytes(graph, self._leaves)
        return self._budget >= 0

    def _refresh(self) -> None:
        """Drop the graphs if a weight or buffer was replaced or written to since then."""
        now = stamp(self._model)
        if now == self._stamp:
            return
        self.release()
        # The norm of large finite numbers may be infinite too, so look again.
        if not all(math.isfinite(norm) for norm in now[1]):
            check_finite(self._model)
        tensors = {name: cast(param, self.dtype) for name, param in self._model.named_parameters()}
        self._leaves = [
            tensors[name].requires_grad_() for name in self._params if name in self._trainable
        ]
        self._tensors, self._stamp = tensors, now
        self._budget = (
            int(free_bytes(self.device) * FREE_SHARE)
            if self._retain == "auto"
            else int(self._retain)
        )


_CHANGED = (
    "the batches differ from those of the product before; give the same in the same order every "
    "time (shuffle=False, no random augmentation), or a list of them"
)
