"""The Hessian and the generalized Gauss-Newton matrix of a model's loss as linear operators.

`Hessian(model, loss, batches) @ v` is exact, works on any differentiable model, including stock
timm transformers, and leaves the model as it was. Vectors are flat: the chosen parameters one after
the other, in the model's order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from samovar.anymodel import outputs as returned
from samovar.curvature.borrow import Mode
from samovar.curvature.graphs import GaussNewtonGraph, Graph, Parts, hessian_graph
from samovar.curvature.mean import MeanOverBatches, Retain
from samovar.curvature.summed import warn_if_summed

LossFn = Callable[[nn.Module, Any], Tensor]


class LinearOperator(Protocol):
    """A symmetric matrix [P, P] that is known by its products."""

    size: int
    device: torch.device
    dtype: torch.dtype

    def __matmul__(self, v: Tensor, /) -> Tensor:
        """Return the product with a vector [P], or with each column of [P, k]."""


class Hessian(MeanOverBatches):
    """The Hessian of the mean loss over all examples, for some or all parameters of a model.

    A product costs 2.1 to 2.4 gradients for a batch whose graph is retained and 3.4 for any other.
    The weights may change between products by any means; the graphs are then built again. The
    batches must be the same in every pass.

    Inside a product modules are in eval mode, attention runs as plain matrix products, and autocast
    and TF32 are off. After each product, also if it raises, all of that is as before, and so are
    weights, buffers, gradients and random states. DDP wrappers and torch.compile are looked
    through: the loss gets the bare model.

    Args:
        model: a module on one device or several; its dtype may differ from the operator's.
        loss: maps (model, batch) to the mean loss [] over the batch, or to an object, dict or tuple
            that holds it (see `restore.outputs.loss_of`). Torch's random numbers that it draws are
            the same in every product. A loss that looks like a sum over the first batch gives a
            warning, for one forward pass over it without gradients.
        batches: a list, or a DataLoader that does not shuffle or augment; every product that needs
            them reads them again. A batch weighs as many examples as its `len()`, or, if it is a
            tensor, tuple, list or dict or has no length, as the first dimension of the first tensor
            in it. Tensors, also in containers and dataclasses, are moved to the model's device, and
            floating point ones to `dtype`.
        params: names, patterns (see `match`) or parameters of the block to look at; None is all
            that require gradients. Named parameters that are frozen or unused have zero rows.
        dtype: torch.float32 or torch.float64, on copies of the weights if theirs differs; None is
            float64 for a float64 model, else float32.
        retain: the gradient graphs to keep between products: True keeps all, False none, a number
            as many as fit into that many bytes, "auto" that of a single batch or as many as fit
            into a quarter of the free memory.
        distributed: each process of the default group gives its own batches; products are means
            over all examples, by one all-reduce of P + 2 numbers. All processes must call together,
            with the same v.
        mode: "train" leaves dropout and stochastic depth on, with masks fixed per batch.
        check: compare the first product with a difference of gradients, on an example or two and
            in float64 where the loss allows (see `check`); `checked` then says so. It costs less
            than two products of 8 images.

    Raises:
        ValueError: a product is not that of the loss, because a function in it has a wrong second
            derivative or none; the model uses reentrant checkpoints; a BatchNorm uses batch
            statistics; there is nothing to differentiate; batches is an iterator; the dtype is
            another; distributed without a process group.
        TypeError: in a product, if the loss is a function of (input, target).

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
        check: bool = True,
    ) -> None:
        super().__init__(model, batches, params, dtype, retain, distributed, mode, check)
        self._loss = loss

    def _graph(self, batch: Any, leaves: Sequence[Tensor]) -> Graph:
        return _noticing_sums(self, hessian_graph(self._loss_on(batch), leaves), batch)

    def _slope(self, batch: Any, leaves: Sequence[Tensor]) -> Parts:
        return torch.autograd.grad(self._loss_on(batch), leaves, allow_unused=True)

    def _loss_on(self, batch: Any) -> Tensor:
        return returned.loss_from(
            self._loss, self._model, batch, example=returned.OF_MODEL_AND_BATCH
        )


class GaussNewton(MeanOverBatches):
    """The generalized Gauss-Newton matrix J^T H_out J of a model's loss.

    J is the Jacobian of the model's outputs, H_out the Hessian of the loss over the outputs. The
    matrix is positive semi-definite if the loss is convex in the outputs; for softmax cross-entropy
    it is also the Fisher information. A product costs about 1.4 gradients with a retained graph.

    Args:
        outputs: maps (model, batch) to outputs, usually logits [B, K], or an object that has them
            as `.logits`.
        loss: maps (outputs, batch) to the mean loss [] over the batch; it must not use the model.

    The other arguments and the errors are those of `Hessian`.

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
        check: bool = True,
    ) -> None:
        super().__init__(model, batches, params, dtype, retain, distributed, mode, check)
        self._outputs, self._loss = outputs, loss

    def _graph(self, batch: Any, leaves: Sequence[Tensor]) -> Graph:
        graph = GaussNewtonGraph(self._outputs_on(batch), lambda z: self._loss_of(z, batch), leaves)
        return _noticing_sums(self, graph, batch)

    def _slope(self, batch: Any, leaves: Sequence[Tensor]) -> Parts:
        outputs = self._outputs_on(batch).detach().requires_grad_()
        return torch.autograd.grad(self._loss_of(outputs, batch), [outputs])

    def _loss_on(self, batch: Any) -> Tensor:
        return self._loss_of(self._outputs_on(batch), batch)

    def _outputs_on(self, batch: Any) -> Tensor:
        return returned.logits_of(self._outputs(self._model, batch))

    def _loss_of(self, outputs: Tensor, batch: Any) -> Tensor:
        return returned.loss_from(self._loss, outputs, batch, example=returned.OF_OUTPUTS_AND_BATCH)


def _noticing_sums(op: Hessian | GaussNewton, graph: Graph, batch: Any) -> Graph:
    """Return a graph; warn if it is the operator's first and its loss looks like a sum."""
    # not where processes would have to call a loss together
    if not op.num_graphs and not op._distributed:
        warn_if_summed(op._loss_on, batch, graph.loss)
    return graph


def symmetry_of(op: LinearOperator) -> Callable[[float, float], None] | None:
    """Return what an operator does with the symmetry that Lanczos finds; None is nothing."""
    return op.see_symmetry if isinstance(op, MeanOverBatches) else None


def dense(op: LinearOperator, *, columns: int = 32) -> Tensor:
    """Return the matrix [P, P] itself, by P products, `columns` at a time; for small P only."""
    eye = torch.eye(op.size, device=op.device, dtype=op.dtype)
    return torch.cat([op @ part for part in torch.split(eye, columns, dim=1)], dim=1)
