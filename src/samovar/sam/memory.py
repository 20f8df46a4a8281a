"""What a relative of SAM keeps from step to step, and from group to group within a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from samovar.sam.combine import across, mixed, norm
from samovar.sam.shards import WHOLE, Shards, gradient, is_sharded, local, part_as, spread_as
from samovar.sam.variant import SamVariant

Named = Mapping[str, Tensor]
Average = Callable[[Sequence[Tensor | None], Sequence[Tensor]], list[Tensor | None]]
"""Averages tensors over ranks, given the parameters that they belong to."""


_NEWER = ("previous", "squares", "sharpness")
"""What the state holds only if there is some."""


class SamMemory:
    """The number of steps done, and vectors of the size of the weights.

    The vectors come from the whole batch, so they are equal on all ranks. F-SAM keeps an average of
    the gradients, LookSAM the direction that the plain steps in between reuse, decoupled WSAM a
    difference from a step's backward passes until its end, stale ascent the gradient of the step
    before, ARWP a mean of squared gradients, AE-SAM two numbers. Use one object for one model and
    one variant.

    Args:
        num_steps: steps of the run, which AE-SAM's moving threshold needs; 0 if unknown."""

    def __init__(self, num_steps: int = 0) -> None:
        self.num_steps = num_steps
        self.step = 0
        """Steps done, including those without a climb. Set it if steps were taken without this
        object."""
        self.average: dict[str, Tensor] = {}
        self.component: dict[str, Tensor] = {}
        self.previous: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.sharpness: dict[str, Tensor] = {}
        """AE-SAM's `mean` and `variance` [] of |g|^2, and `climbs` [], the groups of this rank that
        have climbed; empty before its first step."""
        self.difference: list[tuple[Tensor, Tensor]] = []
        self.shards = WHOLE
        self._params: Named = {}
        self._turn = 0
        self._sums: dict[str, dict[str, Tensor]] = {}

    def attach(self, params: Named, shards: Shards) -> None:
        """Say whose vectors are kept; of what was loaded whole, keep this rank's part.

        Args:
            params: the trainable parameters, by name.
            shards: how they are split over ranks."""
        if shards is WHOLE or shards == self.shards:
            return
        self.shards, self._params = shards, params
        for kept in (self.average, self.component, self.previous, self.squares):
            for name in kept.keys() & params.keys():
                kept[name] = part_as(params[name], kept[name])

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and tensors for a checkpoint; call it between steps.

        Vectors of sharded parameters are sharded as they are."""
        average, component = self._spread(self.average), self._spread(self.component)
        kept = {"step": self.step, "average": average, "component": component}
        newer = {name: self._spread(getattr(self, name)) for name in _NEWER}
        # left out while empty, so that what the others keep stays as it was
        return kept | {name: each for name, each in newer.items() if each}

    @property
    def holds(self) -> bool:
        """Return whether there is more to keep than the number of steps."""
        return any((self.average, self.component, *(getattr(self, name) for name in _NEWER)))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict()` returned, of sharded parameters or of whole ones."""
        self.step = int(state_dict["step"])
        self.average, self.component = dict(state_dict["average"]), dict(state_dict["component"])
        for name in _NEWER:
            setattr(self, name, dict(state_dict.get(name, {})))
        self.difference, self._turn, self._sums = [], 0, {}
        # the next step takes this rank's parts of what is here now
        self.shards, self._params = WHOLE, {}

    def _spread(self, kept: Named) -> dict[str, Tensor]:
        params = self._params
        return {n: spread_as(params[n], each) if n in params else each for n, each in kept.items()}

    @contextmanager
    def turn(self, num_groups: int) -> Iterator[bool]:
        """Enclose the passes of one group; yield whether it is the last of the step.

        An error ends the step.

        Raises:
            ValueError: `num_groups` is not positive."""
        if num_groups < 1:
            raise ValueError(
                f"num_groups={num_groups} is not positive; give the number of groups in a step"
            )
        if self._turn == 0:
            self._sums, self.difference = {}, []
        last = self._turn + 1 >= num_groups
        try:
            yield last
        except BaseException:
            self._turn, self._sums = 0, {}
            raise
        self._turn = 0 if last else self._turn + 1
        if last:
            self._sums = {}
            self.step += 1

    def sum_up(self, kind: str, grads: Mapping[str, Tensor | None]) -> None:
        """Add a group's gradients to the step's sum of that kind."""
        sums = self._sums.setdefault(kind, {})
        for name, grad in grads.items():
            if grad is not None:
                sums[name] = sums[name] + grad if name in sums else grad.detach().to_dense()

    def sums(self, kind: str) -> dict[str, Tensor]:
        """Return the step's sum of one kind on this rank."""
        return self._sums.get(kind, {})

    def mean(self, kind: str, params: Named, average: Average) -> dict[str, Tensor]:
        """Return the step's sum of one kind, averaged over ranks."""
        sums = self._sums.get(kind, {})
        parts = [local(param) for param in params.values()]
        means = average([sums.get(name) for name in params], parts)
        return {name: mean for name, mean in zip(params, means, strict=True) if mean is not None}

    # --- F-SAM

    @torch.no_grad()
    def friendly(
        self, grads: dict[str, Tensor | None], sigma: float, scale: Tensor
    ) -> dict[str, Tensor | None]:
        """Return the gradients minus sigma times their average; unchanged before there is one.

        Args:
            grads: gradients by parameter name; None stays None.
            sigma: share of the average to subtract.
            scale: factor [] of the gradients, which the average does not have."""
        averages = [
            None if grad is None else self._here(self.average, name, grad)
            for name, grad in grads.items()
        ]
        scaled = [None if each is None else each * scale.to(each) for each in averages]
        dense = [None if grad is None else grad.to_dense() for grad in grads.values()]
        return dict(zip(grads, mixed(1.0, dense, -sigma, scaled), strict=True))

    @torch.no_grad()
    def average_in(self, grads: dict[str, Tensor], decay: float) -> None:
        """Update the average with the step's gradient if it is finite; start it with the first."""
        finite = torch.isfinite(norm(list(grads.values()), self.shards))
        averages = {name: self._here(self.average, name, grad) for name, grad in grads.items()}
        # The average is zero as long as no gradient was finite.
        none_yet = norm(list(averages.values()), self.shards) == 0
        for name, grad in grads.items():
            precise = grad.to(torch.promote_types(grad.dtype, torch.float32))
            before = averages[name]
            new = (
                precise
                if before is None
                else torch.where(none_yet, precise, before.lerp(precise, 1 - decay))
            )
            self.average[name] = torch.where(
                finite, new, torch.zeros_like(new) if before is None else before
            )

    # --- stale ascent and ARWP, which keep something of the gradient that a step leaves in `.grad`

    @torch.no_grad()
    def keep_applied(self, variant: SamVariant, params: Named, factor: Tensor) -> None:
        """Keep the step's gradient or the mean of its squares, if the gradient is finite.

        Args:
            variant: says which.
            params: their `.grad` is that of the whole step.
            factor: [], undoes the scale of the gradients."""
        found = {name: gradient(param) for name, param in params.items()}
        grads = {name: grad for name, grad in found.items() if grad is not None}
        finite = torch.isfinite(norm(list(grads.values()), self.shards))
        for name, grad in grads.items():
            precise = grad.to(torch.promote_types(grad.dtype, torch.float32))
            unscaled = precise * factor.to(precise)
            if variant.stale:
                before = self._here(self.previous, name, grad)
                before = torch.zeros_like(unscaled) if before is None else before
                self.previous[name] = torch.where(finite, unscaled, before)
            else:
                before = self._here(self.squares, name, grad)
                before = torch.zeros_like(unscaled) if before is None else before
                mean = before.lerp(unscaled.square(), 1 - variant.noise_decay)
                self.squares[name] = torch.where(finite, mean, before)

    def here(self, kept: dict[str, Tensor], params: Named) -> dict[str, Tensor]:
        """Return kept vectors on the devices of their parameters."""
        found = {name: self._here(kept, name, param) for name, param in params.items()}
        return {name: each for name, each in found.items() if each is not None}

    # --- AE-SAM

    @torch.no_grad()
    def is_sharp(self, variant: SamVariant, squared: Tensor) -> Tensor:
        """Return whether a group climbs [], bool: its |g|^2 is at least mean + c x deviation.

        Mean and variance are those after this group alone."""
        mean, variance = self._sharpness(variant, squared)
        share = self.step / self.num_steps if self.num_steps else 0.0
        c = variant.c_first + (variant.c_last - variant.c_first) * min(1.0, share)
        sharp = squared >= mean + c * variance.sqrt()
        count = self._here(self.sharpness, "climbs", squared)
        self.sharpness["climbs"] = sharp.to(squared) if count is None else count + sharp.to(count)
        return sharp

    @torch.no_grad()
    def average_in_sharpness(self, variant: SamVariant, squared: Tensor) -> None:
        """Update mean and variance of |g|^2 by that of a step, if it is finite."""
        finite = torch.isfinite(squared)
        new = self._sharpness(variant, squared)
        for name, value in zip(("mean", "variance"), new, strict=True):
            before = self.sharpness.get(name, torch.zeros_like(value))
            self.sharpness[name] = torch.where(finite, value, before)

    def _sharpness(self, variant: SamVariant, squared: Tensor) -> tuple[Tensor, Tensor]:
        zero, weight = torch.zeros_like(squared), 1 - variant.c_decay
        before = [self._here(self.sharpness, name, squared) for name in ("mean", "variance")]
        mean, variance = (zero if each is None else each for each in before)
        mean = mean.lerp(squared, weight)
        return mean, variance.lerp((squared - mean).square(), weight)

    # --- LookSAM

    @torch.no_grad()
    def keep_component(self, clean: dict[str, Tensor], robust: dict[str, Tensor]) -> None:
        """Keep the components of g_s orthogonal to g if they are finite."""
        names = list(clean | robust)
        found = across(
            [clean.get(name) for name in names], [robust.get(name) for name in names], self.shards
        )
        finite = torch.isfinite(norm(found, self.shards))
        for name, new in zip(names, found, strict=True):
            if new is not None:
                before = self._here(self.component, name, new)
                self.component[name] = torch.where(
                    finite, new, torch.zeros_like(new) if before is None else before
                )

    @torch.no_grad()
    def reuse_(self, params: Named, share: float) -> None:
        """Add to each `.grad` its kept component, `share` times as long as the gradient."""
        used = {
            name: param
            for name, param in params.items()
            if param.grad is not None and self._here(self.component, name, param.grad) is not None
        }
        for param in used.values():
            if not is_sharded(param) and param.grad is not None:
                param.grad = param.grad.to_dense()
        grads = [gradient(param) for param in used.values()]
        lengths = self.shards.lengths([norm([grad]) for grad in grads])
        for name, grad, length in zip(used, grads, lengths, strict=True):
            if grad is not None:
                grad += self.component[name] * (share * length).to(self.component[name])

    # --- decoupled WSAM

    @torch.no_grad()
    def subtract_(self, optimizer: Optimizer, variant: SamVariant) -> None:
        """Subtract lr gamma / (1 - gamma) (g_s - g) from the weights if that is finite.

        Call it after the optimizer's step."""
        lrs = {
            id(param): group["lr"] for group in optimizer.param_groups for param in group["params"]
        }
        finite = torch.isfinite(norm([each for _, each in self.difference], self.shards))
        for param, difference in self.difference:
            step = difference * (lrs.get(id(param), 0.0) * variant.weight)
            mine = local(param)
            mine -= torch.where(finite, step, torch.zeros_like(step)).to(mine)
        self.difference = []

    @staticmethod
    def _here(kept: dict[str, Tensor], name: str, like: Tensor | None) -> Tensor | None:
        """Return a kept vector on the device of `like`; a loaded one may be elsewhere."""
        found = kept.get(name)
        if found is not None and like is not None and found.device != like.device:
            found = kept[name] = found.to(like.device)
        return found
