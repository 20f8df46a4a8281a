"""Split a network's parameters over ranks by `fully_shard` (FSDP2), for `--run.shard`.

Under `full` all ranks share one copy of the weights and every ascent. Under `hybrid:N` each set of
N ranks does; the sets are replicas, which climb on their own and average their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from samovar.config import shard_ranks
from samovar.runtime import Runtime
from samovar.sam.shards import is_sharded, part_as, spread_as, whole
from samovar.train.blocks import blocks

if TYPE_CHECKING:
    from samovar.train.rehearse import Rehearsal


@dataclass(frozen=True)
class Sharding:
    """How a training's weights are split."""

    ranks: int
    """Ranks that share one copy of the weights."""
    replicas: dist.ProcessGroup | None
    """The ranks that hold the same shards in other copies; None if there is one copy."""


def shard_(network: nn.Module, choice: str, runtime: Runtime) -> Sharding | None:
    """Split a network over the ranks, block by block and then the rest; None if it stays whole.

    The parameters move to the device of the runtime, one block after the other, so the device never
    holds them all.

    Args:
        choice: `--run.shard`."""
    ranks = shard_ranks(choice, runtime.world_size)
    if ranks == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    copies = runtime.world_size // ranks
    mesh = init_device_mesh(
        runtime.device.type, (copies, ranks), mesh_dim_names=("replica", "shard")
    )
    for block in blocks(network):
        fully_shard(block, mesh=mesh["shard"], reshard_after_forward=True)
    # the root too gives back its gathered weights: an evaluation would leave old ones behind
    fully_shard(network, mesh=mesh["shard"], reshard_after_forward=True)
    return Sharding(ranks, mesh["replica"].get_group() if copies > 1 else None)


def largest_gathered(model: nn.Module) -> int:
    """Return the bytes of the largest block's weights, or of those outside of all blocks."""
    inside = [[*block.parameters()] for block in blocks(model)]
    known = {id(param) for params in inside for param in params}
    rest = [param for param in model.parameters() if id(param) not in known]
    return max(sum(param.nbytes for param in params) for params in (rest, *inside))


def shard_bytes(found: Rehearsal, ranks: int) -> float:
    """Return the bytes of weights, gradients, optimizer and copies on the first of `ranks` ranks.

    It has the most rows: a parameter is cut along its first dimension."""
    rows = [shape[0] if shape else 1 for shape in found.shapes]
    sizes = [shape.numel() for shape in found.shapes]
    part = sum(n / d * math.ceil(d / ranks) for n, d in zip(sizes, rows, strict=True))
    return (found.weight_bytes + found.state_bytes) * part / sum(sizes)


def shard_words(found: Rehearsal, choice: str, ranks: int) -> str:
    """Say what each `--run.shard` leaves on a rank; of hybrid ones the chosen, or N = ranks / 2."""
    half = choice if choice.startswith("hybrid:") else f"hybrid:{ranks // 2}"
    divides = (ranks > 2 and ranks % 2 == 0) or half == choice
    choices = ["none", "full", *([half] if divides else [])]
    sizes = ", ".join(
        f"{shard_bytes(found, shard_ranks(each, ranks)) / 2**20:,.1f} MiB under {each}"
        for each in choices
    )
    return (
        f"weights, gradients, optimizer and copies on each of {ranks} ranks: {sizes}; sharded "
        f"passes gather up to {found.block_bytes / 2**20:,.1f} MiB of weights at a time besides"
    )


def gathered(tree: Any, *, keep: bool) -> Any:
    """Return nested dicts and lists with whole tensors on the CPU in place of sharded ones.

    All ranks must call it, with the same tree. Each tensor is gathered on its own, so a rank needs
    memory for the largest one besides what it keeps.

    Args:
        keep: whether this rank keeps the tensors; the others get empty ones."""
    if isinstance(tree, Mapping):
        return {key: gathered(each, keep=keep) for key, each in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(gathered(each, keep=keep) for each in tree)
    if isinstance(tree, Tensor) and is_sharded(tree):
        found = whole(tree.detach())
        return found.cpu() if keep else torch.empty(0)
    return tree


def spread(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors by the names of a model's state, split as the model's own are."""
    own = model.state_dict()
    return {
        name: spread_as(own[name], part_as(own[name], tensor)) if name in own else tensor
        for name, tensor in tensors.items()
    }


def spread_state(optimizer: torch.optim.Optimizer, found: dict[str, Any]) -> dict[str, Any]:
    """Return a whole optimizer state, split as the optimizer's parameters are.

    What has the shape of its parameter belongs to its entries; the rest is the same everywhere."""
    params = dict(_numbered(optimizer, found))
    state = {
        number: {key: _spread_one(params.get(number), each) for key, each in values.items()}
        for number, values in found["state"].items()
    }
    return {**found, "state": state}


def _numbered(
    optimizer: torch.optim.Optimizer, found: dict[str, Any]
) -> Iterator[tuple[int, Tensor]]:
    for group, saved in zip(optimizer.param_groups, found["param_groups"], strict=True):
        yield from zip(saved["params"], group["params"], strict=True)


def _spread_one(param: Tensor | None, each: Any) -> Any:
    if param is None or not isinstance(each, Tensor) or each.shape != param.shape:
        return each
    return spread_as(param, part_as(param, each))
