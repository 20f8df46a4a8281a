"""Optimizers by name, with the paper's rule of what decays, and what happens to a gradient on the
way to them.

`adamw` and `sgd` are torch's, fused where the device has it: fused ones skip a non-finite step
without asking the host. Every other name is timm's. Weight decay is decoupled (lr x decay x weight)
in adamw, sgdw, lambw and most names ending in w; in sgd it is part of the gradient, and in lamb of
the update, before the trust ratio, as in its paper."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import timm.optim
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import SGD, AdamW, Optimizer

from samovar.config import Config, OptimConfig

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
    """Trainable parameters with their names, in a group that decays and one that does not; an empty
    one is left out.

    Under `decay="kernels"` the weights of linear and convolution layers decay, patch embedding and
    head included; biases, norms, class tokens and position embeddings do not. Shared parameters
    appear once, and decay if any of the layers that share them makes them a kernel.

    Raises:
        ValueError: the model has nothing to train.

    Source: `kernel` parameters, the default of big_vision's weight decay."""
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
            kernels |= {
                weight
                for name in _ATTENTION_KERNELS
                if (weight := getattr(layer, name)) is not None
            }
    return kernels


def create_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer a config names, over `parameter_groups` of the model, where the parameters now
    are.

    Raises:
        ValueError: an unknown name (with the nearest), or one that does not run here."""
    groups = parameter_groups(model, config)
    if config.name in _TORCH:
        return _TORCH[config.name](groups, config)
    known: list[str] = _registry.list_optimizers()
    if config.name not in known:
        near = difflib.get_close_matches(config.name, known, n=3) or ["adamw", "sgd", "lamb"]
        raise ValueError(f"unknown optimizer {config.name!r}; nearest: {', '.join(near)}")
    try:
        return _timm_optimizer(groups, config)
    except (ImportError, AssertionError, RuntimeError) as error:
        raise ValueError(f"optimizer {config.name} does not run here: {error}") from error


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    return _fused(AdamW, groups, lr=config.lr, betas=config.betas)


def _sgd(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    optimizer = _fused(SGD, groups, lr=config.lr, momentum=config.momentum)
    if config.momentum:
        # torch's fused SGD makes its buffers of uninitialized memory in the first step, and a step
        # that is skipped leaves them so; from zeros the first step is the same one
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
    # asked here, because torch tells only at the first step that there is no fused kernel
    fused = all(
        p.is_floating_point() and p.device.type in _FUSED_DEVICES
        for g in groups
        for _, p in g["params"]
    )
    return cls(groups, fused=fused or None, **options)


def _timm_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    info = _registry.get_optimizer_info(config.name)
    if info.second_order:
        raise RuntimeError("it needs second derivatives, and training keeps no graph for them")
    signature = inspect.signature(
        _registry.get_optimizer_class(config.name, bind_defaults=False)
    ).parameters
    options: dict[str, Any] = {
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "momentum": config.momentum,
    }
    if info.has_betas and info.num_betas == len(config.betas):
        options["betas"] = config.betas
    if "max_grad_norm" in signature:
        options["max_grad_norm"] = (
            None  # timm's LAMB clips at 1 unasked; clipping is `optim.clip_norm`'s
        )
    return cast(Optimizer, _registry.create_optimizer_v2(groups, config.name, **options))


def honours_found_inf(optimizer: Optimizer) -> bool:
    """Whether the optimizer skips a step by itself, on the device, when its `found_inf` is 1:
    torch's fused ones."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def step_if(optimizer: Optimizer, finite: Tensor) -> None:
    """Step if `finite` (a scalar bool), else leave weights and state, its step counter too, as they
    are.

    Costs a host sync with optimizers that do not honour `found_inf`."""
    if not honours_found_inf(optimizer):
        if finite:
            optimizer.step()
        return
    fused = cast(Any, optimizer)
    fused.grad_scale, fused.found_inf = None, (~finite).float()
    try:
        fused.step()
    finally:
        del fused.grad_scale, fused.found_inf


# --- schedules
# -------------------------------------------------------------------------------------------------------


def _cosine(progress: float, config: OptimConfig) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(progress: float, config: OptimConfig) -> float:
    return config.linear_end + (1 - config.linear_end) * (1 - progress)


def _exponential(progress: float, config: OptimConfig) -> float:
    return float(config.exponential_end**progress)


def _constant(progress: float, config: OptimConfig) -> float:
    return 1.0


_SCHEDULES: dict[str, Callable[[float, OptimConfig], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "exponential": _exponential,
    "constant": _constant,
}


def check_warmup(config: OptimConfig, total_steps: int, section: str = "optim") -> None:
    """Refuse a warm-up that is longer than what it warms up for.

    Args:
        section: where in the settings `config` is.

    Raises:
        ValueError: names the flag and both numbers."""
    if config.warmup_steps > total_steps:
        raise ValueError(
            f"--{section}.warmup-steps {config.warmup_steps} is more than the run's {total_steps} steps; lower it or "
            "train longer"
        )


def lr_at(step: int, config: OptimConfig, total_steps: int) -> float:
    """Learning rate of a step, counted from 0.

    The decayed value times min(1, step / warmup_steps), where decay starts after warm-up. So with
    warm-up the first
    step has rate 0: it fills the moments and moves nothing.

    Raises:
        ValueError: warm-up is longer than the run.

    Source: big_vision's schedules."""
    check_warmup(config, total_steps)
    warmup = config.warmup_steps
    progress = min(1.0, max(0.0, (step - warmup) / max(1, total_steps - warmup)))
    ramp = min(1.0, step / warmup) if warmup else 1.0
    return config.lr * ramp * _SCHEDULES[config.schedule](progress, config)


def rho_at(step: int, config: Config, total_steps: int) -> float:
    """Radius of the perturbation at a step, counted from 0; 0 where SAM does not climb: before its
    start, from its end.

    Under `rho_schedule="lr"` it is rho_min + (rho - rho_min) (lr - lr_min) / (lr_max - lr_min),
    where lr_max is the peak and lr_min the rate at the end of the schedule; not below rho_min,
    which warm-up would otherwise go.

    Source: GSAM, Zhuang et al., arXiv:2203.08065."""
    sam = config.sam
    if not round(sam.start * total_steps) <= step < round(sam.end * total_steps):
        return 0.0
    if sam.rho_schedule == "constant":
        return sam.rho
    peak = config.optim.lr
    lowest = peak * _SCHEDULES[config.optim.schedule](1.0, config.optim)
    lowest = 0.0 if lowest == peak else lowest  # then all that changes is the warm-up from 0
    share = (lr_at(step, config.optim, total_steps) - lowest) / (peak - lowest) if peak else 0.0
    return sam.rho_min + (sam.rho - sam.rho_min) * max(0.0, share)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's `lr_scale` where timm has put one."""
    for group in optimizer.param_groups:
        scaled = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):  # a compiled step reads the rate from this very tensor
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def clip_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place so that their global norm is at most `max_norm`; 0 leaves them. No
    host sync.

    Returns:
        The norm before clipping, a scalar on the device; not finite if any gradient is not."""
    parameters = [p for p in parameters if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


# --- average of the weights
# ------------------------------------------------------------------------------------------


class Ema:
    """Exponential moving average of a model's weights.

    Parameters are averaged; buffers, such as the statistics of BatchNorm, are copied. The decay
    starts low and is min(decay, (1 + n) / (10 + n)) after n updates, so that a short run does not
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
        torch._foreach_lerp_(
            [self.weights[k] for k in averaged], [state[k] for k in averaged], 1 - decay
        )
        if copied:
            torch._foreach_copy_([self.weights[k] for k in copied], [state[k] for k in copied])

    @contextlib.contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Lend the model the averaged weights; on exit its own come back bit for bit, in the same
        storage."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        try:
            model.load_state_dict(self.weights)
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's names, and `num_updates`."""
        return {**self.weights, "num_updates": torch.tensor(self.num_updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict`, on the device the average is on.

        Raises:
            ValueError: it is of another model."""
        weights = {name: value for name, value in state.items() if name != "num_updates"}
        if weights.keys() != self.weights.keys():
            name = sorted(weights.keys() ^ self.weights.keys())[0]
            raise ValueError(
                f"the averaged weights are of another model: {name} is in only one of the two"
            )
        for name, value in self.weights.items():
            value.copy_(weights[name])
        self.num_updates = int(state["num_updates"])
