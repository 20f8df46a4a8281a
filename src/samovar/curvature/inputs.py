"""What an operator is given: parameters by name or pattern, and batches of any shape."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn


def match(model: nn.Module, patterns: str | Iterable[str]) -> list[str]:
    """Names of the parameters that fit any of the patterns, in the model's order.

    A pattern is a name, a shell pattern over whole names (`blocks.*.attn.*`, where * also spans
    dots), or the name of a module or such a pattern for it, which stands for all parameters inside.

    Raises:
        ValueError: a pattern that fits nothing."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(_fits(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(f"no parameter fits {pattern!r}; names are like {', '.join(near)}")
    return [name for name in names if any(_fits(name, pattern) for pattern in patterns)]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def choose(
    model: nn.Module, params: Iterable[str | Tensor] | str | None
) -> dict[str, nn.Parameter]:
    """The chosen parameters by name, in the model's order; None is all that require gradients.

    Raises:
        ValueError: nothing chosen, all of it frozen, not floating point, or not the model's."""
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
        f"{type(param).__name__} in params is not a parameter of the model; give its own, or their names"
    )


def num_examples(batch: Any) -> int:
    """Examples in a batch: its length if it has one of its own, else that of the first tensor in
    it.

    A tensor counts by its first dimension. Tuples, lists and mappings have the length of something
    else, so they, and objects without one, count by the first tensor inside.

    Raises:
        ValueError: no length and no tensor, or no examples."""
    if isinstance(batch, (Tensor, tuple, list, Mapping)) or not hasattr(batch, "__len__"):
        first = next(_tensors(batch), None)
        count = 0 if first is None or first.dim() == 0 else first.shape[0]
    else:
        count = len(batch)
    if count == 0:
        raise ValueError(
            f"a batch ({type(batch).__name__}) has no examples to count; give tensors [B, ...], in a tuple, list, dict "
            "or dataclass, or an object with a length"
        )
    return count


def fingerprint(batch: Any) -> tuple[Any, ...]:
    """Shape and sum of the first tensor: tells whether a batch is the one of the pass before."""
    first = next(_tensors(batch), None)
    return () if first is None else (tuple(first.shape), float(first.sum(dtype=torch.float64)))


def _tensors(batch: Any) -> Iterator[Tensor]:
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
        yield from _tensors(part)


def convert(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The batch on a device, its floating point tensors in dtype: tensors, and those in containers
    and dataclasses."""
    return _map(batch, lambda x: _usable(x).to(device, dtype if x.is_floating_point() else None))


def _usable(x: Tensor) -> Tensor:
    return (
        x.clone() if x.is_inference() else x
    )  # made under inference mode, it could not be saved for backward


def _map(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, MutableMapping):
        mapped = copy.copy(batch)
        mapped.update({key: _map(value, function) for key, value in batch.items()})
        return mapped
    if isinstance(batch, (tuple, list)):
        parts = [_map(part, function) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changed = copy.copy(batch)  # not `replace`, which would run __init__ again
        for field in dataclasses.fields(batch):
            object.__setattr__(changed, field.name, _map(getattr(batch, field.name), function))
        return changed
    return batch
