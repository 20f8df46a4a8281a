"""Sharpness-aware minimization as a way to take a gradient (`sam_backward`), with an adapter for foreign loops (`SAM`).

SAM minimizes the worst loss nearby, max L(w + e) over |e| <= rho. To first order the worst e is rho g / |g|, so one
gradient costs two passes: the ascent (g, at w) and the descent (the gradient at w + e, then applied at w). The examples
that share an ascent are a group of m: call `sam_backward` once per group and the gradients add up.

Source: Foret et al., arXiv:2010.01412; the adaptive form (ASAM): Kwon et al., arXiv:2102.11600.
"""

import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

LossFn = Callable[[nn.Module], Tensor]
LossFns = LossFn | Sequence[LossFn]


class InputAscent(NamedTuple):
    """Inputs that climb the loss along with the weights, such as images under attack."""

    inputs: Sequence[Tensor]
    """Leaves of any shape that the loss functions read; they require a gradient during the ascent only."""
    move: Callable[[Sequence[Tensor]], None]
    """Changes the inputs in place, given for each the gradient, in its shape, of the (scaled) losses' sum; 0 where that
    is not finite."""
    num_steps: int = 1
    """How often they move, >= 1; the last move takes its gradients from the weights' own ascent."""


CHUNK = 16  # parameters per foreach call: few kernel launches, yet temporaries that are a small part of the weights
CHUNK_ON_CPU = 1  # where launches cost nothing, and temporaries should stay in the cache


def plain_backward(loss_fn: LossFns, model: nn.Module, *, scaler: GradScaler | None = None) -> Tensor:
    """Add the ordinary gradient to `.grad`: one forward and one backward pass per loss function.

    Args:
        loss_fn: maps the model to a scalar loss; or several of them, one per micro-batch, whose losses are summed.
        model: plain, compiled, or wrapped in DDP (which then communicates once, in the last backward).
        scaler: scales the losses for fp16; unscaling and the step stay with the caller.

    Returns:
        The summed loss [], detached and unscaled.

    Raises:
        ValueError: an empty sequence of loss functions.
    """
    loss_fns = _as_list(loss_fn)
    losses = []
    for i, each in enumerate(loss_fns, start=1):
        with model.no_sync() if isinstance(model, DistributedDataParallel) and i < len(loss_fns) else nullcontext():
            loss = each(model)
            _scaled(loss, scaler).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach().clone())  # a compiled model may reuse the memory of its output
    return torch.stack(losses).sum()


def sam_backward(
    loss_fn: LossFns,
    model: nn.Module,
    *,
    rho: float,
    adaptive: bool = False,
    eta: float = 0.01,
    shared_ascent: bool = False,
    scaler: GradScaler | None = None,
    input_ascent: InputAscent | None = None,
) -> Tensor:
    """Add the SAM gradient of one group of examples to `.grad`: two forward and two backward passes.

    All passes draw the same random numbers (dropout, stochastic depth). Buffers (BatchNorm statistics) are those of
    the ascent. The weights come back bit for bit, in the same storage, also if the descent raises. Where the ascent
    gradient is zero or not finite nothing is perturbed; rho = 0 is `plain_backward`. It takes one copy of the weights.

    Inputs may climb too. Moved k times at the clean weights, the last time by gradients of the same backward pass as
    the ascent's, they cost k - 1 further passes; with rho = 0, k passes and then the plain gradient where they ended.

    For several groups in a batch call it once per group, each loss weighted by m / batch; under DDP, where every rank
    is a group of its own, do so inside `model.no_sync()` for all calls but the last. The ascent sends nothing.

    Args:
        loss_fn: maps the model to a scalar loss; or several of them, one per micro-batch of the *same* group, whose
            losses are summed. Called twice, the first time on the module inside DDP.
        model: plain, compiled, or either in DDP. Reentrant activation checkpointing does not work.
        rho: radius of the perturbation, >= 0, in the norm of all weights together.
        adaptive: ASAM, e = rho T^2 g / |T g| with T = |w| + eta for weights and 1 for the rest. As in its authors'
            code, weights are the parameters with "weight" in their names, those of norm layers included, biases not.
        eta: ASAM's offset, > 0.
        shared_ascent: average the ascent gradient over the ranks by one all-reduce, so that m is the whole batch.
        scaler: scales the losses of all passes for fp16; unscaling and the step stay with the caller.
        input_ascent: which inputs climb, and how.

    Returns:
        The summed loss [] at the unperturbed weights and before the inputs' last move, detached and unscaled.

    Raises:
        ValueError: rho, eta or a number of steps out of range; a model compiled around DDP, or sharded; an empty
            sequence of loss functions.

    Source: Foret et al., arXiv:2010.01412; the adaptive form (ASAM): Kwon et al., arXiv:2102.11600.
    """
    _check_settings(rho, eta)
    if rho == 0 and input_ascent is None:
        return plain_backward(loss_fn, model, scaler=scaler)
    named = {name: param for name, param in model.named_parameters() if param.requires_grad and rho > 0}
    params, scene = list(named.values()), _Scene(model, mute=True)
    loss, grads = _ascend(scene, _as_list(loss_fn), model, params, input_ascent, scaler)
    if shared_ascent:
        grads = _summed(grads, params, model)
    leaves = _leaves(named, params, grads, rho, eta if adaptive else None)
    del grads  # so that `leaves`, emptied before the descent, is the last to hold them
    with scene.descent(), _perturbed(leaves):
        plain_backward(loss_fn, model, scaler=scaler)
    return loss


def _of_base(name: str) -> Any:
    """An attribute that SAM and its base optimizer have in common."""
    return property(
        lambda self: getattr(self.base_optimizer, name), lambda self, x: setattr(self.base_optimizer, name, x)
    )


class SAM(torch.optim.Optimizer):
    """Any optimizer on the SAM gradient: `step(closure)` calls the closure twice, then `base_optimizer.step()`.

    The closure is PyTorch's: compute the loss, call backward, return the loss; accumulate micro-batches inside it.
    Parameters, state and `state_dict` are the base optimizer's own: schedulers and checkpoints may use either object.
    `rho`, `adaptive` and `eta` live in its parameter groups; a group with rho = 0 is neither perturbed nor in the norm.
    A parameter that it does not hold gathers gradients from both passes, unless the closure zeroes them.

    DDP wrappers and buffers are found while the closure runs, so ascents are local to a rank and buffers updated once.
    Compiled code hides both: give `model` then, and wrap DDP around the compiled module.

    Args:
        base_optimizer: applies the gradient; may have no hyper-parameter of its own called rho, adaptive or eta.
        rho: radius of the perturbation, >= 0; 0 is plain training.
        adaptive: ASAM, see `sam_backward`; takes names from `model`, or a base optimizer built on `named_parameters()`.
        eta: ASAM's offset, > 0.
        shared_ascent: let DDP average the ascent gradient over the ranks.
        clip_norm: largest global norm of the (unscaled) SAM gradient; None does not clip.
        model: what the closure calls; needed if it is compiled.

    Raises:
        ValueError: a setting out of range, a clash of hyper-parameters, or names missing under `adaptive`.

    Source: as for `sam_backward`.
    """

    _step_supports_amp_scaling = True  # has GradScaler.step(sam, closure) set these two first, which step() refuses
    grad_scale: Tensor
    found_inf: Tensor

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
        shared_ascent: bool = False,
        clip_norm: float | None = None,
        model: nn.Module | None = None,
    ) -> None:
        settings = {"rho": rho, "adaptive": adaptive, "eta": eta}
        if clash := settings.keys() & base_optimizer.defaults.keys():
            raise ValueError(f"{type(base_optimizer).__name__} has its own {', '.join(clash)}; pick another optimizer")
        if hasattr(base_optimizer, "_in_sam"):  # whose rho, in the groups they would share, would silently win
            raise ValueError("the base optimizer is in a SAM already; wrap a new one, or set rho in its param_groups")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm} is not positive; pick clip_norm > 0, or None for no clipping")
        self.base_optimizer = base_optimizer
        self.shared_ascent, self.clip_norm, self.model = shared_ascent, clip_norm, model
        # not Optimizer.__init__, which would build groups and state of our own beside the base optimizer's
        self.__setstate__({"defaults": base_optimizer.defaults | settings})
        self._adopt(self.param_groups)
        base_optimizer._in_sam = True  # type: ignore[attr-defined]

    param_groups = _of_base("param_groups")
    state = _of_base("state")

    def __getstate__(self) -> dict[str, Any]:
        keys = ("base_optimizer", "defaults", "shared_ascent", "clip_norm", "model")
        return {key: self.__dict__[key] for key in keys}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._left: WeakValueDictionary[int, Tensor] = WeakValueDictionary()  # gradients of our own last step, by id

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.base_optimizer!r}"

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state and groups, rho, adaptive and eta among them; there is nothing else to save."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` returned, of this class or of the base optimizer alone."""
        self.base_optimizer.load_state_dict(state_dict)
        self._adopt(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; it may bring its own rho, adaptive and eta."""
        self.base_optimizer.add_param_group(param_group)
        try:
            self._adopt(self.param_groups[-1:])
        except ValueError:
            self.param_groups.pop()
            raise

    def step(self, closure: Callable[[], Any] | None = None, *, scaler: GradScaler | None = None) -> Any:
        """Take one step on the SAM gradient.

        Without a scaler, a SAM gradient that is not finite goes to the base optimizer, as a plain one would.

        Args:
            closure: computes the loss, calls backward (on the scaled loss if there is a scaler), returns the loss.
            scaler: unscales, clips, and skips the base optimizer's step where it must; `scaler.update()` is yours.

        Returns:
            What the closure returned at the unperturbed weights; a tensor is detached.

        Raises:
            TypeError: no closure.
            RuntimeError: `scaler.step(sam, closure)`; a closure that leaves no gradient, or adds to an older one; a
                compiled model with buffers, not given as `model`. Weights are as before, gradients cleared.
        """
        if "grad_scale" in self.__dict__:
            del self.grad_scale, self.found_inf
            raise RuntimeError(
                "scaler.step(sam, ...) trains on scaled gradients; call sam.step(closure, scaler=scaler)"
            )
        if closure is None:
            raise TypeError("SAM.step() needs a closure that runs forward and backward; without one, call sam_backward")
        try:
            loss = self._backward(closure)
        except BaseException:
            self.zero_grad()
            raise
        self._apply(scaler)
        self._left = WeakValueDictionary({id(p.grad): p.grad for p in self._params() if p.grad is not None})
        return loss

    def _backward(self, closure: Callable[[], Any]) -> Any:
        """Leave the SAM gradient in `.grad`; return the clean loss."""
        if all(group["rho"] == 0 for group in self.param_groups):
            return self._call(closure)
        scene = _Scene(self.model, mute=not self.shared_ascent)
        with scene.ascent(hook=True):
            loss = self._call(closure)
        leaves = []
        for group in self.param_groups:
            if group["rho"] != 0:
                grads = [param.grad for param in group["params"]]
                eta = group["eta"] if group["adaptive"] else None
                leaves += _leaves(self._names(group), group["params"], grads, group["rho"], eta)
                del grads  # so that `leaves`, emptied before the descent, is the last to hold them
        self.zero_grad()
        with scene.descent(), _perturbed(leaves):
            self._call(closure)
        return loss

    def _call(self, closure: Callable[[], Any]) -> Any:
        """Run the closure from empty gradients, and see that it fills them."""
        foreign: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        for param in self._params():
            if param.grad is not None and self._left.get(id(param.grad)) is param.grad:
                param.grad = None
            elif param.grad is not None:
                foreign[id(param.grad)] = param.grad
        with torch.enable_grad():
            loss = closure()
        grads = [param.grad for param in self._params() if param.grad is not None]
        if not grads:
            raise RuntimeError("the closure left no gradient; it must call backward() on the loss")
        if any(foreign.get(id(grad)) is grad for grad in grads):
            raise RuntimeError(
                "the closure added to gradients that were there before step(); accumulate inside the closure "
                "(Lightning: accumulate_grad_batches=1), or call zero_grad() first if they are stale"
            )
        return loss.detach() if isinstance(loss, Tensor) else loss

    def _apply(self, scaler: GradScaler | None) -> None:
        """Clip, then step the base optimizer, through the scaler if there is one."""
        if self.clip_norm is not None:
            if scaler is not None:
                scaler.unscale_(self.base_optimizer)
            nn.utils.clip_grad_norm_(self._params(), self.clip_norm)
        if scaler is None:
            self.base_optimizer.step()
        else:
            scaler.step(self.base_optimizer)

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _names(self, group: dict[str, Any]) -> list[str]:
        """A name per parameter of the group, "" where it is not known."""
        known = {} if self.model is None else {id(param): name for name, param in self.model.named_parameters()}
        return group.get("param_names") or [known.get(id(param), "") for param in group["params"]]

    def _adopt(self, groups: list[dict[str, Any]]) -> None:
        """Check the settings of groups, then give them our defaults where they have none of their own."""
        settings = [{key: group.get(key, self.defaults[key]) for key in ("rho", "adaptive", "eta")} for group in groups]
        for group, setting in zip(groups, settings, strict=True):
            _check_settings(setting["rho"], setting["eta"])
            if setting["adaptive"] and not all(self._names(group)):
                raise ValueError(
                    "adaptive=True must tell weights from biases by name; build the base optimizer on "
                    "model.named_parameters(), or pass model="
                )
        for group, setting in zip(groups, settings, strict=True):
            group.update(setting)


class _Leaf(NamedTuple):
    """One parameter of the ascent; eta is None where ASAM does not apply."""

    param: Tensor
    grad: Tensor
    rho: float
    eta: float | None


def _leaves(
    names: Iterable[str], params: list[Any], grads: list[Tensor | None], rho: float, eta: float | None
) -> list[_Leaf]:
    """The parameters that have a gradient, ready to be perturbed; eta is None for plain SAM."""
    # "weight" in the name is the rule of the authors of ASAM: github.com/SamsungLabs/ASAM, asam.py
    return [
        _Leaf(param, grad.to_dense(), rho, eta if "weight" in name and "bias" not in name.rpartition(".")[2] else None)
        for name, param, grad in zip(names, params, grads, strict=True)
        if grad is not None
    ]


@contextmanager
def _perturbed(leaves: list[_Leaf]) -> Iterator[None]:
    """Inside, the weights are at the top of the ascent; outside, as before to the bit. Empties `leaves`."""
    params = [leaf.param for leaf in leaves]
    copies = [param.detach().clone() for param in params]  # (w + e) - e restores only 99.6 % of float32 weights exactly
    try:
        if leaves:
            _climb(leaves)
        leaves.clear()  # frees the ascent gradient before the descent needs the memory
        torch.clear_autocast_cache()  # an outer autocast would go on with its 16-bit copies of the clean weights
        yield
    finally:
        if params:
            with torch.no_grad():
                torch._foreach_copy_(params, copies)
        torch.clear_autocast_cache()


@torch.no_grad()
def _climb(leaves: list[_Leaf]) -> None:
    """Move every leaf to w + rho T^2 g / |T g| in place, or nowhere if |T g| is 0 or not finite. No host sync."""
    norms = [n for params, grads, _, eta in _chunks(leaves) for n in torch._foreach_norm(_times_t(params, grads, eta))]
    norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    for params, grads, rho, eta in _chunks(leaves):
        steps = torch._foreach_mul(_times_t(params, _times_t(params, grads, eta), eta), (rho / norm).to(grads[0]))
        for step in steps:  # an unusable norm made all of them 0, nan (0 * inf among them) or infinite
            step.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        torch._foreach_add_(params, steps)


def _chunks(leaves: list[_Leaf]) -> Iterator[tuple[list[Tensor], list[Tensor], float, float | None]]:
    """(params, gradients in at least float32, rho, eta) of a few leaves at a time, alike in device, types, settings."""
    alike = defaultdict(list)
    for leaf in leaves:
        alike[leaf.param.device, leaf.param.dtype, leaf.grad.dtype, leaf.rho, leaf.eta].append(leaf)
    for (device, _, dtype, rho, eta), members in alike.items():
        precise = torch.promote_types(dtype, torch.float32)
        size = CHUNK_ON_CPU if device.type == "cpu" else CHUNK
        for start in range(0, len(members), size):
            chunk = members[start : start + size]
            yield [leaf.param for leaf in chunk], [leaf.grad.to(precise) for leaf in chunk], rho, eta


def _times_t(params: list[Tensor], grads: list[Tensor], eta: float | None) -> list[Tensor]:
    """T g, with T = |w| + eta, or 1 if eta is None; g, which autograd may give to two leaves, is not written to."""
    if eta is None:
        return grads
    t = torch._foreach_abs([param.to(grad.dtype) for param, grad in zip(params, grads, strict=True)])
    torch._foreach_add_(t, eta)
    torch._foreach_mul_(t, grads)
    return list(t)


class _Scene:
    """What both passes of a step share: random numbers, and the modules called with their buffers and DDP wrappers.

    Besides those of `model`, modules are found by a global forward pre-hook; it sees DDP before DDP reads its flags.
    """

    def __init__(self, model: nn.Module | None, *, mute: bool) -> None:
        self.model, self.mute = model, mute
        self.modules: dict[int, nn.Module] = {}
        self.restore_rng = _remember_rng()

    @contextmanager
    def ascent(self, *, hook: bool) -> Iterator[None]:
        """Find the modules; if `mute`, DDP communicates nothing inside."""
        with ExitStack() as self.undo:
            if self.model is not None:
                self.add(self.model)
            # torch.compile warns of global hooks; without DDP there is nothing to find around a model that was named
            if hook and (_distributed() or not any(map(_is_compiled, self.modules.values()))):
                self.handle = register_module_forward_pre_hook(self.called)
                self.undo.callback(self.handle.remove)
            yield

    def called(self, module: nn.Module, _args: object) -> None:
        """The hook."""
        if id(module) in self.modules and not _is_compiled(module):
            return
        self.add(module)
        if any(map(_is_compiled, module.modules())):
            self.handle.remove()  # else it would be compiled into the ascent, and the descent compiled once more

    def add(self, root: nn.Module) -> None:
        """Take in a module with all its descendants."""
        for module in root.modules():
            if id(module) not in self.modules:
                _refuse_unfit(module, named=self.model is not None)
                self.modules[id(module)] = module
                if self.mute and isinstance(module, DistributedDataParallel):
                    self.undo.enter_context(_muted(module))

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """A pass before the ascent's own; random numbers and buffers come out as they went in."""
        with _buffers_kept(self.modules.values()):
            yield
        self.restore_rng()
        torch.clear_autocast_cache()  # an outer autocast would go on with 16-bit copies of inputs that have moved

    @contextmanager
    def descent(self) -> Iterator[None]:
        """Same random numbers as in the ascent; buffers come out as the ascent left them."""
        for module in self.modules.values():
            if isinstance(module, DistributedDataParallel):
                _broadcast_buffers(module)
        with _buffers_kept(self.modules.values()):
            self.restore_rng()  # same dropout masks, as in sam_jax; else the ascent is for another loss
            yield


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
    if ddp.require_backward_grad_sync and ddp.forward_sync_buffers and ddp.modules_buffers:
        ddp._sync_buffers()  # type: ignore[no-untyped-call]
    ddp.require_forward_param_sync = False  # DDP itself would do it in the descent's forward, after we took our copies


@contextmanager
def _buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Buffers of modules in training mode (BatchNorm's, spectral norm's) come out as they went in."""
    training = [module for module in modules if module.training]
    kept = [
        (m._buffers, name, b, b.detach().clone()) for m in training for name, b in m._buffers.items() if b is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, copy in kept:
                buffer.copy_(copy)
                owner[name] = buffer  # forward may have bound the name to a new tensor


def _ascend(
    scene: _Scene,
    loss_fns: Sequence[LossFn],
    model: nn.Module,
    params: list[nn.Parameter],
    climb: InputAscent | None,
    scaler: GradScaler | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Clean loss [] and gradients of params, both from before the last move of the inputs, which it makes."""
    inputs, num_steps = (climb.inputs, climb.num_steps) if climb else ((), 1)
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} moves no input; pick num_steps >= 1, or leave out input_ascent")
    with scene.ascent(hook=False), _differentiated(inputs):
        for _ in range(num_steps - 1):
            with scene.rehearsal():
                _move(climb, _ascent_gradient(loss_fns, model, inputs, scaler)[1])
        loss, grads = _ascent_gradient(loss_fns, model, [*params, *inputs], scaler)
        _move(climb, grads[len(params) :])
    return loss, grads[: len(params)]


@contextmanager
def _differentiated(inputs: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the inputs require a gradient."""
    flags = [each.requires_grad for each in inputs]
    try:
        for each in inputs:
            each.requires_grad_()
        yield
    finally:
        for each, flag in zip(inputs, flags, strict=True):
            each.requires_grad_(flag)


@torch.no_grad()
def _move(climb: InputAscent | None, grads: Sequence[Tensor | None]) -> None:
    if climb:
        pairs = zip(climb.inputs, grads, strict=True)
        climb.move(
            [torch.zeros_like(x) if g is None else g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for x, g in pairs]
        )


def _ascent_gradient(
    loss_fns: Sequence[LossFn], model: nn.Module, params: Sequence[Tensor], scaler: GradScaler | None
) -> tuple[Tensor, list[Tensor | None]]:
    """Summed clean loss [], and its gradient for each of params (None if unused); `.grad` is untouched."""
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    losses: list[Tensor] = []
    sums: list[Tensor | None] = [None] * len(params)
    for each in loss_fns:
        loss = each(bare)
        losses.append(loss.detach().clone())
        for i, grad in enumerate(torch.autograd.grad(_scaled(loss, scaler), params, allow_unused=True)):
            so_far = sums[i]
            sums[i] = grad if so_far is None else so_far if grad is None else so_far + grad
    return torch.stack(losses).sum(), sums


def _summed(grads: list[Tensor | None], params: list[nn.Parameter], model: nn.Module) -> list[Tensor | None]:
    """Sum of the gradients over the ranks by one all-reduce; as a direction it is their mean. None counts as zero."""
    if not (_distributed() and params):
        return grads
    group = model.process_group if isinstance(model, DistributedDataParallel) else None
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(params, grads, strict=True)])
    dist.all_reduce(flat, group=group)
    parts = torch.split(flat, [param.numel() for param in params])
    return [part.view_as(param) for part, param in zip(parts, params, strict=True)]


def _remember_rng() -> Callable[[], None]:
    """Record every global random state in use; calling the result goes back to it."""
    undo: list[Callable[[], Any]] = [partial(random.setstate, random.getstate())]
    undo.append(partial(torch.set_rng_state, torch.get_rng_state()))
    if numpy := sys.modules.get("numpy"):
        undo.append(partial(numpy.random.set_state, numpy.random.get_state()))
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        undo.append(partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    if torch.backends.mps.is_available():
        undo.append(partial(torch.mps.set_rng_state, torch.mps.get_rng_state()))

    def restore() -> None:
        for each in undo:
            each()

    return restore


def _scaled(loss: Tensor, scaler: GradScaler | None) -> Tensor:
    return loss if scaler is None else scaler.scale(loss)


def _as_list(loss_fn: LossFns) -> Sequence[LossFn]:
    loss_fns = list(loss_fn) if isinstance(loss_fn, Sequence) else [loss_fn]
    if not loss_fns:
        raise ValueError("loss_fn is an empty sequence; give at least one function of the model")
    return loss_fns


def _check_settings(rho: float, eta: float) -> None:
    if rho < 0:
        raise ValueError(f"rho={rho} is negative; pick rho >= 0 (0 is plain training)")
    if not math.isfinite(rho):
        raise ValueError(f"rho={rho} is not finite; pick rho >= 0 (0 is plain training)")
    if not 0 < eta < math.inf:
        raise ValueError(f"eta={eta} is not positive and finite; pick eta > 0 (ASAM's authors use 0.01)")


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def _refuse_unfit(module: nn.Module, *, named: bool) -> None:
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
        raise RuntimeError("a compiled model hides its buffers from SAM; name it: SAM(base_optimizer, model=model)")
