"""The empirical neural tangent kernel, Theta = J J^T with J the Jacobian of logits by parameters.

The kernel is dense and exact: no sketches. The model is in eval mode inside and is differentiated
through copies of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from samovar.measure.jacobian import Output, column_chunks, jacobian_columns, set_up
from samovar.restore import evaluating

MIB = 2**20


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
