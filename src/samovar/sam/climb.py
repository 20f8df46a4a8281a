"""Move the weights to the top of a climb, and back bit for bit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from samovar.sam.directions import Leaf
from samovar.sam.shards import WHOLE, Shards

# Parameters per foreach call: few kernel launches, yet temporaries much smaller than the weights.
CHUNK = 16
CHUNK_ON_CPU = 1  # launches cost nothing there, and the temporaries should stay in the cache


@contextmanager
def perturbed(
    leaves: list[Leaf],
    again: Iterable[Callable[[], list[Leaf]]] = (),
    move: Callable[[list[Leaf]], None] | None = None,
    shards: Shards = WHOLE,
) -> Iterator[None]:
    """Move the weights to the top of the climb inside; restore them bit for bit on exit.

    Args:
        leaves: the first step of the climb; the list is emptied.
        again: each call returns one further step, taken at the weights then. Parameters that are
            not in the first step do not move.
        move: makes a step; None is `climb_`.
        shards: how the weights are split over ranks."""
    move = move or partial(climb_, shards=shards)
    params = [leaf.param for leaf in leaves]
    # Copies, because (w + e) - e restores only 99.6 % of float32 weights exactly.
    copies = [param.detach().clone() for param in params]
    moved = set(map(id, params))
    try:
        move(leaves)
        leaves.clear()  # frees the ascent gradient before the descent needs the memory
        shards.reshard()
        # An outer autocast would otherwise go on with its 16-bit copies of the clean weights.
        torch.clear_autocast_cache()
        for more in again:
            move([leaf for leaf in more() if id(leaf.param) in moved])
            shards.reshard()
            torch.clear_autocast_cache()
        yield
    finally:
        if params:
            with torch.no_grad():
                torch._foreach_copy_(params, copies)
        shards.reshard()
        torch.clear_autocast_cache()


@torch.no_grad()
def add_(leaves: list[Leaf]) -> None:
    """Add e = rho g to the weights in place, whatever the length of g."""
    for params, grads, rho, _ in _chunks(leaves):
        torch._foreach_add_(params, torch._foreach_mul(grads, rho))


@torch.no_grad()
def climb_(leaves: list[Leaf], where: Tensor | None = None, shards: Shards = WHOLE) -> None:
    """Add e = rho T^2 g / |T g| to the weights in place; T is 1, or ASAM's |w| + eta.

    Nothing moves if |T g| is zero or not finite, or where `where` [], bool, is false. The host does
    not wait for the device."""
    if not leaves:
        return
    norms = [
        n
        for params, grads, _, eta in _chunks(leaves)
        for n in torch._foreach_norm(_times_t(params, grads, eta))
    ]
    here = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    length = shards.lengths([here])[0]
    if where is not None:
        length = torch.where(where, length, torch.inf)
    for params, grads, rho, eta in _chunks(leaves):
        t_squared_g = _times_t(params, _times_t(params, grads, eta), eta)
        steps = torch._foreach_mul(t_squared_g, (rho / length).to(grads[0]))
        for step in steps:
            # An unusable norm made every step 0, nan (0 * inf among them) or infinite.
            step.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        torch._foreach_add_(params, steps)


def _chunks(leaves: list[Leaf]) -> Iterator[tuple[list[Tensor], list[Tensor], float, float | None]]:
    """Yield (params, gradients in at least float32, rho, eta) of a few leaves at a time.

    All leaves of a chunk have the same device, types, rho and eta."""
    alike = defaultdict(list)
    for leaf in leaves:
        alike[leaf.param.device, leaf.param.dtype, leaf.grad.dtype, leaf.rho, leaf.eta].append(leaf)
    for (device, _, dtype, rho, eta), members in alike.items():
        precise = torch.promote_types(dtype, torch.float32)
        size = CHUNK_ON_CPU if device.type == "cpu" else CHUNK
        for start in range(0, len(members), size):
            chunk = members[start : start + size]
            params = [leaf.param for leaf in chunk]
            yield params, [leaf.grad.to(precise) for leaf in chunk], rho, eta


def _times_t(params: list[Tensor], grads: list[Tensor], eta: float | None) -> list[Tensor]:
    """Return T g, with T = |w| + eta, or T = 1 if eta is None.

    `grads` is never written to: autograd may give one tensor to two leaves."""
    if eta is None:
        return grads
    weights = [param.to(grad.dtype) for param, grad in zip(params, grads, strict=True)]
    t = torch._foreach_abs(weights)
    torch._foreach_add_(t, eta)
    torch._foreach_mul_(t, grads)
    return list(t)
