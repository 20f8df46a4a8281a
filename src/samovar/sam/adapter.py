"""SAM for loops of others: an optimizer around an optimizer, whose closure is called twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from samovar.sam.climb import Leaf, against_momentum, climbed, layerwise, leaves_of, norm_parameters
from samovar.sam.combine import combined, mixed
from samovar.sam.memory import SamMemory
from samovar.sam.scene import Scene
from samovar.sam.settings import check_own_ascent, check_settings, check_variant
from samovar.sam.variant import SamVariant


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
            {id(p.grad): p.grad for p in self._params() if p.grad is not None}
        )
        return loss

    def _backward(
        self, closure: Callable[[], Any], ascent: Callable[[], Any], scaler: GradScaler | None
    ) -> Any:
        """Leave the gradient that the base optimizer takes in `.grad`; return the clean loss."""
        step, variant = self.memory.step, self.variant
        active = step >= self.start and (self.end is None or step < self.end)
        if not active or all(group["rho"] == 0 for group in self.param_groups):
            return self._call(closure)
        if step % variant.every:
            loss = self._call(closure)
            if variant.reuse:
                self.memory.reuse_(self._numbered(), variant.reuse)
            return loss
        if variant.momentum:
            named = self._numbered()
            with climbed(self._leaves(against_momentum(named, self.base_optimizer))):
                return self._call(closure)
        return self._climb(closure, ascent, scaler)

    def _climb(
        self, closure: Callable[[], Any], ascent: Callable[[], Any], scaler: GradScaler | None
    ) -> Any:
        """Two passes or more: the gradient at the top of the climb, or what the variant makes of
        both."""
        variant, scale = (
            self.variant,
            torch.ones((), device=self._params()[0].device),
        )  # elsewhere, the host waits
        if scaler is not None:
            scale = scaler.scale(scale)
        scene = Scene(self.model, mute=not self.shared_ascent)
        with scene.ascent(hook=True):
            loss = self._call(ascent)
        clean = self._take()
        leaves = self._leaves(self._directions(clean, scale))
        if variant.sigma or variant.reuse:
            own = self._owned(clean) if self.shared_ascent else clean
            self.memory.sum_up("clean", self._by_number(own))
        if not variant.uses_both:
            clean = []  # so that `leaves`, emptied before the descent, is the last to hold them
        with (
            climbed(leaves, self._again(scene, ascent, scale)),
            scene.descent(mute=variant.uses_both),
        ):
            self._call(closure)
        if variant.uses_both:
            self._combine(clean, scale)
            scene.average_gradients_()
        self._remember(scene, scale)
        return loss

    def _take(self) -> list[Tensor | None]:
        """The gradients of all parameters, which are cleared."""
        grads = [param.grad for param in self._params()]
        self.zero_grad()
        return grads

    def _owned(self, grads: list[Tensor | None]) -> list[Tensor | None]:
        """Copies, as DDP may have lent views of buckets that the descent writes to."""
        return [None if grad is None else grad.clone() for grad in grads]

    def _directions(self, grads: list[Tensor | None], scale: Tensor) -> list[Tensor | None]:
        if not self.variant.sigma:
            return grads
        return list(
            self.memory.friendly(self._by_number(grads), self.variant.sigma, scale).values()
        )

    def _leaves(self, directions: list[Tensor | None]) -> list[Leaf]:
        """The parameters that climb, each along its direction; those of a group with rho = 0 do
        not."""
        leaves, rest = [], iter(directions)
        norms = None
        if self.variant.norms_only and self.model is not None:
            norms = norm_parameters(self.model.modules())
        for group in self.param_groups:
            grads = [next(rest) for _ in group["params"]]
            if norms is not None:
                grads = [
                    grad if param in norms else None
                    for param, grad in zip(group["params"], grads, strict=True)
                ]
            if group["rho"] != 0:
                rho, eta = (
                    group["rho"] / self.variant.ascent_steps,
                    group["eta"] if group["adaptive"] else None,
                )
                leaves += leaves_of(self._names(group), group["params"], grads, rho, eta)
        return layerwise(leaves) if self.variant.layerwise else leaves

    def _again(
        self, scene: Scene, ascent: Callable[[], Any], scale: Tensor
    ) -> Iterator[Callable[[], list[Leaf]]]:
        def leaves() -> list[Leaf]:
            with scene.rehearsal():
                self._call(ascent)
            return self._leaves(self._directions(self._take(), scale))

        return iter([leaves] * (self.variant.ascent_steps - 1))

    def _combine(self, clean: list[Tensor | None], scale: Tensor) -> None:
        """Make of the two gradients what goes to the base optimizer, and what is kept."""
        robust = self._take()
        for param, grad in zip(self._params(), combined(self.variant, clean, robust), strict=True):
            param.grad = grad
        if self.variant.reuse:
            self.memory.sum_up("robust", self._by_number(robust))
        if self.variant.decoupled:
            self.memory.sum_up(
                "difference", self._by_number(mixed(1 / scale, robust, -1 / scale, clean))
            )

    def _remember(self, scene: Scene, scale: Tensor) -> None:
        named, variant = self._numbered(), self.variant
        mean = partial(self.memory.mean, params=named, average=scene.mean)
        if variant.sigma:
            unscaled = {name: grad / scale.to(grad) for name, grad in mean("clean").items()}
            self.memory.average_in(unscaled, variant.sigma_decay)
        if variant.reuse:
            self.memory.keep_component(mean("clean"), mean("robust"))
        if variant.decoupled:
            self.memory.difference = [
                (named[name], grad) for name, grad in mean("difference").items()
            ]

    def _numbered(self) -> dict[str, Tensor]:
        return {str(k): param for k, param in enumerate(self._params())}

    def _by_number(self, grads: list[Tensor | None]) -> dict[str, Tensor | None]:
        return {str(k): grad for k, grad in enumerate(grads)}

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
