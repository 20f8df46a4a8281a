"""The condition number of the empirical neural tangent kernel, averaged over batches of images.

Source: appendix D of Chen et al., arXiv:2106.01548.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Generator, Tensor, nn

from samovar.anymodel.devices import to_float64_device
from samovar.config import MeasureConfig
from samovar.measure.jacobian import Output
from samovar.measure.ntk_kernel import MIB, ntk
from samovar.measure.ntk_protocol import gelu_as_relu, head_layers, random_head
from samovar.runs.records import Record

if TYPE_CHECKING:  # a run's data and models are not needed to call the functions here
    from samovar.measure.subject import Subject


@dataclass(frozen=True)
class ConditionNumber:
    """The condition number of a kernel, and the eigenvalues that it is the ratio of."""

    value: float
    """lambda_max / lambda_min, >= 1; inf where lambda_min is not positive beyond rounding. Its
    relative error is about its value times the precision of the kernel's type, 1e-7 or 1e-16."""
    lambda_max: float
    lambda_min: float
    rank: int
    """Number of eigenvalues above n * lambda_max times the precision of the kernel's type."""
    converged: bool
    """False where `value` is inf: the kernel is singular up to the rounding of its type."""


@dataclass(frozen=True)
class NtkEstimate:
    """A condition number, averaged over batches."""

    value: float
    """Mean of the batches' condition numbers, or condition number of their mean kernel; inf if one
    of these kernels is singular."""
    stderr: float | None
    """Standard error over batches, for the mean kernel by the jackknife; None for one batch or an
    infinite value."""
    n: int
    """Number of batches."""
    batch_size: int
    """Images in a batch, the largest if they differ; the condition number depends on it."""
    values: tuple[float, ...]
    """Condition number of each batch's own kernel."""
    converged: bool
    """False where `value` is inf."""


def condition_number(theta: Tensor) -> ConditionNumber:
    """Compute lambda_max / lambda_min of a symmetric positive semi-definite matrix [n, n].

    The eigenvalues are computed in float64.

    Raises:
        ValueError: `theta` is not a square, symmetric, finite matrix."""
    if theta.ndim != 2 or theta.shape[0] != theta.shape[1] or not len(theta):
        raise ValueError(f"theta has shape {list(theta.shape)}; give a square matrix [n, n]")
    # rounding of an eigenvalue of a sum of many products, as numpy's matrix_rank takes it
    precision = len(theta) * torch.finfo(theta.dtype).eps
    exact = to_float64_device(theta.detach()).double()
    if not exact.isfinite().all():
        raise ValueError("theta is not finite; check the weights and images that it comes from")
    if (exact - exact.T).abs().max() > torch.finfo(theta.dtype).eps ** 0.5 * exact.abs().max():
        raise ValueError("theta is not symmetric; a kernel is theta[i, j] = J[i] . J[j]")
    eigenvalues = torch.linalg.eigvalsh(exact)
    largest, smallest = float(eigenvalues[-1]), float(eigenvalues[0])
    rank = int((eigenvalues > precision * largest).sum()) if largest > 0 else 0
    regular = rank == len(theta)
    return ConditionNumber(
        largest / smallest if regular else math.inf, largest, smallest, rank, regular
    )


def ntk_condition_number(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    batch_size: int = 48,
    output: Output = "sum",
    average: Literal["kappa", "kernel"] = "kappa",
    relu: bool = False,
    head: Literal["keep", "random"] = "keep",
    generator: Generator | None = None,
    params: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float64,
    chunk_bytes: int = 256 * MIB,
    kernel_bytes: int = 4096 * MIB,
) -> NtkEstimate:
    """Compute the condition number of the NTK, averaged over batches.

    With a network at initialisation this is the paper's protocol; the choices that the paper does
    not state are options: output, average and head. Where the last scale of a residual branch is 0,
    as in ResNets at initialisation, only the gradients of that scale stand for the branch.

    Args:
        model: at initialisation or trained, within the conditions of `ntk`; restored afterwards.
        images: [N, ...], cut into batches in order without the incomplete last one; or an iterable
            of batches, which are taken as they are.
        batch_size: images in a batch.
        output, params, dtype, chunk_bytes, kernel_bytes: as in `ntk`.
        average: "kappa" for the mean of condition numbers; "kernel" for the condition number of the
            mean kernel, which keeps the kernels of all batches in memory.
        relu: replace GELU by ReLU, as the paper does in ViT and Mixer.
        head: "keep" the classifier's weights, which must not be all zero; or draw them at "random",
            see `random_head`.
        generator: on the CPU; for head="random".

    Raises:
        ValueError: fewer than two images in a batch, a zero head, an unknown option, or as `ntk`.

    Source: appendix D of Chen et al., arXiv:2106.01548."""
    if average not in ("kappa", "kernel") or head not in ("keep", "random"):
        raise ValueError(
            f"average={average!r}, head={head!r}; "
            "pick average='kappa' or 'kernel', head='keep' or 'random'"
        )
    if head == "random" and generator is None:
        raise ValueError("head='random' draws weights; give a generator")
    # the head and GELU are changed once for all batches, so that all see the same random head
    batches = _cut(images, batch_size) if isinstance(images, Tensor) else images
    kernels, kappas, sizes = [], [], []
    with ExitStack() as changes:
        if head == "random":
            changes.enter_context(random_head(model, cast(Generator, generator)))
        elif (layers := head_layers(model)) and not any(layer.weight.any() for layer in layers):
            raise ValueError(
                "the classifier head is all zero, so no other weight has a gradient and the NTK is "
                "the Gram matrix of the features; use head='random', or a trained network"
            )
        if relu:
            changes.enter_context(gelu_as_relu(model))
        for batch in batches:
            theta = ntk(
                model,
                batch,
                output=output,
                params=params,
                dtype=dtype,
                chunk_bytes=chunk_bytes,
                kernel_bytes=kernel_bytes,
            )
            kappas.append(condition_number(theta).value)
            sizes.append(len(batch))
            if average == "kernel":
                kernels.append(theta)
    if not kappas:
        raise ValueError("no batches of images; give at least one")
    value, stderr = _mean_and_stderr(kappas) if average == "kappa" else _jackknife(kernels)
    return NtkEstimate(value, stderr, len(kappas), max(sizes), tuple(kappas), math.isfinite(value))


def _mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    n, mean = len(values), sum(values) / len(values)
    if n < 2 or not math.isfinite(mean):
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _jackknife(kernels: list[Tensor]) -> tuple[float, float | None]:
    """Return the condition number of the mean kernel and its jackknife error over batches."""
    n, shape = len(kernels), kernels[0].shape
    if any(kernel.shape != shape for kernel in kernels):
        raise ValueError(
            "batches differ in size, so their kernels have no mean; "
            "use average='kappa', or equal batches"
        )
    total = torch.stack(kernels).sum(0)
    value = condition_number(total / n).value
    if n < 2 or not math.isfinite(value):
        return value, None
    without = [condition_number((total - kernel) / (n - 1)).value for kernel in kernels]
    _, stderr = _mean_and_stderr(without)
    return value, None if stderr is None else stderr * (n - 1)


def _cut(images: Tensor, batch_size: int) -> list[Tensor]:
    """Cut images into whole batches, in order; fewer images than one batch are one batch."""
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}; a condition number needs at least 2 images")
    if len(images) <= batch_size:
        return [images]
    return [
        images[end - batch_size : end] for end in range(batch_size, len(images) + 1, batch_size)
    ]


# --- the measurement


def ntk_condition(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """Measure the condition number of the neural tangent kernel, on average over small batches."""
    # a kernel needs few images; evenly over the classes, so that its rows differ
    few = subject.batches.few(config.ntk_batch * config.ntk_batches, config.seed)
    images = torch.cat([batch.images for batch in few])
    output = int(config.ntk_output) if config.ntk_output.isdigit() else config.ntk_output
    found = ntk_condition_number(
        subject.model,
        images,
        batch_size=min(config.ntk_batch, len(images)),
        output=cast(Output, output),
        relu=config.ntk_relu,
        head=config.ntk_head,
        generator=Generator().manual_seed(config.seed),
    )
    yield Record(
        "ntk/condition_number",
        found.value,
        "",
        found.stderr,
        found.n,
        settings={
            "batch": found.batch_size,
            "output": config.ntk_output,
            "relu": config.ntk_relu,
            "head": config.ntk_head,
            "kernel_dtype": "float64",
            "average": "mean of condition numbers",
        },
        source="arXiv:2106.01548, appendix D",
        converged=found.converged,
    )
