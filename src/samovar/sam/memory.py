"""What a relative of SAM keeps from step to step, and from group to group within a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from samovar.sam.combine import across, mixed, norm
from samovar.sam.variant import SamVariant

Named = Mapping[str, Tensor]
Average = Callable[[Sequence[Tensor | None], Sequence[Tensor]], list[Tensor | None]]
"""Averages tensors over ranks, given the parameters that they belong to."""


class SamMemory:
    """The number of steps done, and vectors of the size of the weights.

    The vectors come from the whole batch, so they are equal on all ranks. F-SAM keeps an average of
    the gradients, LookSAM the direction that the plain steps in between reuse, decoupled WSAM a
    difference from a step's backward passes until its end. Use one object for one model and one
    variant."""

    def __init__(self) -> None:
        self.step = 0
        """Steps done, including those without a climb. Set it if steps were taken without this
        object."""
        self.average: dict[str, Tensor] = {}
        self.component: dict[str, Tensor] = {}
        self.difference: list[tuple[Tensor, Tensor]] = []
        self._turn = 0
        self._sums: dict[str, dict[str, Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and tensors for a checkpoint; call it between steps."""
        return {"step": self.step, "average": dict(self.average), "component": dict(self.component)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict()` returned."""
        self.step = int(state_dict["step"])
        self.average, self.component = dict(state_dict["average"]), dict(state_dict["component"])
        self.difference, self._turn, self._sums = [], 0, {}

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

    def mean(self, kind: str, params: Named, average: Average) -> dict[str, Tensor]:
        """Return the step's sum of one kind, averaged over ranks."""
        sums = self._sums.get(kind, {})
        means = average([sums.get(name) for name in params], list(params.values()))
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
        finite = torch.isfinite(norm(list(grads.values())))
        averages = {name: self._here(self.average, name, grad) for name, grad in grads.items()}
        # The average is zero as long as no gradient was finite.
        none_yet = norm(list(averages.values())) == 0
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

    # --- LookSAM

    @torch.no_grad()
    def keep_component(self, clean: dict[str, Tensor], robust: dict[str, Tensor]) -> None:
        """Keep the components of g_s orthogonal to g if they are finite."""
        names = list(clean | robust)
        found = across([clean.get(name) for name in names], [robust.get(name) for name in names])
        finite = torch.isfinite(norm(found))
        for name, new in zip(names, found, strict=True):
            if new is not None:
                before = self._here(self.component, name, new)
                self.component[name] = torch.where(
                    finite, new, torch.zeros_like(new) if before is None else before
                )

    @torch.no_grad()
    def reuse_(self, params: Named, share: float) -> None:
        """Add to each `.grad` its kept component, `share` times as long as the gradient."""
        for name, param in params.items():
            component = self._here(self.component, name, param.grad)
            if component is not None and param.grad is not None:
                param.grad = param.grad.to_dense()
                param.grad += component * (share * norm([param.grad])).to(component)

    # --- decoupled WSAM

    @torch.no_grad()
    def subtract_(self, optimizer: Optimizer, variant: SamVariant) -> None:
        """Subtract lr gamma / (1 - gamma) (g_s - g) from the weights if that is finite.

        Call it after the optimizer's step."""
        lrs = {
            id(param): group["lr"] for group in optimizer.param_groups for param in group["params"]
        }
        finite = torch.isfinite(norm([each for _, each in self.difference]))
        for param, difference in self.difference:
            step = difference * (lrs.get(id(param), 0.0) * variant.weight)
            param -= torch.where(finite, step, torch.zeros_like(step)).to(param)
        self.difference = []

    @staticmethod
    def _here(kept: dict[str, Tensor], name: str, like: Tensor | None) -> Tensor | None:
        """Return a kept vector on the device of `like`; a loaded one may be elsewhere."""
        found = kept.get(name)
        if found is not None and like is not None and found.device != like.device:
            found = kept[name] = found.to(like.device)
        return found
