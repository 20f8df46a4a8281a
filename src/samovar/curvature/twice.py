"""Function modes: equal, twice differentiable forms of functions, and the precision of a loss.

In torch 2.15 the second derivative of `_weight_norm` is wrong (gradgradcheck fails), and
that of hardsigmoid and embedding_bag is missing, as is that of sparse gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ReplacedFunctions(TorchFunctionMode):
    """A function mode that computes another form where one of some functions is called.

    Args:
        forms: the functions, as torch calls them, and their forms."""

    def __init__(self, forms: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.forms = forms

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.forms.get(func, func)(*args, **(kwargs or {}))


class TwiceDifferentiable(ReplacedFunctions):
    """A function mode that computes equal forms with a right second derivative."""

    def __init__(self) -> None:
        super().__init__(_FORMS)


class Precision(TorchFunctionMode):
    """A function mode that sees whether a loss computes in less than float64 inside."""

    single = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.requires_grad and result.itemsize < 8:
            self.single = True
        return result


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    value = F.relu6(input + 3) / 6
    return input.copy_(value) if inplace else value


def _embedding(*args: Any, sparse: bool = False, **kwargs: Any) -> Tensor:
    # `sparse` is the seventh argument, and the last
    return F.embedding(*args[:6], **kwargs)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Look up all rows, then sum, average or maximize those of each bag: [bags, D]."""
    if input.dim() == 2:
        num_bags = len(input)
        bags = torch.arange(num_bags, device=input.device).repeat_interleave(input.shape[1])
    else:
        starts = cast(Tensor, offsets).long()
        num_bags = len(starts) - include_last_offset
        places = torch.arange(len(input), device=input.device)
        bags = torch.searchsorted(starts[:num_bags].contiguous(), places, right=True) - 1
    ids, scales = input.flatten(), per_sample_weights
    if padding_idx is not None:
        kept = ids != padding_idx % len(weight)
        ids, bags = ids[kept], bags[kept]
        scales = None if scales is None else scales.flatten()[kept]
    rows = F.embedding(ids, weight, None, max_norm, norm_type, scale_grad_by_freq)
    if scales is not None:
        rows = rows * scales.reshape(-1, 1)
    empty = rows.new_zeros(num_bags, weight.shape[1])
    if mode == "max":
        return empty.scatter_reduce(
            0, bags[:, None].expand_as(rows), rows, "amax", include_self=False
        )
    sums = empty.index_add(0, bags, rows)
    if mode == "sum":
        return sums
    return sums / torch.bincount(bags, minlength=num_bags).clamp(min=1)[:, None]


_FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    F.hardsigmoid: _hardsigmoid,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
}
