"""Inputs of an operator: parameters chosen by name or pattern, and batches of any structure."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from samovar.anymodel.devices import refuse_shards, to_float64_device
from samovar.words import suggest


def match(model: nn.Module, patterns: str | Iterable[str]) -> list[str]:
    """Return the names of the parameters that match any of the patterns, in the model's order.

    A pattern is a name, a shell pattern over whole names (`blocks.*.attn.*`, where * also spans
    dots), or a name or pattern of a module, which stands for all parameters inside.

    Raises:
        ValueError: a pattern matches nothing."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(_fits(name, pattern) for name in names):
            usual = f"names are like {', '.join(names[:3])}"
            hint = suggest(pattern, names, instead=usual, count=3, cutoff=0.3)
            raise ValueError(f"no parameter fits {pattern!r}; {hint}")
    return [name for name in names if any(_fits(name, pattern) for pattern in patterns)]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def choose(
    model: nn.Module, params: Iterable[str | Tensor] | str | None
) -> dict[str, nn.Parameter]:
    """Return the chosen parameters by name, in the model's order.

    Args:
        model: whose parameters they are.
        params: names, patterns (see `match`) or parameters; None is all that require gradients.

    Raises:
        ValueError: nothing is chosen, all of it is frozen, a parameter is not floating point or is
            sharded, or it does not belong to the model."""
    refuse_shards(model)
    known = dict(model.named_parameters())
    if params is None:
        names = [name for name, param in known.items() if param.requires_grad]
    else:
        wanted = [params] if isinstance(params, (str, Tensor)) else list(params)
        names = match(model, [each for each in wanted if isinstance(each, str)])
        names += [_name_of(each, known) for each in wanted if not isinstance(each, str)]
    chosen = {name: param for name, param in known.items() if name in set(names)}
    if not any(param.requires_grad for param in chosen.values()):
        raise ValueError(
            "no trainable parameter is chosen; unfreeze some (requires_grad_), or choose others"
        )
    for name, param in chosen.items():
        if not param.is_floating_point():
            raise ValueError(f"{name} is {param.dtype}; choose floating point parameters")
    return chosen


def _name_of(param: Any, known: dict[str, nn.Parameter]) -> str:
    for name, each in known.items():
        if each is param:
            return name
    raise ValueError(
        f"{type(param).__name__} in params is not a parameter of the model; give its own, or their "
        "names"
    )


def num_examples(batch: Any) -> int:
    """Return the number of examples in a batch: its own length, or that of its first tensor.

    A tensor counts by its first dimension. The length of a tuple, list or mapping means something
    else, so these, and objects without a length, count by the first tensor inside.

    Raises:
        ValueError: the batch has no length and no tensor, or no examples."""
    if isinstance(batch, (Tensor, tuple, list, Mapping)) or not hasattr(batch, "__len__"):
        first = next(tensors_of(batch), None)
        count = 0 if first is None or first.dim() == 0 else first.shape[0]
    else:
        count = len(batch)
    if count == 0:
        raise ValueError(
            f"a batch ({type(batch).__name__}) has no examples to count; give tensors [B, ...], in "
            "a tuple, list, dict or dataclass, or an object with a length"
        )
    return count


def fingerprint(batch: Any) -> tuple[Any, ...]:
    """Return shape and sum of the first tensor, to notice a batch that differs between passes."""
    first = next(tensors_of(batch), None)
    if first is None:
        return ()
    return tuple(first.shape), float(to_float64_device(first).sum(dtype=torch.float64))


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors in a batch, in order; containers and dataclasses are looked into."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from _all(batch.values())
    elif isinstance(batch, (tuple, list)):
        yield from _all(batch)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        yield from _all(getattr(batch, field.name) for field in dataclasses.fields(batch))


def _all(parts: Iterable[Any]) -> Iterator[Tensor]:
    for part in parts:
        yield from tensors_of(part)


def convert(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the batch on a device, its floating point tensors in `dtype`.

    Tensors in containers and dataclasses are converted too."""
    return map_tensors(
        batch, lambda x: _usable(x).to(device, dtype if x.is_floating_point() else None)
    )


def first_examples(batch: Any, count: int) -> Any:
    """Return the batch with the first `count` examples of every tensor that has one for each."""
    total = num_examples(batch)
    return map_tensors(batch, lambda x: x[:count] if x.dim() and len(x) == total else x)


def cast(x: Tensor, dtype: torch.dtype, *, copy: bool = False) -> Tensor:
    """Return a tensor without its history, in `dtype` if it is floating point."""
    return x.detach().to(dtype if x.is_floating_point() else x.dtype, copy=copy)


def _usable(x: Tensor) -> Tensor:
    # A tensor that was made under inference mode cannot be saved for backward.
    return x.clone() if x.is_inference() else x


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch of the same structure with a function of each tensor in its place."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, MutableMapping):
        mapped = copy.copy(batch)
        mapped.update({key: map_tensors(value, function) for key, value in batch.items()})
        return mapped
    if isinstance(batch, (tuple, list)):
        parts = [map_tensors(part, function) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changed = copy.copy(batch)  # not `replace`, which would run __init__ again
        for field in dataclasses.fields(batch):
            object.__setattr__(
                changed, field.name, map_tensors(getattr(batch, field.name), function)
            )
        return changed
    return batch


def working_dtype(dtype: torch.dtype | None, params: Iterable[Tensor]) -> torch.dtype:
    """Return the dtype of an operator: the given one, or for None that of the parameters.

    Raises:
        ValueError: it is neither float32 nor float64."""
    if dtype is None:
        return (
            torch.float64
            if any(param.dtype == torch.float64 for param in params)
            else torch.float32
        )
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"dtype={dtype} is too coarse for second derivatives; pick torch.float32 or "
            "torch.float64"
        )
    return dtype


def stamp(model: nn.Module) -> tuple[Any, ...]:
    """Return a value that changes when a weight or buffer is written to.

    It includes norms, because a write through `.data` does not count as a version."""
    tensors = [*model.parameters(), *model.buffers()]
    with torch.no_grad():
        norms = torch._foreach_norm([x.detach() for x in tensors if x.is_floating_point()])
    values = torch.stack([norm.cpu().double() for norm in norms]).tolist() if norms else []
    return tuple((id(x), x._version, x.data_ptr()) for x in tensors), tuple(values)


def check_finite(model: nn.Module) -> None:
    """Check that all weights and buffers are finite.

    Raises:
        ValueError: one is not; it is named."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{name} is not finite; curvature needs finite weights: load an earlier checkpoint"
            )


def checked_retain(retain: Any) -> Any:
    """Return `retain` of an operator if it is allowed.

    Raises:
        ValueError: it is not."""
    if retain != "auto" and not (isinstance(retain, int) and retain >= 0):
        raise ValueError(
            f"retain={retain!r} is not allowed; pick True, False, 'auto', or a number of bytes"
        )
    return retain


def checked_distributed(distributed: bool) -> bool:
    """Return `distributed` of an operator if there is a process group where it needs one.

    Raises:
        ValueError: there is none."""
    if distributed and not dist.is_initialized():
        raise ValueError(
            "distributed=True needs a process group; start with torchrun and init_process_group, "
            "or drop it"
        )
    return distributed
