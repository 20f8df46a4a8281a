"""Settings of the measurements and of corrupted copies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from samovar.config.sections import ImageCount, StepCount, Threads, Workers
from samovar.config.settings import Eps, Loss
from samovar.ranges import Range

ImagesOrAll = Annotated[int, Range("a number of images, 0 for all", ge=0)]
LanczosSteps = Annotated[int, Range("a number of Lanczos steps, 1 or more", ge=1)]
MeasurePrecision = Literal["fp32", "tf32", "bf16", "fp16"]
PixelWord = Literal["imagenet", "timm", "none"]
PositiveStd = Annotated[float, Range("positive numbers, which divide pixels", gt=0)]
Severities = tuple[Annotated[int, Range("some of 1 to 5", ge=1, le=5)], ...]


@dataclass(frozen=True)
class MeasureConfig:
    """Settings of `samovar measure`; the records state all of them."""

    checkpoint: str = "best"
    """`best`, `last`, `init` or a step of the run, with averaged weights where the run keeps them;
    `pretrained` for a timm name."""
    model: str = ""
    """Network that a file of weights belongs to; not needed for a Flax `.npz`."""
    source: str = ""
    """Images for the loss; empty takes those of the run's training (digits for a model by
    name)."""
    root: Path | None = None
    """Folder of downloaded data sets; empty takes the run's."""
    split: Literal["", "train", "val"] = ""
    """Split of the source; empty is `train` for the geometry of the loss, `val` for accuracy."""
    images: ImagesOrAll = 0
    """Number of images, evenly per class; 0 is all. The paper uses a tenth of ImageNet."""
    mean: tuple[Annotated[float, Range("numbers")], ...] | PixelWord = ()
    """Subtracted from images in [0, 1] before a model that belongs to no run: one number, one a
    channel, `imagenet`, `timm` (its `pretrained_cfg`) or `none`. Empty asks the model: a layer that
    normalizes, timm, Hugging Face's image processor; else 0.5 is assumed."""
    std: tuple[PositiveStd, ...] | PixelWord = ()
    """Divides images after `--mean`, in the same words."""
    image_size: Annotated[int, Range("a side in pixels, 0 for the model's own", ge=0)] = 0
    """Side in pixels for a model by name; 0 is its own."""
    batch_size: ImageCount = 256
    """Images per pass."""
    loss: Loss = "softmax"
    """Loss to measure; softmax cross-entropy compares models whatever loss they trained with."""
    precision: MeasurePrecision = "fp32"
    """Precision of forward passes under `accuracy`, `predictions`, `robustness`, `attack`,
    `testset` and `landscape`: `fp32` without TF32, `tf32` in linear layers and convolutions alike,
    or `bf16` and (but for `attack`) `fp16` by autocast. All other measurements are float32 without
    TF32, or `--dtype`."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of Hessian products; the NTK is always float64."""
    check: bool = True
    """Compare the first Hessian product with a difference of gradients; records say `checked`."""
    seed: int = 0
    """Seed of probes, noise, and the choice of images."""
    k: Annotated[int, Range("a number of eigenvalues, 1 or more", ge=1)] = 1
    """Number of eigenvalues under `hessian`."""
    tol: Annotated[float, Range("a relative error above 0, up to 1", ge=1e-12, le=1)] = 1e-3
    """Largest Ritz residual, relative to the eigenvalue."""
    max_steps: LanczosSteps = 100
    """Most Lanczos steps; a result that needs more is recorded as not converged."""
    params: tuple[str, ...] = ()
    """Patterns of parameter names under `blocks`, each a block; empty is the paper's Table 3."""
    probes: Annotated[int, Range("a number of random vectors, 2 or more", ge=2)] = 8
    """Random vectors under `density`; a sixth of the products under `trace`."""
    density_steps: LanczosSteps = 64
    """Lanczos steps per probe under `density`."""
    sigma: Annotated[float, Range("a standard deviation, 0 or more", ge=0)] = 0.05
    """Standard deviation of the weight noise under `flatness`."""
    draws: Annotated[int, Range("a number of draws, 1 or more", ge=1)] = 10
    """Draws of the noise."""
    noise: Literal["isotropic", "filter"] = "isotropic"
    """`isotropic`: the same sigma for every weight; `filter`: sigma times the root mean square of
    the weight's filter."""
    rho: Annotated[float, Range("a radius, 0 or more", ge=0)] = 0.05
    """Radius under `sharpness`; the adaptive form uses ten times as much."""
    ascent_steps: StepCount = 10
    """Steps of the projected ascent under `sharpness`."""
    ntk_batch: Annotated[int, Range("a number of images, 2 or more", ge=2)] = 48
    """Images per kernel."""
    ntk_batches: Annotated[int, Range("a number of batches, 1 or more", ge=1)] = 4
    """Number of kernels to average."""
    ntk_output: str = "sum"
    """`sum` of the logits, `full`, or the index of one logit."""
    ntk_relu: bool = False
    """Replace GELU by ReLU, as in the paper."""
    ntk_head: Literal["keep", "random"] = "keep"
    """`random`: draw a classifier head, which a network with a zero head at initialization
    needs."""
    landscape: Literal["random", "eigenvectors", "between"] = "random"
    """Directions under `landscape`: filter-normalized Gaussian, the Hessian's top eigenvectors, or
    the direction to `--other`."""
    other: str = ""
    """Another run, or a step of this one, at 1 on the x axis under `--landscape between`."""
    dims: Literal[1, 2] = 2
    """A line or a plane; `between` is always a line."""
    points: Annotated[int, Range("a number of grid points per axis, 2 to 1001", ge=2, le=1001)] = 25
    """Grid points per axis; an odd number includes the trained point. The paper uses 50."""
    span: Annotated[float, Range("a distance above 0", ge=1e-9)] = 1.0
    """Axes run from -span to span; eigenvectors have length 1, for which 0.1 is already
    far."""
    landscape_images: ImagesOrAll = 512
    """Images for the landscape's loss, evenly per class; 0 is all measured images."""
    processes: Annotated[int, Range("a number of processes, 0 for one a core", ge=0)] = 0
    """Processes that share the grid's rows; 0 is one a core on a CPU. Under torchrun the ranks
    share them."""
    pictures: Annotated[int, Range("a number of images, 1 to 256", ge=1, le=256)] = 8
    """Images under `attention` and `predictions`, evenly per class."""
    testset: str = ""
    """Published test set under `testset` as NAME:PATH, for instance imagenet-r:PATH or
    cifar10-c:PATH."""
    corruptions: tuple[str, ...] = ()
    """Names of corruptions under `robustness` and `testset`; empty is all 19."""
    severities: Severities = (1, 2, 3, 4, 5)
    """Severities under `robustness` and `testset`."""
    corruption_images: ImagesOrAll = 1000
    """Images to corrupt, evenly per class, each in every way; 0 is all measured images."""
    attack_eps: Eps = 2 / 255
    """Radius under `attack`, in pixels from 0 to 1; the default is the paper's. The curve uses
    fractions and multiples of it."""
    attack_steps: StepCount = 10
    """Steps of PGD, each an eighth of the radius long as in the paper; with fewer than ten they are
    longer, to reach the radius."""
    attack_norm: Literal["inf", "2"] = "inf"
    """Norm of the radius: largest change of a pixel (`inf`) or Euclidean length (`2`)."""
    attack_restarts: Annotated[int, Range("a number of random starts, 0 or more", ge=0)] = 0
    """Further random starts."""
    attack_images: ImagesOrAll = 1000
    """Images to attack, evenly per class; 0 is all measured images."""
    probe_images: ImagesOrAll = 10_000
    """Training images for the classifiers of `knn` and `linear`, evenly per class; 0 is all."""
    knn_k: Annotated[int, Range("a number of neighbours, 1 or more", ge=1)] = 20
    """Nearest training images that vote under `knn`."""
    knn_temperature: Annotated[float, Range("a temperature above 0, such as 0.07", ge=1e-6)] = 0.07
    """Divides the cosine similarities, whose exponentials weight the votes under `knn`."""
    output: Path = Path("runs")
    """Folder for the records of a model that belongs to no run."""
    name: str = ""
    """Name of its run folder there; empty: the model and the time."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""
    threads: Threads = 0
    """CPU threads; 0 leaves torch's choice."""
    workers: Workers = -1
    """Decoding processes; -1 is one a core, 0 is none."""


@dataclass(frozen=True)
class CorruptConfig:
    """Settings of `samovar corrupt`, which writes corrupted copies of images."""

    corruptions: tuple[str, ...] = ()
    """Names of corruptions; empty is all 19."""
    severities: Severities = (1, 2, 3, 4, 5)
    """Severities from 1 (mild) to 5 (strong)."""
    size: Annotated[int, Range("a side in pixels, 0 to keep it", ge=0)] = 0
    """Resize and crop to this side in pixels first, as evaluation does; 0 keeps each image's
    size."""
    seed: int = 0
    """Seed of all random numbers, together with an image's path below the folder."""
    workers: Workers = -1
    """Processes; -1 is one a core, 0 works in this one."""
