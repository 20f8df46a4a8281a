"""Parameters that `fully_shard` (FSDP2) has split over ranks: their local parts, and global norms.

SAM computes on the local part of every vector. What needs all parts is a few numbers, the squared
lengths of the parts, which are summed over the ranks. Without shards nothing here is sent."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Shards:
    """The ranks that hold one copy of the weights together; without a group each rank holds all."""

    group: dist.ProcessGroup | None = None
    device: torch.device | None = None
    modules: tuple[Any, ...] = ()
    """The modules that `fully_shard` has changed."""

    def sums(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return each number [] summed over the parts, by one all-reduce in float64."""
        if self.group is None or not values:
            return list(values)
        flat = torch.stack([each.to(self.device, torch.float64) for each in values])
        dist.all_reduce(flat, group=self.group)
        return [total.to(each) for total, each in zip(flat.unbind(), values, strict=True)]

    def lengths(self, norms: Sequence[Tensor]) -> list[Tensor]:
        """Return the lengths [] of whole vectors, given those of this rank's parts."""
        if self.group is None or not norms:
            return list(norms)
        squares = self.sums([each.to(torch.float64).square() for each in norms])
        return [square.sqrt().to(each) for square, each in zip(squares, norms, strict=True)]

    def reshard(self) -> None:
        """Drop gathered weights, so that the next pass gathers the shards as they are now.

        They can be there still after an evaluation or an error, or if resharding was switched
        off."""
        for module in self.modules:
            module.reshard()


WHOLE = Shards()
"""Parameters that are not sharded."""


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor."""
    return hasattr(tensor, "placements")


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, in the same storage; a plain tensor is its own part."""
    each: Any = tensor
    part: Tensor = each.to_local() if is_sharded(tensor) else tensor
    return part


def gradient(param: Tensor) -> Tensor | None:
    """Return this rank's part of a parameter's gradient, dense; None if there is none."""
    return None if param.grad is None else local(param.grad).to_dense()


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor gathered, which all ranks of its mesh must do; a plain one as it is.

    A replica gathers its own shards only."""
    each: Any = tensor
    gathered: Tensor = each.full_tensor() if is_sharded(tensor) else tensor
    return gathered


def spread_as(param: Tensor, part: Tensor) -> Tensor:
    """Return a rank's part as a tensor that is sharded as `param` is; a plain one as it is."""
    if not is_sharded(param) or is_sharded(part):
        return part
    from torch.distributed.tensor import DTensor

    like: DTensor = param  # type: ignore[assignment]
    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def part_as(param: Tensor, tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor of the whole shape; nothing is sent.

    Args:
        param: says how the tensor is split.
        tensor: whole and equal on all ranks, or sharded, or a rank's part already."""
    mine = local(param)
    if not is_sharded(param) or is_sharded(tensor) or tensor.shape == mine.shape:
        return local(tensor)
    from torch.distributed.tensor import DTensor, Replicate

    like: DTensor = param  # type: ignore[assignment]
    everywhere = [Replicate()] * like.device_mesh.ndim
    same = DTensor.from_local(tensor.to(mine.device), like.device_mesh, everywhere, run_check=False)
    # a copy, because a view would keep the whole tensor in memory
    return same.redistribute(placements=like.placements).to_local().clone()


def resharded(modules: Iterable[nn.Module]) -> tuple[Any, ...]:
    """Return the modules that `fully_shard` has changed, after dropping their gathered weights.

    After an evaluation the root's are still there, in the place of the parameters."""
    package = sys.modules.get("torch.distributed.fsdp")  # whoever shards has imported it
    if package is None:
        return ()
    found = tuple(module for module in modules if isinstance(module, package.FSDPModule))
    for module in found:
        module.reshard()
    return found


def shards_of(params: Iterable[Tensor], modules: Iterable[nn.Module]) -> Shards:
    """Return how trainable parameters are sharded.

    Args:
        params: all of them.
        modules: those that may have been given to `fully_shard`.

    Raises:
        ValueError: some are sharded and some are not, or not by `fully_shard` over one dimension
            of one mesh."""
    found = resharded(modules)
    params = list(params)
    split: list[Any] = [param for param in params if is_sharded(param)]
    if not split:
        return WHOLE
    if len(split) < len(params):
        raise ValueError(
            f"{len(split)} of {len(params)} trainable parameters are sharded; SAM needs all or "
            "none: call fully_shard on the whole model too, without ignored_params"
        )
    if not found:
        raise ValueError(
            "the parameters are sharded by something other than fully_shard, or the model is not "
            "known; shard by fully_shard, and name it: SAM(base_optimizer, model=model)"
        )
    meshes = {
        (param.device_mesh, tuple(i for i, each in enumerate(param.placements) if each.is_shard()))
        for param in split
    }
    odd = any(each.is_partial() for param in split for each in param.placements)
    if odd or len(meshes) != 1 or len(dimensions := next(iter(meshes))[1]) != 1:
        raise ValueError(
            "SAM needs parameters that fully_shard has split over one dimension of one mesh; "
            "leave out tensor parallelism and other meshes"
        )
    mesh = next(iter(meshes))[0]
    return Shards(mesh.get_group(dimensions[0]), split[0].device, found)


def clip_(params: Iterable[Tensor], max_norm: float, shards: Shards = WHOLE) -> Tensor:
    """Scale gradients in place so that their global norm is at most `max_norm`; 0 leaves them.

    Makes no host sync.

    Returns:
        The norm [] before clipping, on the device; not finite if any gradient is not."""
    params = [param for param in params if param.grad is not None]
    if shards.group is None:
        norm = get_total_norm([param.grad for param in params if param.grad is not None])
        if max_norm:
            clip_grads_with_norm_(params, max_norm, norm)
        return norm
    grads = [grad for param in params if (grad := gradient(param)) is not None]
    norm = shards.lengths([get_total_norm(grads)])[0]
    if max_norm:
        # torch's formula
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
