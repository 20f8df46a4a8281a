"""Provide a device called mps that computes on the CPU and, as Apple's GPUs do, refuses float64.

Inside `fake_mps()` tensors can be made on the device or sent there. They remember whether a copy to the device was
non-blocking, which on Apple's GPUs reads memory that may be released before it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

MPS = torch.device("mps:0")


class OnMps(Tensor):
    """A tensor on the fake device, for Python; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnMps:
        found = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device="cpu"
        )
        found.inner = inner
        return found

    @property
    def device(self) -> torch.device:
        # only Python is told: autograd looks for the driver of the device
        return MPS

    def cpu(self) -> Tensor:
        return self.inner.clone()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        place = args[0] if args else kwargs.get("device")
        if isinstance(place, str | torch.device) and torch.device(place).type == "cpu":
            return self.cpu().to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    owners: dict[int, OnMps] = {}

    def unwrap(x: Any) -> Any:
        if isinstance(x, OnMps):
            owners[id(x.inner)] = x
            return x.inner
        return torch.device("cpu") if isinstance(x, torch.device) and x.type == "mps" else x

    wanted = kwargs.get("device")
    to = torch.device(wanted) if wanted is not None else None
    if to is not None and to.type == "mps":
        assert not kwargs.get("non_blocking"), "a non-blocking copy to mps reads released memory"
    inner_args, inner_kwargs = tree_map(unwrap, (args, kwargs))
    here = to.type == "mps" if to is not None else bool(owners)
    if func is torch.ops.aten.copy_.default:
        here = isinstance(args[0], OnMps)
    found = func(*inner_args, **inner_kwargs)

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, OnMps):
            return x
        if id(x) in owners:
            return owners[id(x)]
        if here and x.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return OnMps(x) if here else x

    return tree_map(wrap, found)


@contextmanager
def fake_mps() -> Iterator[torch.device]:
    """Yield the device; tensors can be made on it inside."""
    # otherwise `model.to` would give the old parameters the device without the numbers
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Mode():
            yield MPS
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
