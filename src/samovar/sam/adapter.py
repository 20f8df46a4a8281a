"""SAM for loops of others: an optimizer around an optimizer, whose closure is called twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from samovar.sam.checks import check_own_ascent, check_settings, check_variant
from samovar.sam.directions import Climber, asam_offset, norm_parameters
from samovar.sam.engine import Ascent, Gradients, Params, sam_gradient
from samovar.sam.memory import SamMemory
from samovar.sam.scene import Scene
from samovar.sam.variant import SamVariant

Closure = Callable[[], Any]


def _of_base(name: str) -> Any:
    """An attribute that SAM and its base optimizer have in common."""
    return property(
        lambda self: getattr(self.base_optimizer, name),
        lambda self, x: setattr(self.base_optimizer, name, x),
    )


class SAM(torch.optim.Optimizer):
    """Any optimizer on the SAM gradient: `step(closure)` calls the closure twice, then
    `base_optimizer.step()`.

    The closure is PyTorch's: compute the loss, call backward, return the loss; accumulate
    micro-batches inside it. Parameters, state and `state_dict` are the base optimizer's own:
    schedulers and checkpoints may use either object. `rho`, `adaptive` and `eta` live in its
    parameter groups; a group with rho = 0 is neither perturbed nor in the norm. A parameter that it
    does not hold gathers gradients from both passes, unless the closure zeroes them.

    DDP wrappers and buffers are found while the closure runs, so ascents are local to a rank and
    buffers updated once.
    Compiled code hides both: give `model` then, and wrap DDP around the compiled module.

    What a `variant` remembers is saved with the state; the base optimizer can load it too, and
    leaves it aside.

    Args:
        base_optimizer: applies the gradient; may have no hyper-parameter of its own called rho,
            adaptive or eta.
        rho: radius of the perturbation, >= 0; 0 is plain training.
        adaptive: ASAM, see `sam_backward`; takes names from `model`, or a base optimizer built on
            `named_parameters()`.
        eta: ASAM's offset, > 0.
        shared_ascent: let DDP average the ascent gradient over the ranks.
        clip_norm: largest global norm of the (unscaled) SAM gradient; None does not clip.
        model: what the closure calls; needed if it is compiled, and by a variant that perturbs norm
            layers only.
        variant: a relative of SAM; None is SAM.
        start: step, counted from 0, from which it climbs, and
        end: step from which it does no more; None is never. The other steps are plain.

    Raises:
        ValueError: a setting out of range, a clash of hyper-parameters, names missing under
            `adaptive`, a variant whose settings mean nothing together.

    Source: as for `sam_backward`.
    """

    _step_supports_amp_scaling = (
        True  # has GradScaler.step(sam, closure) set these two first, which step() refuses
    )
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
        variant: SamVariant | None = None,
        start: int = 0,
        end: int | None = None,
    ) -> None:
        settings = {"rho": rho, "adaptive": adaptive, "eta": eta}
        if clash := settings.keys() & base_optimizer.defaults.keys():
            raise ValueError(
                f"{type(base_optimizer).__name__} has its own {', '.join(clash)}; pick another optimizer"
            )
        if hasattr(
            base_optimizer, "_in_sam"
        ):  # whose rho, in the groups they would share, would silently win
            raise ValueError(
                "the base optimizer is in a SAM already; wrap a new one, or set rho in its param_groups"
            )
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(
                f"clip_norm={clip_norm} is not positive; pick clip_norm > 0, or None for no clipping"
            )
        if not 0 <= start <= (start if end is None else end):
            raise ValueError(
                f"start={start} with end={end}: pick 0 <= start <= end, or end=None for all later steps"
            )
        self.variant, self.start, self.end, self.memory = (
            variant or SamVariant(),
            start,
            end,
            SamMemory(),
        )
        check_variant(self.variant, adaptive, self.memory, base_optimizer)
        if self.variant.norms_only and (model is None or not norm_parameters(model.modules())):
            raise ValueError(
                "norms_only=True must know which layers normalize; give model=, with some that do"
            )
        self.base_optimizer = base_optimizer
        self.shared_ascent, self.clip_norm, self.model = shared_ascent, clip_norm, model
        # not Optimizer.__init__, which would build groups and state of our own beside the base
        # optimizer's
        self.__setstate__({"defaults": base_optimizer.defaults | settings})
        self._adopt(self.param_groups)
        base_optimizer._in_sam = True  # type: ignore[attr-defined]

    param_groups = _of_base("param_groups")
    state = _of_base("state")

    def __getstate__(self) -> dict[str, Any]:
        keys = (
            "base_optimizer",
            "defaults",
            "shared_ascent",
            "clip_norm",
            "model",
            "variant",
            "start",
            "end",
            "memory",
        )
        return {key: self.__dict__[key] for key in keys}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._left: WeakValueDictionary[int, Tensor] = (
            WeakValueDictionary()
        )  # gradients of our own last step, by id

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.base_optimizer!r}"

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state and groups, rho, adaptive and eta among them; under "sam" what
        is remembered."""
        state_dict = self.base_optimizer.state_dict()
        remembers = self.variant.remembers or self.start or self.end is not None
        return state_dict | {"sam": self.memory.state_dict()} if remembers else state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` returned, of this class or of the base optimizer alone."""
        self.base_optimizer.load_state_dict(state_dict)
        if "sam" in state_dict:
            self.memory.load_state_dict(state_dict["sam"])
        self._adopt(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; it may bring its own rho, adaptive and eta."""
        self.base_optimizer.add_param_group(param_group)
        try:
            self._adopt(self.param_groups[-1:])
        except ValueError:
            self.param_groups.pop()
            raise

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        scaler: GradScaler | None = None,
        ascent_closure: Callable[[], Any] | None = None,
    ) -> Any:
        """Take one step on the SAM gradient.

        Without a scaler, a SAM gradient that is not finite goes to the base optimizer, as a plain
        one would.

        Args:
            closure: computes the loss, calls backward (on the scaled loss if there is a scaler),
                returns the loss.
            scaler: unscales, clips, and skips the base optimizer's step where it must;
                `scaler.update()` is yours.
            ascent_closure: the same for the ascent alone, for instance on a quarter of the
                examples; None is `closure`.

        Returns:
            What the first closure returned, at the unperturbed weights (MSAM: perturbed); a tensor
            is detached.

        Raises:
            TypeError: no closure.
            ValueError: an ascent closure under a variant that needs both gradients of the same
                examples, or none.
            RuntimeError: `scaler.step(sam, closure)`; a closure that leaves no gradient, or adds to
                an older one; a compiled model with buffers, not given as `model`. Weights are as
                before, gradients cleared.
        """
        if "grad_scale" in self.__dict__:
            del self.grad_scale, self.found_inf
            raise RuntimeError(
                "scaler.step(sam, ...) trains on scaled gradients; call sam.step(closure, scaler=scaler)"
            )
        if closure is None:
            raise TypeError(
                "SAM.step() needs a closure that runs forward and backward; without one, call sam_backward"
            )
        if ascent_closure is not None:
            check_own_ascent(self.variant, "ascent_closure")
        with self.memory.turn(1):
            try:
                loss = self._backward(closure, ascent_closure or closure, scaler)
            except BaseException:
                self.zero_grad()
                raise
            self._apply(scaler)
            if self.memory.difference:
                self.memory.subtract_(self.base_optimizer, self.variant)
        self._left = WeakValueDictionary(
            {id(p.grad): p.grad for p in self._params().values() if p.grad is not None}
        )
        return loss

    def _backward(self, closure: Closure, ascent: Closure, scaler: GradScaler | None) -> Any:
        """Leave the gradient that the base optimizer takes in `.grad`; return the clean loss."""
        step = self.memory.step
        active = step >= self.start and (self.end is None or step < self.end)
        climbers = self._climbers() if active else {}
        passes = _ClosurePasses(self, closure, ascent, scaler)
        return sam_gradient(passes, climbers, self.variant, self.memory, self.base_optimizer)

    def _climbers(self) -> dict[str, Climber]:
        """Return the parameters that are perturbed: none of a group with rho = 0."""
        norms = None
        if self.variant.norms_only and self.model is not None:
            norms = norm_parameters(self.model.modules())
        climbers, names = {}, iter(self._params())
        for group in self.param_groups:
            eta = group["eta"] if group["adaptive"] else None
            for param, name in zip(group["params"], self._names(group), strict=True):
                key = next(names)
                if group["rho"] != 0 and (norms is None or param in norms):
                    climbers[key] = Climber(param, group["rho"], asam_offset(name, eta))
        return climbers

    def _call(self, closure: Callable[[], Any]) -> Any:
        """Run the closure from empty gradients, and see that it fills them."""
        foreign: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        for param in self._params().values():
            if param.grad is not None and self._left.get(id(param.grad)) is param.grad:
                param.grad = None
            elif param.grad is not None:
                foreign[id(param.grad)] = param.grad
        with torch.enable_grad():
            loss = closure()
        grads = [param.grad for param in self._params().values() if param.grad is not None]
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
            nn.utils.clip_grad_norm_(self._params().values(), self.clip_norm)
        if scaler is None:
            self.base_optimizer.step()
        else:
            scaler.step(self.base_optimizer)

    def _params(self) -> dict[str, Tensor]:
        """Return all parameters by their place in the groups, as in the base `state_dict`."""
        params = (param for group in self.param_groups for param in group["params"])
        return {str(place): param for place, param in enumerate(params)}

    def _names(self, group: dict[str, Any]) -> list[str]:
        """A name per parameter of the group, "" where it is not known."""
        known = (
            {}
            if self.model is None
            else {id(param): name for name, param in self.model.named_parameters()}
        )
        return group.get("param_names") or [known.get(id(param), "") for param in group["params"]]

    def _adopt(self, groups: list[dict[str, Any]]) -> None:
        """Check the settings of groups, then give them our defaults where they have none of their
        own."""
        settings = [
            {key: group.get(key, self.defaults[key]) for key in ("rho", "adaptive", "eta")}
            for group in groups
        ]
        for group, setting in zip(groups, settings, strict=True):
            check_settings(setting["rho"], setting["eta"])
            if setting["adaptive"] and not all(self._names(group)):
                raise ValueError(
                    "adaptive=True must tell weights from biases by name; build the base optimizer on "
                    "model.named_parameters(), or pass model="
                )
        for group, setting in zip(groups, settings, strict=True):
            group.update(setting)


@dataclass(frozen=True)
class _ClosurePasses:
    """Passes by calls of a closure, whose gradients arrive in `.grad`."""

    sam: SAM
    closure: Closure
    ascent_closure: Closure
    scaler: GradScaler | None

    @property
    def params(self) -> dict[str, Tensor]:
        """All parameters, by their place in the groups."""
        return self.sam._params()

    def plain(self, moved: AbstractContextManager[None] | None = None) -> Any:
        """Call the closure, at the weights inside `moved`."""
        with moved or nullcontext():
            return self.sam._call(self.closure)

    def ascend(self, wanted: Params) -> Ascent:
        """Call the ascent's closure at the clean weights and take its gradients."""
        scene = Scene(self.sam.model, mute=not self.sam.shared_ascent)
        with scene.ascent(hook=True):
            loss = self.sam._call(self.ascent_closure)
        variant = self.sam.variant
        # What is remembered must be copied: with a shared ascent DDP may have lent views of
        # buckets, which the descent writes to.
        owned = self.sam.shared_ascent and bool(variant.sigma or variant.reuse)
        return Ascent(loss, self._take(owned=owned), scene)

    def ascend_again(self, scene: Scene, wanted: Params) -> Gradients:
        """Call the ascent's closure at the weights then and take its gradients."""
        with scene.rehearsal():
            self.sam._call(self.ascent_closure)
        return self._take()

    def descend(self) -> None:
        """Call the closure at the perturbed weights."""
        self.sam._call(self.closure)

    def descend_apart(self) -> Gradients:
        """Call the closure at the perturbed weights and take its gradients."""
        self.sam._call(self.closure)
        return self._take()

    def scale(self) -> Tensor:
        """Return the scaler's factor [], made on the device of the parameters."""
        one = torch.ones((), device=next(iter(self.params.values())).device)
        return one if self.scaler is None else self.scaler.scale(one)

    def _take(self, owned: bool = False) -> Gradients:
        """Return all gradients and clear `.grad`."""
        grads = {
            name: param.grad.clone() if owned and param.grad is not None else param.grad
            for name, param in self.params.items()
        }
        self.sam.zero_grad()
        return grads
