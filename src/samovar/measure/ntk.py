"""The empirical neural tangent kernel, Theta = J J^T with J the Jacobian of logits by parameters, and its condition.

Dense and exact: no sketches. Models are lent in eval mode and differentiated through copies of their weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from samovar.measure.sharpness import borrowed

Output = Literal["sum", "full"] | int

MIB = 2**20


@dataclass(frozen=True)
class ConditionNumber:
    """The spread of a kernel's eigenvalues."""

    value: float
    """lambda_max / lambda_min, >= 1; inf where lambda_min is not positive beyond rounding. Its relative error is about
    itself times the precision of the kernel's type, 1e-7 or 1e-16."""
    lambda_max: float
    lambda_min: float
    rank: int
    """Eigenvalues beyond rounding: above n * lambda_max times the precision of the kernel's type."""
    converged: bool
    """False where value is inf: the kernel is singular as far as its type can tell."""


@dataclass(frozen=True)
class NtkEstimate:
    """A condition number over batches."""

    value: float
    """Mean of the batches' condition numbers, or that of their mean kernel; inf if one of these kernels is singular."""
    stderr: float | None
    """Standard error over batches, by the jackknife for the mean kernel; None for one batch or an infinite value."""
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

    The Jacobian is made in chunks of columns, and the kernel gathers their Gram matrices. Each chunk costs a forward
    and backward pass per row; there are about (rows * P * bytes of dtype) / chunk_bytes chunks. Memory: one chunk of
    at most chunk_bytes, as much again for gradients on their way there (at least those of one row by the parameters of
    the chunk), the kernel, a copy of the weights in dtype, and the activations of the rows under way.

    Rows are made together by vmap, at most n at a time, or one by one where vmap cannot follow the model.

    Args:
        model: lent in eval mode; samples must not depend on each other.
        images: [n, ...], floating point, n >= 2.
        output: "sum", the sum of a sample's logits; an index, that logit; "full", each logit of each sample, by sample.
        params: names as shell patterns; a parameter counts if any matches. None is all that require a gradient, and
            ("*weight*",) is TE-NAS, the nearest released code to the paper's.
        dtype: of the copies of weights, buffers and images, and of the kernel.
        chunk_bytes: see above.
        kernel_bytes: limit on the kernel itself; its eigenvalues take three times as much.

    Returns:
        [n, n], or [n * K, n * K] for "full"; symmetric.

    Raises:
        ValueError: images, output or params that do not fit; weights, buffers or a kernel that are not finite;
            BatchNorm without running statistics; a kernel over its limit.
        TypeError: the model does not return a tensor.

    Source: Jacot et al., arXiv:1806.07572; the sum of logits: Chen et al. (TE-NAS), arXiv:2102.11535."""
    _check_model(model)
    _check_images(images)
    with (
        borrowed(model),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):  # not to depend on which fused kernels vmap can batch
        setup = _setup(model, images, output, params, dtype)
        rows = len(images) * len(setup.cotangents)
        needed = rows**2 * dtype.itemsize
        if needed > kernel_bytes:
            raise ValueError(
                f"the kernel of {len(images)} images x {len(setup.cotangents)} outputs takes {needed / MIB:.3g} MiB, "
                f"over kernel_bytes={kernel_bytes / MIB:.3g} MiB; give fewer images, output='sum', or a larger limit"
            )
        theta = setup.images.new_zeros(rows, rows)
        for chunk in _column_chunks(setup.wanted, max(1, chunk_bytes // (rows * dtype.itemsize))):
            columns = _jacobian_columns(setup, chunk, chunk_bytes)
            theta.addmm_(columns, columns.T)
            del columns  # before the next chunk is made
    if not theta.isfinite().all():
        raise ValueError(f"the kernel is not finite in {dtype}; check the images, or use dtype=torch.float64")
    return (theta + theta.T) / 2  # a BLAS need not make a product with its own transpose symmetric to the bit


def condition_number(theta: Tensor) -> ConditionNumber:
    """lambda_max / lambda_min of a symmetric positive semi-definite matrix [n, n]; eigenvalues in float64.

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
    return ConditionNumber(largest / smallest if regular else math.inf, largest, smallest, rank, regular)


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
    """Condition number of the NTK, averaged over batches; the paper's protocol on a network at initialisation.

    What the paper leaves open is an option here: output, average and head. Where the last scale of a residual branch is
    0, as in ResNets at initialisation, the branch counts by the gradients of that scale alone.

    Args:
        model: at initialisation or trained; with `ntk`'s conditions. It comes back as it was.
        images: [N, ...], cut into batches in order, the short rest left out; or batches, taken as they come.
        batch_size: images in a batch.
        output, params, dtype, chunk_bytes, kernel_bytes: as in `ntk`.
        average: "kappa", the mean of condition numbers; "kernel", the condition number of the mean kernel, which keeps
            the kernels of all batches.
        relu: replace GELU by ReLU, as the paper does in ViT and Mixer.
        head: "keep" the classifier's, which must not be all zero; or draw its weights at "random", see `random_head`.
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
        elif (layers := _head(model)) and not any(layer.weight.any() for layer in layers):
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


@contextmanager
def gelu_as_relu(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes ReLU wherever it has GELU, a module of any such class or a call of F.gelu.

    Modules are known by class: a name with GELU in it, no parameters, no children."""
    swapped = [
        (parent._modules, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and _is_gelu(child)
    ]
    try:
        for siblings, name, _ in swapped:
            siblings[name] = nn.ReLU()
        with _GeluCalls():
            yield
    finally:
        for siblings, name, child in swapped:
            siblings[name] = child


class _GeluCalls(TorchFunctionMode):
    """Answers F.gelu with ReLU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.gelu:
            return F.relu(args[0] if args else (kwargs or {})["input"])
        return func(*args, **(kwargs or {}))


def _is_gelu(module: nn.Module) -> bool:
    return "GELU" in type(module).__name__ and not module._modules and not any(True for _ in module.parameters())


@contextmanager
def random_head(model: nn.Module, generator: Generator) -> Iterator[None]:
    """Inside, the classifier's weights are drawn from N(0, 1 / fan_in), LeCun's scale; outside, as before to the bit.

    Its bias stays: a constant, which no gradient of a logit depends on.

    Raises:
        ValueError: the model has no classifier that can be told."""
    weights = [layer.weight for layer in _head(model)]
    if not weights:
        raise ValueError("no classifier head found (get_classifier(), or a last nn.Linear); use head='keep'")
    copies = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                z = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
                weight.copy_(z * weight[0].numel() ** -0.5)
        yield
    finally:
        with torch.no_grad():
            for weight, copy in zip(weights, copies, strict=True):
                weight.copy_(copy)


def _head(model: nn.Module) -> list[Any]:
    """Layers with the classifier's kernels: what `get_classifier` of timm names, else the last nn.Linear."""
    owner: Any = next((module for module in model.modules() if hasattr(module, "get_classifier")), None)
    if owner is None:
        return [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    heads = owner.get_classifier()
    parts = [module for head in (heads if isinstance(heads, tuple | list) else (heads,)) for module in head.modules()]
    return [m for m in parts if isinstance(w := getattr(m, "weight", None), nn.Parameter) and w.ndim > 1]


# --- the Jacobian ----------------------------------------------------------------------------------------------------


class _Setup(NamedTuple):
    """A model as a function of its parameters, and what it is differentiated at."""

    model: nn.Module
    state: dict[str, Tensor]
    """Parameters and buffers, detached copies in the dtype of the kernel."""
    wanted: dict[str, Tensor]
    """The parameters of the kernel, out of `state`."""
    images: Tensor
    cotangents: Tensor
    """[R, K]: the combinations of logits that are a sample's rows."""


class _Slice(NamedTuple):
    """Columns of the Jacobian: entries start to stop of one parameter, flattened."""

    name: str
    start: int
    stop: int


def _setup(
    model: nn.Module, images: Tensor, output: Output, patterns: Sequence[str] | None, dtype: torch.dtype
) -> _Setup:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite; load weights that are")
    state = {k: t.detach().to(dtype if t.is_floating_point() else t.dtype, copy=True) for k, t in tensors.items()}
    wanted = {
        name: state[name]
        for name, param in model.named_parameters()
        if param.requires_grad and (patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns))
    }
    if not wanted:
        raise ValueError(f"params={patterns} selects no parameter that requires a gradient; None selects all that do")
    images = images.to(next(iter(wanted.values())).device, dtype, copy=True)
    with torch.no_grad():
        logits = functional_call(model, state, (images[:1],))
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model returns {type(logits).__name__}; wrap it to return logits [n, K]")
    return _Setup(model, state, wanted, images, _cotangents(output, logits))


def _cotangents(output: Output, logits: Tensor) -> Tensor:
    eye = torch.eye(logits.numel(), dtype=logits.dtype, device=logits.device)
    if output == "full":
        return eye
    if output == "sum":
        return eye.sum(0, keepdim=True)
    if not isinstance(output, int) or not 0 <= output < len(eye):
        raise ValueError(f"output={output!r}; pick 'sum', 'full' or a logit from 0 to {len(eye) - 1}")
    return eye[output : output + 1]


def _column_chunks(params: dict[str, Tensor], width: int) -> Iterator[list[_Slice]]:
    """All columns in order, at most `width` at a time."""
    chunk: list[_Slice] = []
    room = width
    for name, param in params.items():
        start = 0
        while start < param.numel():
            stop = min(param.numel(), start + room)
            chunk.append(_Slice(name, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield chunk
                chunk, room = [], width
    if chunk:
        yield chunk


def _jacobian_columns(setup: _Setup, chunk: list[_Slice], chunk_bytes: int) -> Tensor:
    """Some columns of the Jacobian, [rows, columns]; row i * R + r is combination r of sample i."""
    variables = {piece.name: setup.wanted[piece.name] for piece in chunk}
    per_sample = len(setup.cotangents)
    rows = len(setup.images) * per_sample
    columns = setup.images.new_empty(rows, sum(piece.stop - piece.start for piece in chunk))
    block = chunk_bytes // (sum(p.numel() for p in variables.values()) * columns.itemsize)
    block = max(1, min(block, len(setup.images)))  # no more activations than of a plain batch
    for first in range(0, rows, block):
        index = torch.arange(first, min(rows, first + block), device=columns.device)
        images, cotangents = setup.images[index // per_sample], setup.cotangents[index % per_sample]
        grads = _row_gradients(setup, variables, images, cotangents)
        at = 0
        for name, start, stop in chunk:
            columns[first : first + block, at : at + stop - start] = grads[name].flatten(1)[:, start:stop]
            at += stop - start
    return columns


def _row_gradients(
    setup: _Setup, variables: dict[str, Tensor], images: Tensor, cotangents: Tensor
) -> dict[str, Tensor]:
    """Gradients [rows, *shape] of one combination of the logits of one image each."""

    def combined(variables: dict[str, Tensor], image: Tensor, cotangent: Tensor) -> Tensor:
        logits = functional_call(setup.model, setup.state | variables, (image[None],))
        return cast(Tensor, (logits.flatten() * cotangent).sum())

    try:
        rows = vmap(grad(combined), in_dims=(None, 0, 0))(variables, images, cotangents)
        return cast("dict[str, Tensor]", rows)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a model that vmap cannot follow: branches on data, operators without a batching rule
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in variables.items()}
        values = (combined(leaves, image, cotangent) for image, cotangent in zip(images, cotangents, strict=True))
        each = [torch.autograd.grad(value, list(leaves.values()), materialize_grads=True) for value in values]
        return {name: torch.stack(column) for name, column in zip(leaves, zip(*each, strict=True), strict=True)}


# --- averages and checks ---------------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    n, mean = len(values), sum(values) / len(values)
    if n < 2 or not math.isfinite(mean):
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _jackknife(kernels: list[Tensor]) -> tuple[float, float | None]:
    """Condition number of the mean kernel, and its error from the means that leave one batch out."""
    n, shape = len(kernels), kernels[0].shape
    if any(kernel.shape != shape for kernel in kernels):
        raise ValueError("batches differ in size, so their kernels have no mean; use average='kappa', or equal batches")
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
    return [images[end - batch_size : end] for end in range(batch_size, len(images) + 1, batch_size)]


def _check_images(images: Tensor) -> None:
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; give floating point in [0, 1], for uint8 images / 255")
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
