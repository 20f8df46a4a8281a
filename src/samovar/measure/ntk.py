"""The empirical neural tangent kernel, Theta = J J^T with J the Jacobian of logits by parameters,
and its condition.

Dense and exact: no sketches. Models are lent in eval mode and differentiated through copies of
    their weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from samovar.measure.jacobian import Output, column_chunks, jacobian_columns, set_up
from samovar.measure.ntk_protocol import gelu_as_relu, head_layers, random_head
from samovar.restore import evaluating

MIB = 2**20


@dataclass(frozen=True)
class ConditionNumber:
    """The spread of a kernel's eigenvalues."""

    value: float
    """lambda_max / lambda_min, >= 1; inf where lambda_min is not positive beyond rounding. Its
    relative error is about itself times the precision of the kernel's type, 1e-7 or 1e-16."""
    lambda_max: float
    lambda_min: float
    rank: int
    """Eigenvalues beyond rounding: above n * lambda_max times the precision of the kernel's
    type."""
    converged: bool
    """False where value is inf: the kernel is singular as far as its type can tell."""


@dataclass(frozen=True)
class NtkEstimate:
    """A condition number over batches."""

    value: float
    """Mean of the batches' condition numbers, or that of their mean kernel; inf if one of these
    kernels is singular."""
    stderr: float | None
    """Standard error over batches, by the jackknife for the mean kernel; None for one batch or an
    infinite value."""
    n: int
    """Number of batches."""
    batch_size: int
    """Images in a batch, on which the condition number depends; the largest if they differ."""
    values: tuple[float, ...]
    """Condition number of each batch's own kernel."""
    converged: bool
    """False where `value` is inf."""


def ntk(
    model: nn.Module,
    images: Tensor,
    *,
    output: Output = "sum",
    params: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float64,
    chunk_bytes: int = 256 * MIB,
    kernel_bytes: int = 4096 * MIB,
) -> Tensor:
    """Empirical NTK of a model that maps images [n, ...] to logits [n, K], on the model's device.

    The Jacobian is made in chunks of columns, and the kernel gathers their Gram matrices. Each
    chunk costs a forward and backward pass per row; there are about (rows * P * bytes of dtype) /
    chunk_bytes chunks. Memory: one chunk of at most chunk_bytes, as much again for gradients on
        their way there (at least those of one row by the parameters of
    the chunk), the kernel, a copy of the weights in dtype, and the activations of the rows under
    way.

    Rows are made together by vmap, at most n at a time, or one by one where vmap cannot follow the
    model.

    Args:
        model: lent in eval mode; samples must not depend on each other.
        images: [n, ...], floating point, n >= 2.
        output: "sum", the sum of a sample's logits; an index, that logit; "full", each logit of
            each sample, by sample.
        params: names as shell patterns; a parameter counts if any matches. None is all that require
            a gradient, and ("*weight*",) is TE-NAS, the nearest released code to the paper's.
        dtype: of the copies of weights, buffers and images, and of the kernel.
        chunk_bytes: see above.
        kernel_bytes: limit on the kernel itself; its eigenvalues take three times as much.

    Returns:
        [n, n], or [n * K, n * K] for "full"; symmetric.

    Raises:
        ValueError: images, output or params that do not fit; weights, buffers or a kernel that are
            not finite; BatchNorm without running statistics; a kernel over its limit.
        TypeError: the model does not return a tensor.

    Source: Jacot et al., arXiv:1806.07572; the sum of logits: Chen et al. (TE-NAS),
        arXiv:2102.11535."""
    _check_model(model)
    _check_images(images)
    with (
        evaluating(model),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):  # not to depend on which fused kernels vmap can batch
        setup = set_up(model, images, output, params, dtype)
        rows = len(images) * len(setup.cotangents)
        needed = rows**2 * dtype.itemsize
        if needed > kernel_bytes:
            raise ValueError(
                f"the kernel of {len(images)} images x {len(setup.cotangents)} outputs takes {needed / MIB:.3g} MiB, "
                f"over kernel_bytes={kernel_bytes / MIB:.3g} MiB; give fewer images, output='sum', or a larger limit"
            )
        theta = setup.images.new_zeros(rows, rows)
        for chunk in column_chunks(setup.wanted, max(1, chunk_bytes // (rows * dtype.itemsize))):
            columns = jacobian_columns(setup, chunk, chunk_bytes)
            theta.addmm_(columns, columns.T)
            del columns  # before the next chunk is made
    if not theta.isfinite().all():
        raise ValueError(
            f"the kernel is not finite in {dtype}; check the images, or use dtype=torch.float64"
        )
    return (
        theta + theta.T
    ) / 2  # a BLAS need not make a product with its own transpose symmetric to the bit


def condition_number(theta: Tensor) -> ConditionNumber:
    """lambda_max / lambda_min of a symmetric positive semi-definite matrix [n, n]; eigenvalues in
    float64.

    Raises:
        ValueError: not a square, symmetric, finite matrix."""
    if theta.ndim != 2 or theta.shape[0] != theta.shape[1] or not len(theta):
        raise ValueError(f"theta is of shape {list(theta.shape)}; give a square matrix [n, n]")
    precision = len(theta) * torch.finfo(theta.dtype).eps
    exact = theta.detach().double()
    if not exact.isfinite().all():
        raise ValueError("theta is not finite; check the weights and images it is made of")
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
    """Condition number of the NTK, averaged over batches; the paper's protocol on a network at
    initialisation.

    What the paper leaves open is an option here: output, average and head. Where the last scale of
    a residual branch is 0, as in ResNets at initialisation, the branch counts by the gradients of
    that scale alone.

    Args:
        model: at initialisation or trained; with `ntk`'s conditions. It comes back as it was.
        images: [N, ...], cut into batches in order, the short rest left out; or batches, taken as
            they come.
        batch_size: images in a batch.
        output, params, dtype, chunk_bytes, kernel_bytes: as in `ntk`.
        average: "kappa", the mean of condition numbers; "kernel", the condition number of the mean
            kernel, which keeps the kernels of all batches.
        relu: replace GELU by ReLU, as the paper does in ViT and Mixer.
        head: "keep" the classifier's, which must not be all zero; or draw its weights at "random",
            see `random_head`.
        generator: on the CPU; for head="random".

    Raises:
        ValueError: fewer than two images in a batch, a zero head, an unknown option, or as `ntk`.

    Source: appendix D of Chen et al., arXiv:2106.01548."""
    if average not in ("kappa", "kernel") or head not in ("keep", "random"):
        raise ValueError(
            f"average={average!r}, head={head!r}; pick average='kappa' or 'kernel', head='keep' or 'random'"
        )
    if head == "random" and generator is None:
        raise ValueError("head='random' draws weights; give a generator")
    batches = _cut(images, batch_size) if isinstance(images, Tensor) else images
    kernels, kappas, sizes = [], [], []
    with ExitStack() as changes:
        if head == "random":
            changes.enter_context(random_head(model, cast(Generator, generator)))
        elif (layers := head_layers(model)) and not any(layer.weight.any() for layer in layers):
            raise ValueError(
                "the classifier head is all zero, so no other weight has a gradient and the NTK is the Gram matrix of "
                "the features; use head='random', or a trained network"
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
    value, stderr = _mean(kappas) if average == "kappa" else _jackknife(kernels)
    return NtkEstimate(value, stderr, len(kappas), max(sizes), tuple(kappas), math.isfinite(value))


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    n, mean = len(values), sum(values) / len(values)
    if n < 2 or not math.isfinite(mean):
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _jackknife(kernels: list[Tensor]) -> tuple[float, float | None]:
    """Condition number of the mean kernel, and its error from the means that leave one batch
    out."""
    n, shape = len(kernels), kernels[0].shape
    if any(kernel.shape != shape for kernel in kernels):
        raise ValueError(
            "batches differ in size, so their kernels have no mean; use average='kappa', or equal batches"
        )
    total = torch.stack(kernels).sum(0)
    value = condition_number(total / n).value
    if n < 2 or not math.isfinite(value):
        return value, None
    without = [condition_number((total - kernel) / (n - 1)).value for kernel in kernels]
    _, stderr = _mean(without)
    return value, None if stderr is None else stderr * (n - 1)


def _cut(images: Tensor, batch_size: int) -> list[Tensor]:
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}; a condition number needs at least 2 images")
    if len(images) <= batch_size:
        return [images]
    return [
        images[end - batch_size : end] for end in range(batch_size, len(images) + 1, batch_size)
    ]


def _check_images(images: Tensor) -> None:
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}; give floating point in [0, 1], for uint8 images / 255"
        )
    if images.ndim < 2 or len(images) < 2:
        raise ValueError(f"images are of shape {list(images.shape)}; give at least two, [n, ...]")
    if not images.isfinite().all():
        raise ValueError("images are not finite; leave out the broken ones")


def _check_model(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name or 'the model'} is a BatchNorm without running statistics, which ties the images of a batch "
                "together, so that an image has no NTK row of its own; build it with track_running_stats=True"
            )
