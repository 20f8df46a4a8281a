"""Flatness of a loss around the weights: on average under Gaussian noise, and at its worst within SAM's ball.

Weights are the parameters that require a gradient. A loss maps (model, batch) to its mean over the batch; losses of
batches are averaged with weight B, the number of examples. Models are lent in eval mode and come back as they were.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

LossFn = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Estimate:
    """A mean over draws of weight noise."""

    value: float
    """Mean of the loss over the draws; inf or nan if the loss of a draw is."""
    stderr: float | None
    """Standard error of `value` over the draws, and of `increase`; None for a single draw or a value not finite."""
    n: int
    """Number of draws."""
    clean: float
    """Loss without noise."""
    draws: tuple[float, ...]
    """Loss of each draw; the mean of its two under `antithetic`."""

    @property
    def increase(self) -> float:
        """How much the noise costs on average, `value - clean`."""
        return self.value - self.clean


@dataclass(frozen=True)
class Sharpness:
    """The highest loss found nearby, less the loss at the weights."""

    value: float
    """`loss_perturbed - loss_clean`; inf or nan if the ascent ran into such a loss."""
    stderr: float | None
    """Standard error of `value` over batches, each weighted by its examples, the perturbation taken as given; None for
    a single batch or a value not finite."""
    n: int
    """Number of batches."""
    loss_clean: float
    loss_perturbed: float
    num_gradients: int
    """Gradients of the loss of a batch that were taken."""
    values: tuple[float, ...]
    """Increase of the loss of each batch."""


def mean_loss(model: nn.Module, loss: LossFn, batches: Iterable[Any]) -> float:
    """Mean loss over all examples, summed in float64; one forward pass over the batches.

    Args:
        model: any; lent in eval mode.
        loss: mean loss [] of a batch. Global random numbers it draws are the same in every pass over the batches.
        batches: can be iterated over again and again in one order. A batch has a length, or is a tuple, list or mapping
            whose first tensor has its examples along dim 0.

    Raises:
        ValueError: no batches, a loss that is not a scalar or not finite, a batch of unknown size.
        TypeError: batches is an iterator."""
    with borrowed(model):
        return _finite(_losses(model, loss, batches)).mean


def average_flatness(
    model: nn.Module,
    loss: LossFn,
    batches: Iterable[Any],
    *,
    sigma: float,
    num_draws: int,
    scaling: Literal["isotropic", "filter"] = "isotropic",
    antithetic: bool = False,
    generator: Generator,
) -> Estimate:
    """E L(w + e) over Gaussian noise e on the weights; 1 + num_draws forward passes over the batches, one weight copy.

    `isotropic`: e ~ N(0, sigma^2) in every weight. `filter`: a tensor of two or more dimensions is cut along dim 0 into
    filters f of d weights each, and e ~ N(0, sigma^2 |f|^2 / d), so that the noise on a filter has sigma times its norm
    (root mean square); tensors of fewer dimensions, which are biases and scales of norms, get none. Position embeddings
    and class tokens [1, ...] are one filter.

    Args:
        model, loss, batches: as in `mean_loss`.
        sigma: >= 0, in units of the weights, or of their filters' root mean square.
        num_draws: >= 1.
        scaling: what sigma is relative to.
        antithetic: a draw is the mean over e and -e, at twice the cost; odd terms of the loss then cancel.
        generator: on the CPU; the only source of the noise, drawn in float32, parameter by parameter.

    Raises:
        ValueError: a setting out of range, nothing to perturb, or as `mean_loss` (but for the loss of a draw).

    Source: L^N of Chen et al., arXiv:2106.01548v3; the filters of Li et al., arXiv:1712.09913."""
    _check_radius("sigma", sigma)
    _check_count("num_draws", num_draws)
    if scaling not in _SCALINGS:
        raise ValueError(f"unknown scaling {scaling!r}; pick one of {', '.join(_SCALINGS)}")
    with _movable(model) as weights:
        if scaling == "filter" and all(w.ndim < 2 for w in weights.clean):
            raise ValueError("no weights of two or more dimensions, so no filters; use scaling='isotropic'")
        clean = _finite(_losses(model, loss, batches)).mean
        draws = []
        for _ in range(num_draws):
            state, both = generator.get_state(), []
            for signed in (sigma, -sigma) if antithetic else (sigma,):
                generator.set_state(state)
                weights.shift(_noise(weights.clean, signed, _SCALINGS[scaling], generator))
                both.append(_losses(model, loss, batches).mean)
            draws.append(sum(both) / len(both))
    value = sum(draws) / num_draws
    return Estimate(value, _stderr(draws, [1] * num_draws), num_draws, clean, tuple(draws))


def sam_sharpness(
    model: nn.Module,
    loss: LossFn,
    batches: Iterable[Any],
    *,
    rho: float,
    num_steps: int = 1,
    step_size: float | None = None,
    adaptive: bool = False,
    eta: float = 0.01,
    restarts: int = 0,
    per_batch: bool = False,
    generator: Generator | None = None,
) -> Sharpness:
    """max L(w + e) - L(w) over |e| <= rho, from below, by gradient ascent.

    One step goes to SAM's own point, e = rho g / |g|, and nowhere if g = 0; its value may be negative. More steps go on
    from there by `step_size` along the normalized gradient, back onto the ball where they leave it; the value is then
    the highest loss met, that at w included, so it never falls with the number of steps. A loss that is not finite ends
    an ascent and is its value. Where rho is small, rounding of the losses, some 1e-7 of them in float32, remains.

    Cost: num_steps * (1 + restarts) gradients and 1 + restarts forward passes over the batches. Memory: five times the
    weights, beside what the loss takes.

    Args:
        model, loss, batches: as in `mean_loss`.
        rho: radius >= 0 in the norm of all weights together.
        num_steps: gradients of an ascent, >= 1.
        step_size: length > 0 of the steps after the first; None is rho, which acts like power iteration.
        adaptive: ASAM's ellipsoid |e / T| <= rho, where T = |w| + eta for weights and 1 for the rest. Weights are the
            parameters with "weight" in their names, those of norm layers included, biases not.
        eta: ASAM's offset, > 0.
        restarts: further ascents, each from a random point of the sphere.
        per_batch: m-sharpness, what SAM minimizes: each batch has its own e; the mean over batches of their sharpness.
        generator: on the CPU; the source of restarts.

    Raises:
        ValueError: a setting out of range, restarts without a generator, a gradient at w that is not finite, a loss
            that does not depend on the weights, or as `mean_loss` (but for losses away from w).

    Source: Foret et al., arXiv:2010.01412; Kwon et al., arXiv:2102.11600."""
    _check_radius("rho", rho)
    _check_count("num_steps", num_steps)
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"step_size={step_size} is not positive and finite; pick step_size > 0, or None for rho")
    if not 0 < eta < math.inf:
        raise ValueError(f"eta={eta} is not positive and finite; pick eta > 0 (ASAM's authors use 0.01)")
    if restarts < 0 or (restarts and generator is None):
        raise ValueError(f"restarts={restarts}; pick restarts >= 0, and for restarts > 0 give a generator")
    groups = ([batch] for batch in _checked(batches)) if per_batch else [batches]
    clean, highest, num_gradients = _Losses([], []), _Losses([], []), 0
    with _movable(model) as weights:
        ball = _Ball(weights, rho, rho if step_size is None else step_size, eta if adaptive else None)
        for group in groups:
            search = _Search(model, loss, group, ball)
            best = search.highest(num_steps, restarts, generator)
            clean, highest = clean + search.clean, highest + best
            num_gradients += search.num_gradients
    if not clean.sizes:
        raise ValueError(_EMPTY)
    values = [after - before for before, after in zip(clean.values, highest.values, strict=True)]
    stderr = _stderr(values, clean.sizes)
    value = highest.mean - clean.mean
    return Sharpness(value, stderr, len(values), clean.mean, highest.mean, num_gradients, tuple(values))


# --- losses ----------------------------------------------------------------------------------------------------------

_EMPTY = "batches is empty; give at least one batch"


class _Losses:
    """Losses of batches, in order, with the numbers of their examples."""

    def __init__(self, values: list[float], sizes: list[int]) -> None:
        self.values, self.sizes = values, sizes

    def __add__(self, other: _Losses) -> _Losses:
        return _Losses(self.values + other.values, self.sizes + other.sizes)

    @property
    def mean(self) -> float:
        return sum(value * size for value, size in zip(self.values, self.sizes, strict=True)) / sum(self.sizes)


def _losses(model: nn.Module, loss: LossFn, batches: Iterable[Any]) -> _Losses:
    return _losses_and_gradient(model, loss, batches, ())[0]


def _losses_and_gradient(
    model: nn.Module, loss: LossFn, batches: Iterable[Any], params: Sequence[Tensor]
) -> tuple[_Losses, list[Tensor]]:
    """Loss of each batch, and the gradient of their weighted mean for params, in at least float32."""
    values, sizes = [], []
    sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in params]
    # the same random numbers in every pass, else the noise of the loss would count as sharpness. Not inference mode:
    # what a model caches in it (rotary tables) could not be trained on afterwards
    with _rng_kept(), torch.set_grad_enabled(bool(params)):
        for batch in _checked(batches):
            value = loss(model, batch)
            if not isinstance(value, Tensor) or value.ndim:
                got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"the loss of a batch is of {got}; return its mean over the batch, a tensor of shape []"
                )
            size = num_examples(batch)
            values.append(float(value.detach()))
            sizes.append(size)
            if params and not value.requires_grad:
                raise ValueError("the loss does not depend on the weights; does the model run under no_grad?")
            grads = torch.autograd.grad(value, params, allow_unused=True) if params else ()
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total.add_(grad, alpha=size)
    if not sizes:
        raise ValueError(_EMPTY)
    for total in sums:
        total /= sum(sizes)
    return _Losses(values, sizes), sums


def num_examples(batch: Any) -> int:
    """Number of examples of a batch: its length, or of a tuple, list or mapping, that of its first tensor.

    Raises:
        ValueError: it has neither, or no examples."""
    parts: Any = list(batch.values()) if isinstance(batch, Mapping) else batch
    if isinstance(parts, tuple | list):
        parts = next((part for part in parts if isinstance(part, Tensor) and part.ndim), None)
    if not isinstance(parts, Sized):
        raise ValueError(f"a batch of type {type(batch).__name__} has neither a length nor a tensor of examples in it")
    if not len(parts):
        raise ValueError("a batch has no examples; leave it out")
    return len(parts)


def _checked(batches: Iterable[Any]) -> Iterable[Any]:
    if iter(batches) is batches:
        raise TypeError("batches is an iterator, which gives its batches once; give a list or a DataLoader")
    return batches


def _finite(losses: _Losses) -> _Losses:
    for i, value in enumerate(losses.values):
        if not math.isfinite(value):
            raise ValueError(f"the loss of batch {i} is {value} at the weights as given; check weights and data")
    return losses


def _stderr(values: Sequence[float], sizes: Sequence[int]) -> float | None:
    """Standard error of the weighted mean; that of the plain mean for equal sizes."""
    n, total = len(values), sum(sizes)
    if n < 2 or not all(math.isfinite(value) for value in values):
        return None
    mean = sum(v * s for v, s in zip(values, sizes, strict=True)) / total
    return math.sqrt(n / (n - 1) * sum((s / total * (v - mean)) ** 2 for v, s in zip(values, sizes, strict=True)))


# --- noise -----------------------------------------------------------------------------------------------------------


def _noise(
    clean: Sequence[Tensor], sigma: float, scale: Callable[[Tensor], Tensor | float], generator: Generator
) -> Iterator[Tensor]:
    """Noise for one tensor at a time, so that a model never has a second copy in noise."""
    for w in clean:
        z = torch.randn(w.shape, generator=generator, dtype=torch.float32).to(w.device)
        yield sigma * scale(w) * z


def _filter_rms(w: Tensor) -> Tensor | float:
    """Root mean square of each slice along dim 0, [F, 1, ...]; 0 for tensors of one dimension."""
    if w.ndim < 2:
        return 0.0
    rows = w.flatten(1).to(torch.promote_types(w.dtype, torch.float32))
    return rows.square().mean(1).sqrt().view(-1, *[1] * (w.ndim - 1))


_SCALINGS: dict[str, Callable[[Tensor], Tensor | float]] = {"isotropic": lambda w: 1.0, "filter": _filter_rms}


# --- ascent ----------------------------------------------------------------------------------------------------------


class _Ball(NamedTuple):
    """Weights w + T u with |u| <= rho; T is 1 if eta is None."""

    weights: _Weights
    rho: float
    step_size: float
    eta: float | None

    def times_t(self, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        for name, w, x in zip(self.weights.names, self.weights.clean, tensors, strict=True):
            # the rule of ASAM's authors, as in samovar.sam
            is_weight = "weight" in name and "bias" not in name.rpartition(".")[2]
            yield x if self.eta is None or not is_weight else x * (w.abs() + self.eta)

    def step(self, u: list[Tensor] | None, grads: list[Tensor]) -> list[Tensor] | None:
        """The next u after a gradient at u, where None is the centre; None if there is nowhere to go."""
        direction = list(self.times_t(grads))
        norm = _norm(direction)
        if not norm or not math.isfinite(norm):
            return None
        torch._foreach_mul_(direction, (self.rho if u is None else self.step_size) / norm)
        if u is not None:
            torch._foreach_add_(direction, u)
            if (norm := _norm(direction)) > self.rho:
                torch._foreach_mul_(direction, self.rho / norm)
        return direction

    def random(self, generator: Generator) -> list[Tensor]:
        """A random u of length rho."""
        u = list(_noise(self.weights.clean, 1.0, _SCALINGS["isotropic"], generator))
        torch._foreach_mul_(u, self.rho / _norm(u))
        return u


class _Search:
    """Ascents of the mean loss over some batches, within a ball."""

    def __init__(self, model: nn.Module, loss: LossFn, batches: Iterable[Any], ball: _Ball) -> None:
        self.model, self.loss, self.batches, self.ball = model, loss, batches, ball
        self.num_gradients = 0

    def highest(self, num_steps: int, restarts: int, generator: Generator | None) -> _Losses:
        """The losses whose mean is highest; leaves those at the centre as `clean`."""
        self.clean, grads = self.look(None, gradient=True)
        _finite(self.clean)
        if not math.isfinite(_norm(grads)):
            raise ValueError("the gradient at the weights as given is not finite; check weights and data")
        found = list(self.climb(None, grads, num_steps))
        del grads
        for _ in range(restarts):
            assert generator is not None
            u = self.ball.random(generator)
            losses, grads = self.look(u, gradient=True)
            found += [losses, *self.climb(u, grads, num_steps)]
        if num_steps > 1 or restarts or not found:
            found.append(self.clean)
        return max(found, key=lambda losses: (not math.isfinite(losses.mean), losses.mean))

    def climb(self, u: list[Tensor] | None, grads: list[Tensor], num_steps: int) -> Iterator[_Losses]:
        """Losses at each point of an ascent from u, where the gradient is known."""
        for left in reversed(range(num_steps)):
            u = self.ball.step(u, grads)
            if u is None:
                return
            losses, grads = self.look(u, gradient=left > 0)
            yield losses
            if not math.isfinite(losses.mean):
                return

    def look(self, u: list[Tensor] | None, *, gradient: bool) -> tuple[_Losses, list[Tensor]]:
        """Losses, and the gradient if asked for, at w + T u."""
        weights = self.ball.weights
        weights.shift(self.ball.times_t(u) if u is not None else None)
        losses, grads = _losses_and_gradient(self.model, self.loss, self.batches, weights.params if gradient else ())
        self.num_gradients += len(losses.sizes) * gradient
        return losses, grads


def _norm(tensors: list[Tensor]) -> float:
    return math.hypot(*(float(norm) for norm in torch._foreach_norm(tensors)))


# --- lending ---------------------------------------------------------------------------------------------------------


class _Weights(NamedTuple):
    """The weights of a model, with a copy of what they were."""

    names: list[str]
    params: list[nn.Parameter]
    clean: list[Tensor]

    @torch.no_grad()
    def shift(self, steps: Iterable[Tensor] | None) -> None:
        """Set the weights to the copy plus steps, or to the copy itself, in place."""
        for param, w in zip(self.params, self.clean, strict=True):
            param.copy_(w)
        for param, w, step in zip(self.params, self.clean, steps, strict=True) if steps else ():
            param.copy_(w + step)
        torch.clear_autocast_cache()  # an outer autocast would go on with its 16-bit copies of the weights before


@contextmanager
def _movable(model: nn.Module) -> Iterator[_Weights]:
    """Inside, the weights can be shifted; outside, they are as before to the bit, in the same storage."""
    with borrowed(model):
        named = {name: param for name, param in model.named_parameters() if param.requires_grad}
        if not named:
            raise ValueError("no parameter of the model requires a gradient; unfreeze some (requires_grad_)")
        # a copy, for (w + e) - e restores only 99.6 % of float32 weights exactly
        weights = _Weights(list(named), list(named.values()), [p.detach().clone() for p in named.values()])
        try:
            yield weights
        finally:
            weights.shift(None)


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; outside, modes, `.grad`, requires_grad, buffers and global random states are as before."""
    modes = [(module, module.training) for module in model.modules()]
    params = [(param, param.grad, param.requires_grad) for param in model.parameters()]
    buffers = [(m._buffers, k, b, b.clone()) for m in model.modules() for k, b in m._buffers.items() if b is not None]
    with _rng_kept(), torch.inference_mode(False):
        try:
            model.eval()
            for param in model.parameters():
                param.grad = None
            yield
        finally:
            for module, training in modes:
                module.training = training
            for param, grad, requires_grad in params:
                param.requires_grad_(requires_grad)
                param.grad = grad
            with torch.no_grad():
                for owner, name, buffer, copy in buffers:
                    owner[name] = buffer.copy_(copy)


@contextmanager
def _rng_kept() -> Iterator[None]:
    """Global random states come out as they went in."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy:
                numpy.random.set_state(numpy_state)


def _check_radius(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value} is negative or not finite; pick {name} >= 0")


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value}; pick {name} >= 1")
