"""Optimizers by name, the parameters that decay, and what happens to a gradient before a step.

`adamw` and `sgd` are torch's, fused where the device supports it: fused ones skip a non-finite step
without a host sync. Every other name is timm's. Weight decay is decoupled (lr x decay x weight) in
adamw, sgdw, lambw and most names ending in w; in sgd it is part of the gradient, and in lamb part
of the update, before the trust ratio, as in its paper."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, cast

import timm.optim
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from samovar.config import OptimConfig
from samovar.sam.finite import honours_found_inf as honours_found_inf
from samovar.sam.finite import step_if as step_if
from samovar.sam.shards import clip_ as clip_
from samovar.sam.shards import is_sharded, local, part_as
from samovar.words import suggest

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_registry: Any = timm.optim
_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
_ATTENTION_KERNELS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters, with their names, by whether they decay; omit an empty group.

    Under `decay="kernels"` the weights of linear and convolution layers decay, patch embedding and
    head included; biases, norms, class tokens and position embeddings do not. A shared parameter
    appears once, and decays if it is a kernel in any of the layers that share it.

    Raises:
        ValueError: the model has nothing to train.

    Source: `kernel` parameters, the default of big_vision's weight decay."""
    # decided by tensor, not by name: a tied weight is listed once, perhaps under its other name
    kernels = _kernels(model)
    decayed: list[tuple[str, nn.Parameter]] = []
    kept: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = config.decay == "all" or parameter in kernels
            (decayed if decays else kept).append((name, parameter))
    if not decayed and not kept:
        raise ValueError("the model has no trainable parameters; unfreeze some (requires_grad_)")
    groups = (
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def _kernels(model: nn.Module) -> set[Tensor]:
    kernels: set[Tensor] = set()
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, *_CONVOLUTIONS)):
            kernels.add(layer.weight)
        elif isinstance(layer, nn.MultiheadAttention):
            found = (getattr(layer, name) for name in _ATTENTION_KERNELS)
            kernels |= {weight for weight in found if weight is not None}
    return kernels


def create_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Create the optimizer that a config names, over `parameter_groups` of the model.

    Move the model to its device first: the fused kernels are chosen by it.

    Raises:
        ValueError: an unknown name (with the nearest), or an optimizer that does not run here."""
    groups = parameter_groups(model, config)
    if config.name in _TORCH:
        return _TORCH[config.name](groups, config)
    known: list[str] = _registry.list_optimizers()
    if config.name not in known:
        advice = suggest(config.name, known, instead="try adamw, sgd or lamb", count=3)
        raise ValueError(f"unknown optimizer {config.name!r}; {advice}")
    # timm lists optimizers whose packages or devices may be missing, and they fail in several ways
    try:
        return _timm_optimizer(groups, config)
    except (ImportError, AssertionError, RuntimeError) as error:
        raise ValueError(f"optimizer {config.name} does not run here: {error}") from error


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    return _fused(AdamW, groups, lr=config.lr, betas=config.betas)


def _sgd(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    optimizer = _fused(SGD, groups, lr=config.lr, momentum=config.momentum)
    if config.momentum:
        # torch's fused SGD allocates its buffers uninitialized in the first step, and a skipped
        # first step leaves them so; starting from zeros gives the same first step
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


_TORCH: dict[str, Callable[[list[dict[str, Any]], OptimConfig], Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
}


def _fused(
    cls: Callable[..., Optimizer], groups: list[dict[str, Any]], **options: Any
) -> Optimizer:
    # checked here, because torch reports a missing fused kernel only at the first step
    parameters = [parameter for group in groups for _, parameter in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in _FUSED_DEVICES for p in parameters)
    # torch has no fused SGD for sharded parameters
    fused = fused and not (cls is SGD and any(map(is_sharded, parameters)))
    return cls(groups, fused=fused or None, **options)


def _timm_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    info = _registry.get_optimizer_info(config.name)
    if info.second_order:
        raise RuntimeError("it needs second derivatives, and training keeps no graph for them")
    options: dict[str, Any] = {
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "momentum": config.momentum,
    }
    if info.has_betas and info.num_betas == len(config.betas):
        options["betas"] = config.betas
    cls = _registry.get_optimizer_class(config.name, bind_defaults=False)
    if "max_grad_norm" in inspect.signature(cls).parameters:
        # timm's LAMB clips at 1 by default; here only `optim.clip_norm` clips
        options["max_grad_norm"] = None
    return cast(Optimizer, _registry.create_optimizer_v2(groups, config.name, **options))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's `lr_scale` where timm has set one."""
    for group in optimizer.param_groups:
        scaled = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):  # a compiled step reads the rate from this very tensor
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


class Ema:
    """Exponential moving average of a model's weights.

    Parameters are averaged; buffers, such as the statistics of BatchNorm, are copied. The decay
    after n updates is min(decay, (1 + n) / (10 + n)): it starts low, so that a short run does not
    average over its random start."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights; call after every optimizer step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        state = model.state_dict()
        averaged = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        copied = list(state.keys() - set(averaged))
        own = {name: local(value) for name, value in self.weights.items()}
        torch._foreach_lerp_(
            [own[k] for k in averaged], [local(state[k]) for k in averaged], 1 - decay
        )
        if copied:
            torch._foreach_copy_([own[k] for k in copied], [local(state[k]) for k in copied])

    @contextlib.contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Put the averaged weights into the model inside; restore its own on exit.

        They are restored bit for bit, in the same storage."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        try:
            model.load_state_dict(self.weights)
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights under the model's names, sharded as it is; `num_updates`."""
        return {**self.weights, "num_updates": torch.tensor(self.num_updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict`, on the device the average is on.

        Raises:
            ValueError: the state belongs to another model."""
        weights = {name: value for name, value in state.items() if name != "num_updates"}
        if weights.keys() != self.weights.keys():
            name = sorted(weights.keys() ^ self.weights.keys())[0]
            raise ValueError(
                f"the averaged weights belong to another model: {name} is in only one of the two"
            )
        for name, value in self.weights.items():
            local(value).copy_(part_as(value, weights[name]))
        self.num_updates = int(state["num_updates"])
