"""Capture outputs of a model's modules, and attention that fused kernels do not return.

Nothing in the model is wrapped, replaced or switched. Outputs come through forward hooks. Attention
comes through a function mode that sees the model call `F.scaled_dot_product_attention`, computes
the same softmax(Q K^T) in addition, and passes the call on unchanged.
"""

from __future__ import annotations

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

from samovar.anymodel.restore import bare, evaluating
from samovar.models.factory import Classifier
from samovar.words import suggest


@dataclass(frozen=True)
class Seen:
    """The captured outputs and attention, in the order of the calls."""

    outputs: dict[str, list[Any]]
    """Results of `keep` for each call of a module, by the name of the module."""
    attention: list[tuple[str, Tensor]]
    """Name of the module that computed attention, and its probabilities [B, H, queries, keys], in
    float32 or more."""

    def clear(self) -> None:
        """Remove everything, for instance after a batch."""
        self.attention.clear()
        for calls in self.outputs.values():
            calls.clear()


def _copy(output: Tensor) -> Tensor:
    return output.detach().clone()  # the next layer may write into the output in place


@contextmanager
def capture(
    model: nn.Module,
    modules: str | Iterable[str] = (),
    *,
    keep: Callable[[Tensor], Any] = _copy,
    attention: bool = False,
) -> Iterator[Seen]:
    """Capture outputs of modules, and attention, of a model that runs inside in eval mode.

    The model's outputs do not change, bit for bit, and on exit it has no hooks and no new state.
    Compiled parts run eagerly inside, and an `nn.TransformerEncoderLayer` does not take its fused
    inference path. Contexts can be nested.

    Attention is captured from each call of `F.scaled_dot_product_attention`, each softmax over the
    last axis of a tensor of four axes (as in attention that is not fused), and each
    `nn.MultiheadAttention`. Kernels outside torch (xformers, flash-attn) and scripted modules are
    not seen.

    Args:
        model: any; the module inside DistributedDataParallel and torch.compile is used.
        modules: names of modules whose outputs to capture, as shell patterns, where * also spans
            dots. If an output is a tuple or list, its first tensor is captured.
        keep: maps an output to what is kept of it; the default copies it.
        attention: capture attention probabilities, [B, H, N, N] per layer.

    Yields:
        What was captured, which grows with each call of the model.

    Raises:
        ValueError: a pattern fits no module."""
    model = bare(model)
    chosen = _fitting(model, [modules] if isinstance(modules, str) else list(modules))
    seen = Seen({name: [] for name in chosen}, [])
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        # compiled code does not call hooks that were added after compilation
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, module in chosen.items():
            hook = _output_hook(seen.outputs[name], keep)
            stack.callback(module.register_forward_hook(hook).remove)
        if attention:
            mode = _AttentionMode(seen.attention)
            mode.follow(model, stack)
            stack.enter_context(mode)
        yield seen


def _fitting(model: nn.Module, patterns: list[str]) -> dict[str, nn.Module]:
    """Return the modules whose names fit any of the patterns."""
    named = dict(model.named_modules())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            names = [name for name in named if name]
            advice = suggest(pattern, names, instead=f"give one like {', '.join(names[:3])}")
            raise ValueError(f"no module of {type(model).__name__} fits {pattern!r}; {advice}")
    return {
        name: module
        for name, module in named.items()
        if any(fnmatchcase(name, p) for p in patterns)
    }


def _output_hook(calls: list[Any], keep: Callable[[Tensor], Any]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        # as of a layer that returns attention weights or a state beside its output
        if isinstance(output, tuple | list):
            output = next((part for part in output if isinstance(part, Tensor)), None)
        if isinstance(output, Tensor):
            with torch.no_grad():
                calls.append(keep(output))

    return hook


# --- attention

# all spellings of softmax in attention that is written out
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


def _dim(input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> int | None:
    """Return the axis among the arguments of a softmax."""
    return dim


class _AttentionMode(TorchFunctionMode):
    """A function mode that records attention under the name of the module that runs."""

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
        """Track which module runs, until the stack is closed."""
        for name, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                self.follow_multihead(name, module, stack)
            elif any(True for _ in module.children()):  # leaves such as nn.Softmax do not count

                def enter(module: nn.Module, args: Any, name: str = name) -> None:
                    self.running.append(name)

                def leave(module: nn.Module, args: Any, output: Any) -> None:
                    self.running.pop()

                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)

    def follow_multihead(self, name: str, module: nn.MultiheadAttention, stack: ExitStack) -> None:
        """Compute the probabilities again after each call of an `nn.MultiheadAttention`.

        The module has fused paths that no function mode sees. The mode is off during the call,
        since the module takes another path, with other rounding, when a mode is on."""
        off: list[Any] = []

        def enter(module: nn.Module, args: Any) -> None:
            off.append(torch._C.DisableTorchFunction())
            off[-1].__enter__()

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            try:
                if output is not None:  # else the call failed
                    # the same call, but for the two arguments that make it return probabilities
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
        # before other hooks: nested captures must switch their modes on again in reverse order
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
    """Compute softmax(scale Q K^T + mask) [B, H, queries, keys], before dropout.

    The arguments are those of `F.scaled_dot_product_attention`. The result is float32 or more
    precise. A query that is masked from all keys has a row of zeros, as in that function."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.to(dtype), key.to(dtype)
        # grouped queries share keys
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            masks = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if masks else scores + attn_mask
        # softmax of a row of -inf is nan, where the fused kernels give 0
        nothing = scores.isneginf().all(-1, keepdim=True)
        return scores.softmax(-1).masked_fill(nothing, 0)


# --- parts of a model


def network(model: nn.Module) -> nn.Module:
    """Return the network inside our wrapper and torch's; names of modules are relative to it."""
    model = bare(model)
    return bare(model.body) if isinstance(model, Classifier) else model


def block_of(name: str, model: nn.Module) -> str:
    """Return the name of the block around a module, or "" if there is none.

    A block is an entry of an nn.Sequential or nn.ModuleList, the innermost one: `blocks.3` for
    `blocks.3.mlp.act`, `layer1.0` for `layer1.0.act1`."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        parent = model.get_submodule(".".join(parts[: length - 1]))
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            return ".".join(parts[:length])
    return ""


def channel_axis(output: Tensor) -> int:
    """Return the axis of channels: 1 for feature maps [B, C, h, w], else the last.

    It is the last for [B, N, D], [B, D] and square maps [B, h, w, C]."""
    if output.ndim != 4:
        return -1
    # Swin has [B, h, w, C]; a feature map of as many columns as channels is ambiguous
    _, first, second, third = output.shape
    return -1 if first == second != third else 1
