"""The `SAM` optimizer for loops that are not ours: it wraps another, and calls a closure twice."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from samovar.sam.calls import answering, missing, refuse_accumulate
from samovar.sam.checks import check_own_ascent, check_settings, check_variant, check_wrapping
from samovar.sam.closure_passes import Closure, ClosurePasses, FreshGradients, Skipped
from samovar.sam.directions import Climber, asam_offset, norm_parameters
from samovar.sam.engine import sam_gradient
from samovar.sam.finite import take_step
from samovar.sam.memory import SamMemory
from samovar.sam.shards import shards_of
from samovar.sam.variant import SamVariant

_OWN = ("rho", "adaptive", "eta")
_PICKLED = (
    *("base_optimizer", "defaults", "shared_ascent", "clip_norm"),
    *("model", "variant", "start", "end", "memory", "skip_nonfinite", "_skipped"),
)


def _of_base(name: str) -> Any:
    """Return a property that reads and writes an attribute of the base optimizer."""
    return property(
        lambda self: getattr(self.base_optimizer, name),
        lambda self, x: setattr(self.base_optimizer, name, x),
    )


class SAM(torch.optim.Optimizer):
    """An optimizer that applies the SAM gradient through any base optimizer.

    `step(closure)` calls the closure twice, then `base_optimizer.step()`. The closure is PyTorch's:
    compute the loss, call backward, return the loss. Accumulate micro-batches inside it. Without
    backward and a loss to return it skips the batch.
    Parameters, state and `state_dict` are the base optimizer's own, so schedulers and checkpoints
    may use either object. `rho`, `adaptive` and `eta` live in its parameter groups; a group with
    rho = 0 is not perturbed and does not count in the norm. A parameter that the optimizer does not
    hold collects gradients from both passes, unless the closure zeroes them.

    DDP wrappers and buffers are found while the closure runs, so each rank makes its own ascent and
    buffers are updated once. Compiled code hides both: pass `model` then, and wrap DDP around the
    compiled module. `fully_shard` needs `model` too: ranks that share weights share the ascent.

    What a `variant` remembers is saved with the state. The base optimizer can load that state too;
    it ignores the part of the variant.

    Args:
        base_optimizer: applies the gradient; must step without a closure, and have no
            hyper-parameter of its own called rho, adaptive or eta.
        rho: radius of the perturbation, >= 0; 0 is plain training.
        adaptive: use ASAM, see `sam_backward`. It needs parameter names: from `model`, or from a
            base optimizer built on `named_parameters()`.
        eta: ASAM's offset, > 0.
        shared_ascent: let DDP average the ascent gradient over the ranks.
        clip_norm: largest global norm of the (unscaled) SAM gradient; None does not clip.
        model: the module that the closure calls; needed if it is compiled, and by a variant that
            perturbs norm layers only.
        variant: a relative of SAM; None is SAM.
        start: first step, counted from 0, that uses SAM; the steps before are plain.
        end: first step after `start` that is plain again; None is never.
        num_steps: steps of the training, which AE-SAM's moving threshold needs; 0 if unknown.
        skip_nonfinite: without a scaler, take no step on a gradient that is not finite.

    Raises:
        TypeError: the call is that of another library, or has no optimizer; the message shows the
            right one.
        ValueError: a setting is out of range or clashes with one of the base optimizer, which may
            also need a closure; names are missing under `adaptive`; or the variant's settings
            contradict each other.

    Source: see `sam_backward`.
    """

    # GradScaler.step(sam, closure) then sets `grad_scale` and `found_inf` first, so step() can see
    # that it was called through a scaler, and refuse.
    _step_supports_amp_scaling = True
    grad_scale: Tensor
    found_inf: Tensor

    @answering
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
        num_steps: int = 0,
        skip_nonfinite: bool = True,
    ) -> None:
        settings = {"rho": rho, "adaptive": adaptive, "eta": eta}
        check_wrapping(base_optimizer, settings, clip_norm, start, end)
        self.variant, self.memory = variant or SamVariant(), SamMemory(num_steps)
        self.start, self.end = start, end
        self.skip_nonfinite, self._skipped = skip_nonfinite, torch.tensor(0)
        check_variant(self.variant, adaptive, self.memory, base_optimizer)
        if self.variant.norms_only and (model is None or not norm_parameters(model.modules())):
            raise ValueError(
                "norms_only=True must know which layers normalize; give model=, with some that do"
            )
        self.base_optimizer = base_optimizer
        self.shared_ascent, self.clip_norm, self.model = shared_ascent, clip_norm, model
        # Optimizer.__init__ would build groups and state beside those of the base optimizer.
        self.__setstate__({"defaults": base_optimizer.defaults | settings})
        self._adopt(self.param_groups)
        base_optimizer._in_sam = True  # type: ignore[attr-defined]

    param_groups = _of_base("param_groups")
    state = _of_base("state")

    @property
    def skipped(self) -> int:
        """Steps that were not taken, as the gradient was not finite; reads it from the device."""
        return int(self._skipped)

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in _PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._fresh = FreshGradients()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say what replaces the two steps of other libraries."""
            raise AttributeError(missing(type(self).__name__, name))

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.base_optimizer!r}"

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state and groups, and under "sam" what a variant remembers.

        The groups hold rho, adaptive and eta."""
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
        closure: Closure | None = None,
        *,
        scaler: GradScaler | None = None,
        ascent_closure: Closure | None = None,
    ) -> Any:
        """Take one step on the SAM gradient.

        Args:
            closure: computes the loss, calls backward (on the scaled loss if there is a scaler) and
                returns the loss.
            scaler: unscales, clips, and skips the base optimizer's step where it must. Call
                `scaler.update()` yourself.
            ascent_closure: the same for the ascent alone, for instance on a quarter of the
                examples; None uses `closure`.

        Returns:
            The result of the first call of the closure, at the unperturbed weights (variants that
            take one pass: at the perturbed ones). A tensor is detached. None, with a warning, if a
            call skips the batch: it returns None and leaves no gradient. Then no step is taken.

        Raises:
            TypeError: there is no closure.
            ValueError: there is an ascent closure, but the variant needs both gradients of the same
                examples, or takes no gradient for its ascent.
            RuntimeError: the call came through `scaler.step(sam, closure)`; the closure left no
                gradient or added to an older one; accelerate's `accumulate()` is around the call; a
                compiled model has buffers and was not given as `model`. The weights are as before,
                the gradients are cleared.
        """
        if "grad_scale" in self.__dict__:
            del self.grad_scale, self.found_inf
            advice = "call sam.step(closure, scaler=scaler)"
            raise RuntimeError(f"scaler.step(sam, ...) trains on scaled gradients; {advice}")
        if closure is None:
            raise TypeError(
                "SAM.step() needs a closure that runs forward and backward; without one, call "
                "sam_backward"
            )
        if ascent_closure is not None:
            check_own_ascent(self.variant, "ascent_closure")
        refuse_accumulate()
        # Groups may have come through the base optimizer: a plain checkpoint, add_param_group.
        self._adopt([group for group in self.param_groups if not group.keys() >= set(_OWN)])
        try:
            with self.memory.turn(1):
                try:
                    loss = self._backward(closure, ascent_closure or closure, scaler)
                except BaseException:
                    self.zero_grad()
                    raise
                self._apply(scaler)
                if self.memory.difference:
                    self.memory.subtract_(self.base_optimizer, self.variant)
        except Skipped:
            # stacklevel 3 is the caller: torch wraps step() to profile it.
            warnings.warn(
                "the closure returned None and left no gradient, so no step was taken; if no batch "
                "was to be skipped, call backward() and return the loss",
                stacklevel=3,
            )
            return None
        self._fresh.leave(self._params())
        return loss

    def _backward(self, closure: Closure, ascent: Closure, scaler: GradScaler | None) -> Any:
        """Leave the gradient that the base optimizer takes in `.grad`; return the clean loss."""
        step = self.memory.step
        active = step >= self.start and (self.end is None or step < self.end)
        params = self._params()
        passes = ClosurePasses(
            params=params,
            call=partial(self._fresh.run, params),
            closure=closure,
            ascent_closure=ascent,
            scaler=scaler,
            model=self.model,
            shards=shards_of(params.values(), () if self.model is None else self.model.modules()),
            mute=not self.shared_ascent,
            # A shared ascent may lie in DDP's buckets, which the descent writes to.
            copied=self.shared_ascent
            and bool(self.variant.sigma or self.variant.reuse or self.variant.sharp_only),
        )
        climbers = self._climbers() if active else {}
        return sam_gradient(passes, climbers, self.variant, self.memory, self.base_optimizer)

    def _climbers(self) -> dict[str, Climber]:
        """Return the parameters that are perturbed, by their place in the groups."""
        model = self.model if self.variant.norms_only else None
        norms = None if model is None else norm_parameters(model.modules())
        climbers, places = {}, iter(self._params())
        for group in self.param_groups:
            eta = group["eta"] if group["adaptive"] else None
            for param, name in zip(group["params"], self._names(group), strict=True):
                place = next(places)
                if group["rho"] != 0 and (norms is None or param in norms):
                    climbers[place] = Climber(param, group["rho"], asam_offset(name, eta))
        return climbers

    def _apply(self, scaler: GradScaler | None) -> None:
        """Clip, then step the base optimizer, through the scaler if there is one."""
        skips, params, shards = self.skip_nonfinite, self._params(), self.memory.shards
        new = take_step(self.base_optimizer, params, self.clip_norm, scaler, skips, shards)
        self._skipped = self._skipped.to(new.device) + new

    def _params(self) -> dict[str, Tensor]:
        """Return all parameters by their place in the groups, as in the base `state_dict`."""
        params = (param for group in self.param_groups for param in group["params"])
        return {str(place): param for place, param in enumerate(params)}

    def _names(self, group: dict[str, Any]) -> list[str]:
        """Return a name for each parameter of the group, "" where none is known."""
        model = () if self.model is None else self.model.named_parameters()
        known = {id(param): name for name, param in model}
        return group.get("param_names") or [known.get(id(param), "") for param in group["params"]]

    def _adopt(self, groups: list[dict[str, Any]]) -> None:
        """Check the settings of groups, then add our defaults where a group has none."""
        settings = [{key: group.get(key, self.defaults[key]) for key in _OWN} for group in groups]
        for group, setting in zip(groups, settings, strict=True):
            check_settings(setting["rho"], setting["eta"])
            if setting["adaptive"] and not all(self._names(group)):
                raise ValueError(
                    "adaptive=True must tell weights from biases by name; build the base optimizer "
                    "on model.named_parameters(), or pass model="
                )
        for group, setting in zip(groups, settings, strict=True):
            group.update(setting)
