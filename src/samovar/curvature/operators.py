"""Curvature of a model's loss as a linear operator: the Hessian and the generalized Gauss-Newton
matrix, by products.

`Hessian(model, loss, batches) @ v` is exact, works on any differentiable model, stock timm
transformers included, and leaves the model as it was. Vectors are flat: the chosen parameters one
after the other, in the model's order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from samovar.curvature.borrow import Mode
from samovar.curvature.graphs import GaussNewtonGraph, Graph, hessian_graph
from samovar.curvature.mean import MeanOverBatches, Retain

LossFn = Callable[[nn.Module, Any], Tensor]


class LinearOperator(Protocol):
    """A symmetric matrix [P, P] known by its products."""

    size: int
    device: torch.device
    dtype: torch.dtype

    def __matmul__(self, v: Tensor, /) -> Tensor:
        """The product with a vector [P], or with each column of [P, k]."""


class Hessian(MeanOverBatches):
    """The Hessian of the mean loss over the examples of all batches, over some or all parameters of
    a model.

    A product costs 2.1 to 2.4 gradients per batch whose graph is retained, 3.4 per batch whose
    graph is not. In between, the weights may change by any means: the graphs are then built again.
    Batches must be the same in every pass.

    Modules are in eval mode, attention runs as plain matrix products, autocast and TF32 are off;
    all that, the weights, buffers, gradients and random streams are as before after each product,
    also if it raises. DDP wrappers and
    torch.compile are looked through: the loss gets the bare model.

    Args:
        model: a module on one device or several; its dtype may be another than the operator's.
        loss: maps (model, batch) to the mean loss [] over the batch. Random numbers of torch that
            it draws are the same in every product.
        batches: read anew by every product that needs them; a list, a DataLoader that does not
            shuffle or augment. Each weighs as many examples as its `len()`, or as the first
            dimension of the first tensor in it if it is a tensor, tuple, list or dict, or has no
            length. Its tensors, in containers and dataclasses too, are moved to the model's device
            and floating ones to `dtype`.
        params: names, patterns (see `match`) or parameters of the block to look at; None is all
            that require gradients. Frozen ones that are named have zero rows, and so do those that
            the loss does not use.
        dtype: torch.float32 or torch.float64, on copies of the weights if theirs is another; None
            is float64 for a float64 model, else float32.
        retain: which gradient graphs to hold between products: True all, False none, a number as
            many as fit into that many bytes, "auto" a single batch's or what fits into a quarter of
            the memory that is free.
        distributed: each process of the default group gives batches of its own; products are means
            over all examples, by one all-reduce of P + 2 numbers. All must call together, with the
            same v.
        mode: "train" leaves dropout and stochastic depth on, with masks fixed per batch.

    Raises:
        ValueError: BatchNorm that uses batch statistics; nothing to differentiate; an iterator for
            batches; another dtype; distributed without a process group.

    Source: Pearlmutter (1994), by reverse mode twice."""

    def __init__(
        self,
        model: nn.Module,
        loss: LossFn,
        batches: Iterable[Any],
        *,
        params: Iterable[str | Tensor] | str | None = None,
        dtype: torch.dtype | None = None,
        retain: Retain = "auto",
        distributed: bool = False,
        mode: Mode = "eval",
    ) -> None:
        super().__init__(model, batches, params, dtype, retain, distributed, mode)
        self._loss = loss

    def _graph(self, batch: Any) -> Graph:
        return hessian_graph(self._loss(self._model, batch), self._leaves)


class GaussNewton(MeanOverBatches):
    """The generalized Gauss-Newton matrix J^T H_out J, J of the model's outputs and H_out of the
    loss of outputs.

    Positive semi-definite where the loss is convex in the outputs, and then for softmax
    cross-entropy also the Fisher information. A product costs some 1.4 gradients with a retained
    graph.

    Args:
        outputs: maps (model, batch) to outputs, as a rule logits [B, K].
        loss: maps (outputs, batch) to the mean loss [] over the batch; it must not touch the model.

    The other arguments, and what is raised, are as for `Hessian`.

    Source: Schraudolph (2002)."""

    def __init__(
        self,
        model: nn.Module,
        outputs: LossFn,
        loss: Callable[[Tensor, Any], Tensor],
        batches: Iterable[Any],
        *,
        params: Iterable[str | Tensor] | str | None = None,
        dtype: torch.dtype | None = None,
        retain: Retain = "auto",
        distributed: bool = False,
        mode: Mode = "eval",
    ) -> None:
        super().__init__(model, batches, params, dtype, retain, distributed, mode)
        self._outputs, self._loss = outputs, loss

    def _graph(self, batch: Any) -> Graph:
        outputs = self._outputs(self._model, batch)
        return GaussNewtonGraph(outputs, lambda z: self._loss(z, batch), self._leaves)


def dense(op: LinearOperator, *, columns: int = 32) -> Tensor:
    """The matrix [P, P] itself, by P products, `columns` at a time; for P up to some thousands."""
    eye = torch.eye(op.size, device=op.device, dtype=op.dtype)
    return torch.cat([op @ part for part in torch.split(eye, columns, dim=1)], dim=1)
