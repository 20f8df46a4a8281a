"""Shared state of the passes of a step: random numbers, buffers, DDP wrappers kept silent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from samovar.anymodel import restore
from samovar.sam.combine import laid_out_as


class Scene:
    """The random state before a step, and the modules that its passes call.

    The modules are those of `model` and those that a global forward pre-hook sees. The hook runs
    before DDP reads its flags.

    Args:
        model: the module that the passes call; None finds it by the hook.
        mute: whether DDP communicates nothing in the ascent.
        replicas: the ranks that hold the same shards in other replicas of sharded weights.
    """

    def __init__(
        self, model: nn.Module | None, *, mute: bool, replicas: dist.ProcessGroup | None = None
    ) -> None:
        self.model, self.mute, self.replicas = model, mute, replicas
        self.modules: dict[int, nn.Module] = {}
        self.restore_rng = restore.remember_rng()

    @contextmanager
    def ascent(self, *, hook: bool) -> Iterator[None]:
        """Enclose the first ascent pass and find the modules that it calls.

        Args:
            hook: use the global hook, for passes whose modules are not known. They are those that
                call `.backward()` on the wrapped module."""
        self.by_backward = hook
        with ExitStack() as self.undo:
            self.undo.enter_context(restore.no_reentrant_checkpoints())
            if self.model is not None:
                self.add(self.model)
            # torch.compile warns of global hooks. A compiled model that was named needs none,
            # unless DDP is around it.
            if hook and (distributed() or not any(map(_is_compiled, self.modules.values()))):
                self.handle = register_module_forward_pre_hook(self.called)
                self.undo.callback(self.handle.remove)
            yield

    def called(self, module: nn.Module, _args: object) -> None:
        """Add a module that is being called; this is the hook."""
        if id(module) in self.modules and not _is_compiled(module):
            return
        self.add(module)
        if any(map(_is_compiled, module.modules())):
            # The hook would be compiled into the ascent, and the descent compiled once more.
            self.handle.remove()

    def add(self, root: nn.Module) -> None:
        """Add a module with all its descendants.

        Raises:
            ValueError, RuntimeError: SAM would be silently wrong on one of them."""
        for module in root.modules():
            if id(module) not in self.modules:
                refuse_unfit(module, named=self.model is not None)
                self.modules[id(module)] = module
                if self.mute and isinstance(module, DistributedDataParallel):
                    if self.by_backward:
                        _refuse_uncounted_graph(module)
                    self.undo.enter_context(_muted(module))

    def _training(self) -> list[nn.Module]:
        """Return the modules whose buffers a pass may change (BatchNorm, spectral norm)."""
        return [module for module in self.modules.values() if module.training]

    @property
    def wrappers(self) -> list[DistributedDataParallel]:
        """Return the DDP wrappers among the modules."""
        return [
            module
            for module in self.modules.values()
            if isinstance(module, DistributedDataParallel)
        ]

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Enclose a further ascent pass; restore random numbers and buffers afterwards."""
        with ExitStack() as undo:
            for wrapper in self.wrappers if self.mute else ():
                undo.enter_context(_muted(wrapper))
            undo.enter_context(restore.buffers(self._training()))
            self.restore_rng()
            yield
        self.restore_rng()
        # An outer autocast would otherwise go on with 16-bit copies of inputs that have moved.
        torch.clear_autocast_cache()

    @contextmanager
    def descent(self, *, mute: bool = False) -> Iterator[None]:
        """Enclose the descent: random numbers of the ascent; buffers stay as the ascent left them.

        Args:
            mute: DDP sends no gradients; `average_gradients_` sends them later."""
        with ExitStack() as undo:
            for wrapper in self.wrappers:
                _broadcast_buffers(wrapper)
                if mute:
                    undo.enter_context(_muted(wrapper))
            undo.enter_context(restore.buffers(self._training()))
            # The same dropout masks, as in sam_jax; otherwise the ascent is for another loss.
            self.restore_rng()
            yield
        # DDP's own forward pass would have left this flag so.
        for wrapper in self.wrappers if mute else ():
            wrapper.require_forward_param_sync = wrapper.require_backward_grad_sync

    def no_descent(self) -> None:
        """Do what a descent leaves behind, for a group that takes no second pass.

        Random numbers and buffers are already as the ascent left them."""
        for wrapper in self.wrappers:
            _broadcast_buffers(wrapper)
            wrapper.require_forward_param_sync = wrapper.require_backward_grad_sync

    def mean(
        self, tensors: Sequence[Tensor | None], params: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Return each tensor's mean over the ranks of the DDP wrapper or over the replicas.

        Without either it is the tensor itself."""
        if self.replicas is not None:
            return mean_over_ranks(tensors, params, self.replicas)
        return (
            mean_over_ranks(tensors, params, self.wrappers[0].process_group)
            if self.wrappers
            else list(tensors)
        )

    def average_gradients_(self) -> None:
        """Replace `.grad` by its mean over ranks, as DDP does outside of `no_sync`.

        This takes one all-reduce per wrapper, after the passes. Communication hooks are not
        called."""
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
    """Stop DDP from sending gradients (as `no_sync` does) and buffers inside."""
    flags = ddp.require_backward_grad_sync, ddp.require_forward_param_sync
    ddp.require_backward_grad_sync = ddp.require_forward_param_sync = False
    try:
        yield
    finally:
        ddp.require_backward_grad_sync, ddp.require_forward_param_sync = flags


def _refuse_uncounted_graph(ddp: DistributedDataParallel) -> None:
    """Refuse a silent backward pass as the first of a static graph, which counts it as a sent one.

    Raises:
        ValueError: the graph is static and DDP has not sent its gradients yet."""
    if ddp.static_graph and not ddp._static_graph_delay_allreduce_enqueued:
        raise ValueError(
            "DDP(static_graph=True) must send the gradients of its first backward pass, but SAM's "
            "first is silent; use sam_backward, leave out static_graph, or take a plain step "
            "first: SAM(..., start=1)"
        )


def _broadcast_buffers(ddp: DistributedDataParallel) -> None:
    """Send the buffers of rank 0 to every rank, once per step as plain DDP does."""
    # torch 2.15 prefers another name for `broadcast_buffers`, which 2.9 does not have.
    if ddp.require_backward_grad_sync and ddp.broadcast_buffers and ddp.modules_buffers:
        ddp._sync_buffers()  # type: ignore[no-untyped-call]
    # DDP itself would send them in the descent's forward pass, after we took our copies.
    ddp.require_forward_param_sync = False


def mean_over_ranks(
    tensors: Sequence[Tensor | None], params: Sequence[Tensor], group: dist.ProcessGroup | None
) -> list[Tensor | None]:
    """Return each tensor's mean over the ranks of a group, by one all-reduce.

    None counts as zero; a tensor that is None on all ranks stays None. If torch.distributed was not
    started, the tensors come back unchanged.

    Args:
        tensors: gradients, or None.
        params: one parameter for each tensor, in its shape.
        group: the ranks; None is all of them."""
    if not (distributed() and params):
        return list(tensors)
    given = torch.ones(len(tensors), device=params[0].device)
    for i in (i for i, tensor in enumerate(tensors) if tensor is None):
        given[i] = 0  # set on the device, so the host need not wait
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
    """Return whether torch.distributed was started."""
    return dist.is_available() and dist.is_initialized()


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def refuse_unfit(module: nn.Module, *, named: bool) -> None:
    """Refuse a module on which SAM would be silently wrong.

    Args:
        module: one that the passes call.
        named: whether the caller named the model.

    Raises:
        ValueError: parameters are flattened by FSDP1, or a compiled module contains DDP.
        RuntimeError: a compiled module that was not named has buffers."""
    if type(module).__name__ == "FullyShardedDataParallel":
        raise ValueError(
            "FullyShardedDataParallel flattens parameters and hides them from SAM; use DDP instead "
            "of FSDP 1, or torch.distributed.fsdp.fully_shard"
        )
    if not _is_compiled(module):
        return
    if any(isinstance(inner, DistributedDataParallel) for inner in module.modules()):
        raise ValueError(
            "torch.compile(DDP(model)) hides DDP from SAM; compile first, wrap after: "
            "DDP(torch.compile(model))"
        )
    if not named and any(inner.training and inner._buffers for inner in module.modules()):
        raise RuntimeError(
            "a compiled model hides its buffers from SAM; name it: SAM(base_optimizer, model=model)"
        )
