"""Stop the building of a network that is far larger than the weights it is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

_FACTOR = 4
"""A network may have so many times the tensors and numbers of its file: other sizes of images make
position embeddings larger."""
_FREE = (1_000, 10_000_000)
"""Tensors and numbers that are allowed beside those of any file."""


@contextmanager
def at_most(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse, inside, to build more parameters than tensors of a file can fill.

    Args:
        tensors: those of the file.

    Raises:
        ValueError: from the constructor of the network, as soon as it asks for too many."""
    most = (
        _FACTOR * len(tensors) + _FREE[0],
        _FACTOR * sum(tensor.numel() for tensor in tensors.values()) + _FREE[1],
    )
    built = [0, 0]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            built[0] += 1
            built[1] += parameter.numel()
        if built[0] > most[0] or built[1] > most[1]:
            raise ValueError("it would be far larger than its weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
