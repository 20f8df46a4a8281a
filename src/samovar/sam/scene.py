"""What the passes of a step share: random numbers, buffers, and DDP wrappers that must stay
silent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from samovar import restore
from samovar.sam.combine import laid_out_as


class Scene:
    """What the passes of a step share: random numbers, and the modules called with their buffers
    and DDP wrappers.

    Besides those of `model`, modules are found by a global forward pre-hook; it sees DDP before DDP
    reads its flags.
    """

    def __init__(self, model: nn.Module | None, *, mute: bool) -> None:
        self.model, self.mute = model, mute
        self.modules: dict[int, nn.Module] = {}
        self.restore_rng = restore.remember_rng()

    @contextmanager
    def ascent(self, *, hook: bool) -> Iterator[None]:
        """Find the modules; if `mute`, DDP communicates nothing inside."""
        with ExitStack() as self.undo:
            if self.model is not None:
                self.add(self.model)
            # torch.compile warns of global hooks; without DDP there is nothing to find around a
            # model that was named
            if hook and (distributed() or not any(map(_is_compiled, self.modules.values()))):
                self.handle = register_module_forward_pre_hook(self.called)
                self.undo.callback(self.handle.remove)
            yield

    def called(self, module: nn.Module, _args: object) -> None:
        """The hook."""
        if id(module) in self.modules and not _is_compiled(module):
            return
        self.add(module)
        if any(map(_is_compiled, module.modules())):
            # else it would be compiled into the ascent, and the descent compiled once more
            self.handle.remove()

    def add(self, root: nn.Module) -> None:
        """Take in a module with all its descendants."""
        for module in root.modules():
            if id(module) not in self.modules:
                refuse_unfit(module, named=self.model is not None)
                self.modules[id(module)] = module
                if self.mute and isinstance(module, DistributedDataParallel):
                    self.undo.enter_context(_muted(module))

    def _training(self) -> list[nn.Module]:
        """The modules whose buffers a forward pass may change (BatchNorm's, spectral norm's)."""
        return [module for module in self.modules.values() if module.training]

    @property
    def wrappers(self) -> list[DistributedDataParallel]:
        """The DDP wrappers among the modules."""
        return [
            module
            for module in self.modules.values()
            if isinstance(module, DistributedDataParallel)
        ]

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """A pass of the ascent beside its first; random numbers and buffers come out as they went
        in."""
        with ExitStack() as undo:
            for wrapper in self.wrappers if self.mute else ():
                undo.enter_context(_muted(wrapper))
            undo.enter_context(restore.buffers(self._training()))
            self.restore_rng()
            yield
        self.restore_rng()
        # an outer autocast would go on with 16-bit copies of inputs that have moved
        torch.clear_autocast_cache()

    @contextmanager
    def descent(self, *, mute: bool = False) -> Iterator[None]:
        """Same random numbers as in the ascent; buffers come out as the ascent left them.

        Args:
            mute: DDP sends no gradients; `average_gradients_` does so later."""
        with ExitStack() as undo:
            for wrapper in self.wrappers:
                _broadcast_buffers(wrapper)
                if mute:
                    undo.enter_context(_muted(wrapper))
            undo.enter_context(restore.buffers(self._training()))
            # same dropout masks, as in sam_jax; else the ascent is for another loss
            self.restore_rng()
            yield
        for wrapper in (
            self.wrappers if mute else ()
        ):  # as a forward pass of its own would have left it
            wrapper.require_forward_param_sync = wrapper.require_backward_grad_sync

    def mean(
        self, tensors: Sequence[Tensor | None], params: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Each tensor's mean over the ranks of the DDP wrapper; as it is where there is none."""
        return (
            mean_over_ranks(tensors, params, self.wrappers[0].process_group)
            if self.wrappers
            else list(tensors)
        )

    def average_gradients_(self) -> None:
        """What DDP does in a backward pass that is not muted nor in `no_sync`: `.grad` becomes its
        mean over ranks.

        One all-reduce a wrapper, after the passes; communication hooks are not asked."""
        for wrapper in self.wrappers:
            if wrapper.require_backward_grad_sync:
                params = [param for param in wrapper.module.parameters() if param.requires_grad]
                means = mean_over_ranks(
                    [param.grad for param in params], params, wrapper.process_group
                )
                for param, mean in zip(params, means, strict=True):
                    param.grad = laid_out_as(param, mean)


@contextmanager
def _muted(ddp: DistributedDataParallel) -> Iterator[None]:
    """Inside, DDP sends neither gradients (which is all that no_sync stops) nor buffers."""
    flags = ddp.require_backward_grad_sync, ddp.require_forward_param_sync
    ddp.require_backward_grad_sync = ddp.require_forward_param_sync = False
    try:
        yield
    finally:
        ddp.require_backward_grad_sync, ddp.require_forward_param_sync = flags


def _broadcast_buffers(ddp: DistributedDataParallel) -> None:
    """Give every rank the buffers of rank 0, once a step as in plain DDP."""
    # broadcast_buffers: torch 2.15 prefers another name, which 2.9 does not have
    if ddp.require_backward_grad_sync and ddp.broadcast_buffers and ddp.modules_buffers:
        ddp._sync_buffers()  # type: ignore[no-untyped-call]
    ddp.require_forward_param_sync = (
        False  # DDP itself would do it in the descent's forward, after we took our copies
    )


def mean_over_ranks(
    tensors: Sequence[Tensor | None], params: Sequence[Tensor], group: dist.ProcessGroup | None
) -> list[Tensor | None]:
    """Each tensor's mean over the ranks of a group, by one all-reduce; None counts as zero, and
    stays on all of them.

    Args:
        params: one for each tensor, of its shape.
        group: None is all ranks; where torch.distributed was not started, the tensors come back as
            they are."""
    if not (distributed() and params):
        return list(tensors)
    given = torch.ones(len(tensors), device=params[0].device)
    for i in (i for i, tensor in enumerate(tensors) if tensor is None):
        given[i] = 0  # made on the device, for which the host need not wait
    parts = [
        torch.zeros_like(p) if t is None else t.to_dense()
        for t, p in zip(tensors, params, strict=True)
    ]
    flat = torch.cat([*(part.flatten() for part in parts), given.to(parts[0].dtype)])
    dist.all_reduce(flat, group=group)
    *sums, used = torch.split(
        flat / dist.get_world_size(group), [param.numel() for param in params] + [len(params)]
    )
    if not all(tensor is not None for tensor in tensors):
        return [
            s.view_as(p).to(p.dtype) if u else None
            for s, p, u in zip(sums, params, used.tolist(), strict=True)
        ]
    return [each.view_as(param).to(param.dtype) for each, param in zip(sums, params, strict=True)]


def distributed() -> bool:
    """Whether torch.distributed was started."""
    return dist.is_available() and dist.is_initialized()


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def refuse_unfit(module: nn.Module, *, named: bool) -> None:
    """Raise on what would make SAM silently wrong; `named` if the caller gave the model."""
    if (
        any(hasattr(param, "placements") for param in module._parameters.values())
        or type(module).__name__ == "FullyShardedDataParallel"
    ):
        raise ValueError(
            f"{type(module).__name__} has sharded parameters; SAM needs whole ones: use DDP instead of FSDP"
        )
    if not _is_compiled(module):
        return
    if any(isinstance(inner, DistributedDataParallel) for inner in module.modules()):
        raise ValueError(
            "torch.compile(DDP(model)) hides DDP from SAM; compile first, wrap after: DDP(torch.compile(model))"
        )
    if not named and any(inner.training and inner._buffers for inner in module.modules()):
        raise RuntimeError(
            "a compiled model hides its buffers from SAM; name it: SAM(base_optimizer, model=model)"
        )
