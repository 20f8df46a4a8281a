"""A model watched while it runs: what its modules give, and the attention that fused kernels
compute and never return.

Nothing in the model is wrapped, replaced or switched over. Outputs come through forward hooks.
Attention comes through a function mode that sees the model call `F.scaled_dot_product_attention`,
takes the same softmax(Q K^T) beside it, and lets the call through as it is."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from samovar.models.factory import Classifier
from samovar.restore import bare, evaluating


@dataclass(frozen=True)
class Seen:
    """What was captured so far, in the order of the calls."""

    outputs: dict[str, list[Any]]
    """By the name of each watched module: what `keep` made of its output, call by call."""
    attention: list[tuple[str, Tensor]]
    """Name of the module that attended, and its probabilities [B, H, queries, keys], in float32 at
    least."""

    def clear(self) -> None:
        """Forget it all, for instance after a batch."""
        self.attention.clear()
        for calls in self.outputs.values():
            calls.clear()


def _copy(output: Tensor) -> Tensor:
    return output.detach().clone()  # what comes after may work in place


@contextmanager
def capture(
    model: nn.Module,
    modules: str | Iterable[str] = (),
    *,
    keep: Callable[[Tensor], Any] = _copy,
    attention: bool = False,
) -> Iterator[Seen]:
    """Inside, the model is in eval mode and what it does is captured; outside, it is as it was: no
    hooks, no new state.

    Its outputs are what they would be without, bit for bit. Compiled parts run eagerly inside, and
    an `nn.TransformerEncoderLayer` leaves its fused inference path. Contexts can be nested.

    Attention is each call of `F.scaled_dot_product_attention`, each softmax over the last axis of a
    tensor of four (as in attention that is not fused), and each `nn.MultiheadAttention`. Kernels
    outside torch (xformers, flash-attn) and scripted modules are not seen.

    Args:
        model: any, DistributedDataParallel and torch.compile looked through.
        modules: names of modules whose outputs to capture, as shell patterns, where * also spans
            dots. Of a tuple or list it is the first tensor.
        keep: what to keep of an output; the default is a copy.
        attention: whether to capture attention probabilities, which are [B, H, N, N] a layer.

    Raises:
        ValueError: a pattern that fits no module."""
    model = bare(model)
    chosen = _fitting(model, [modules] if isinstance(modules, str) else list(modules))
    seen = Seen({name: [] for name in chosen}, [])
    with ExitStack() as stack:
        grad = torch.is_grad_enabled()
        stack.enter_context(evaluating(model))
        stack.enter_context(
            torch.set_grad_enabled(grad)
        )  # which leaving inference mode switches on
        stack.enter_context(
            torch.compiler.set_stance("force_eager")
        )  # compiled code does not call new hooks
        for name, module in chosen.items():
            hook = _output_hook(seen.outputs[name], keep)
            stack.callback(module.register_forward_hook(hook).remove)
        if attention:
            mode = _AttentionMode(seen.attention)
            mode.follow(model, stack)
            stack.enter_context(mode)
        yield seen


def _fitting(model: nn.Module, patterns: list[str]) -> dict[str, nn.Module]:
    named = dict(model.named_modules())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            near = (
                difflib.get_close_matches(pattern, named, n=3, cutoff=0.3)
                or [name for name in named if name][:3]
            )
            raise ValueError(
                f"no module of {type(model).__name__} fits {pattern!r}; names are like {', '.join(near)}"
            )
    return {
        name: module
        for name, module in named.items()
        if any(fnmatchcase(name, p) for p in patterns)
    }


def _output_hook(calls: list[Any], keep: Callable[[Tensor], Any]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, tuple | list):
            output = next((part for part in output if isinstance(part, Tensor)), None)
        if isinstance(output, Tensor):
            with torch.no_grad():
                calls.append(keep(output))

    return hook


# --- attention
# -------------------------------------------------------------------------------------------------------

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


def _dim(input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> int | None:
    return dim


class _AttentionMode(TorchFunctionMode):
    """Records the attention among the functions that are called, under the name of the module that
    runs."""

    def __init__(self, found: list[tuple[str, Tensor]]) -> None:
        super().__init__()
        self.found = found
        self.running = [""]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # an outer capture need not see this
            if func is F.scaled_dot_product_attention:
                self.record(probabilities(*args, **kwargs))
            elif func in _SOFTMAX and result.ndim == 4 and _dim(*args, **kwargs) in (-1, 3):
                self.record(_copy(result))
        return result

    def record(self, found: Tensor) -> None:
        self.found.append(
            (self.running[-1], found.to(torch.promote_types(found.dtype, torch.float32)))
        )

    def follow(self, model: nn.Module, stack: ExitStack) -> None:
        """Keep track of the module that runs, until the stack is closed."""
        for name, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                self.follow_multihead(name, module, stack)
            elif any(True for _ in module.children()):  # an nn.Softmax is not what attends

                def enter(module: nn.Module, args: Any, name: str = name) -> None:
                    self.running.append(name)

                def leave(module: nn.Module, args: Any, output: Any) -> None:
                    self.running.pop()

                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)

    def follow_multihead(self, name: str, module: nn.MultiheadAttention, stack: ExitStack) -> None:
        """Ask for the probabilities again after each call: the module has fused paths that no
        function mode sees.

        The mode is off meanwhile, for the module takes another path, with other rounding, when it
        notices one."""
        off: list[Any] = []

        def enter(module: nn.Module, args: Any) -> None:
            off.append(torch._C.DisableTorchFunction())
            off[-1].__enter__()

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            try:
                if output is not None:  # else the call failed
                    call = inspect.signature(module.forward).bind(*args, **kwargs)
                    call.arguments |= {"need_weights": True, "average_attn_weights": False}
                    with torch.no_grad():
                        found = module.forward(*call.args, **call.kwargs)[1]
                    self.found.append(
                        (name, found.to(torch.promote_types(found.dtype, torch.float32)))
                    )
            finally:
                off.pop().__exit__(None, None, None)

        stack.callback(module.register_forward_pre_hook(enter).remove)
        # first of its kind, for what captures that are nested have turned off must come on again in
        # reverse
        hook = module.register_forward_hook(leave, with_kwargs=True, always_call=True, prepend=True)
        stack.callback(hook.remove)


@torch.no_grad()
def probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale Q K^T + mask) [B, H, queries, keys] of the arguments of
    `F.scaled_dot_product_attention`.

    In float32 at least; before dropout; a query that may attend to nothing has a row of zeros, as
    there."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.to(dtype), key.to(dtype)
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            masks = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if masks else scores + attn_mask
        nothing = scores.isneginf().all(-1, keepdim=True)
        return scores.softmax(-1).masked_fill(nothing, 0)


# --- finding one's way in a model
# ------------------------------------------------------------------------------------


def network(model: nn.Module) -> nn.Module:
    """The network itself, without wrappers of ours or torch's; names of modules are relative to
    it."""
    model = bare(model)
    return bare(model.body) if isinstance(model, Classifier) else model


def block_of(name: str, model: nn.Module) -> str:
    """Name of the innermost entry of an nn.Sequential or nn.ModuleList around the module of this
    name, "" if none.

    `blocks.3` for `blocks.3.mlp.act`, `layer1.0` for `layer1.0.act1`."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        parent = model.get_submodule(".".join(parts[: length - 1]))
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            return ".".join(parts[:length])
    return ""


def channel_axis(output: Tensor) -> int:
    """The axis of channels: 1 of feature maps [B, C, h, w], else the last: [B, N, D], square [B, h,
    w, C], [B, D]."""
    if output.ndim != 4:
        return -1
    _, first, second, third = output.shape
    return -1 if first == second != third else 1
