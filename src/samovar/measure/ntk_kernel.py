"""The empirical neural tangent kernel, Theta = J J^T with J the Jacobian of logits by parameters.

The kernel is dense and exact: no sketches. The model is in eval mode inside and is differentiated
through copies of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from samovar.anymodel.restore import evaluating
from samovar.curvature.borrow import second_order
from samovar.measure.jacobian import Output, column_chunks, jacobian_columns, set_up

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
    """Compute the empirical NTK of a model that maps images [n, ...] to logits [n, K].

    The Jacobian is computed in chunks of columns, and the kernel is the sum of their Gram matrices.
    Each chunk costs a forward and backward pass per row; there are about (rows * P * bytes of
    dtype) / chunk_bytes chunks. Memory: one chunk of at most chunk_bytes, as much again for
    gradients before they are copied there (at least those of one row by the parameters of the
    chunk), the kernel, a copy of the weights in dtype, and the activations of the rows that are
    computed together.

    vmap computes up to n rows together; where it cannot follow the model, rows are computed one by
    one.

    Args:
        model: in eval mode inside, restored afterwards; samples must not depend on each other.
        images: [n, ...], floating point, n >= 2.
        output: "sum" for the sum of a sample's logits; an index for one logit; "full" for each
            logit of each sample, ordered by sample.
        params: names as shell patterns; a parameter counts if any matches. None selects all that
            require a gradient. ("*weight*",) is TE-NAS, the released code closest to the paper's.
        dtype: of the copies of weights, buffers and images, and of the kernel.
        chunk_bytes: see above.
        kernel_bytes: limit on the kernel itself; its eigenvalues take three times as much.

    Returns:
        The kernel [n, n], or [n * K, n * K] for "full"; symmetric, on the model's device.

    Raises:
        ValueError: images, output or params do not fit; weights, buffers or the kernel are not
            finite; a BatchNorm has no running statistics; the kernel is over its limit.
        TypeError: the model does not return a tensor.

    Source: Jacot et al., arXiv:1806.07572; the sum of logits: Chen et al. (TE-NAS),
        arXiv:2102.11535."""
    _check_model(model)
    _check_images(images)
    # vmap can batch neither fused attention nor compiled modules
    device = next(model.parameters(), images).device
    with evaluating(model), second_order(device):
        setup = set_up(model, images, output, params, dtype)
        rows = len(images) * len(setup.cotangents)
        needed = rows**2 * dtype.itemsize
        if needed > kernel_bytes:
            raise ValueError(
                f"the kernel of {len(images)} images x {len(setup.cotangents)} outputs takes "
                f"{needed / MIB:.3g} MiB, over kernel_bytes={kernel_bytes / MIB:.3g} MiB; "
                "give fewer images, output='sum', or a larger limit"
            )
        theta = setup.images.new_zeros(rows, rows)
        for chunk in column_chunks(setup.wanted, max(1, chunk_bytes // (rows * dtype.itemsize))):
            columns = jacobian_columns(setup, chunk, chunk_bytes)
            theta.addmm_(columns, columns.T)
            del columns  # before the memory of the next chunk is allocated
    if not theta.isfinite().all():
        raise ValueError(
            f"the kernel is not finite in {dtype}; check the images, or use dtype=torch.float64"
        )
    # a BLAS need not make a product with its own transpose symmetric to the bit
    return (theta + theta.T) / 2


def _check_images(images: Tensor) -> None:
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}; give floating point in [0, 1], for uint8 images / 255"
        )
    if images.ndim < 2 or len(images) < 2:
        raise ValueError(f"images have shape {list(images.shape)}; give at least two, [n, ...]")
    if not images.isfinite().all():
        raise ValueError("images are not finite; leave out the damaged ones")


def _check_model(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name or 'the model'} is a BatchNorm without running statistics, which couples "
                "the images of a batch, so that an image has no NTK row of its own; "
                "build it with track_running_stats=True"
            )
