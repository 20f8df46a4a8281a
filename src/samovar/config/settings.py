"""Frozen dataclasses of settings; every default lives here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from samovar.sam.variant import SamVariant

Crop = Literal["none", "affine", "pad", "inception"]
Loader = Literal["auto", "resident", "streaming"]
Loss = Literal["softmax", "sigmoid"]
TrainingLoss = Literal["softmax", "sigmoid", "supcon"]
AutoAugment = Literal["none", "imagenet", "cifar10"]
Schedule = Literal["cosine", "linear", "constant", "exponential"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
LOGGERS = ("mlflow", "tensorboard", "trackio", "wandb")
"""Built-in loggers; other packages add theirs under the entry point group `samovar.loggers`."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and how it starts."""

    name: str = "vit-digits"
    """A name of `samovar list models`, any timm model name, or `module:function` returning an
    nn.Module."""
    init: Literal["paper", "library"] = "paper"
    """`paper`: our models start as in the Flax code of the paper, timm's with a zero head;
    `library`: as timm does."""
    head_bias: float = 0.0
    """Initial bias of the classification head under `--model.init paper`; the paper's sigmoid loss
    wants -10."""
    dropout: float = 0.0
    """Dropout rate: after position embeddings, attention output and both dense layers of an MLP."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block; it grows linearly from 0 at the first."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from images in [0, 1] by the model's first layer; one value, or one a channel."""
    std: tuple[float, ...] = (0.5,)
    """Divides images in [0, 1] after `mean` in the model's first layer; one value, or one a
    channel."""
    trainable: Literal["all", "head"] = "all"
    """`head`: only the classifier learns, on an encoder that is frozen and in eval mode."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what is done to them before the model sees them."""

    source: str = "digits"
    """A name of `samovar list sources`, or folder:PATH, imagenet:PATH, hf:NAME, shards:PATTERN."""
    root: Path = Path("data")
    """Where downloaded data sets are kept."""
    fraction: float = 1.0
    """Share of the training images used, taken per class; the paper uses 1, 1/2, 1/4 and 1/10."""
    val_share: float = 0.1
    """Share of each class held out for validation where the source has no validation split of its
    own."""
    tune_share: float = 0.0
    """Share of each training class to validate on in place of the validation split, which is then
    not looked at."""
    split_seed: int = 0
    """Seed of the held-out split and of `fraction`; kept apart from the run's seed so that seeds
    share their data."""
    image_size: int = 8
    """Height and width in pixels of the images the model sees; 0 is that of `--init`."""
    batch_size: int = 128
    """Images per step, over all ranks."""
    crop: Crop = "none"
    """`affine` (digits), `pad` and crop (CIFAR), `inception` (the paper's 5-100 % area) or
    `none`."""
    pad: int = 4
    """Zero pixels added on each side under `--data.crop pad`."""
    degrees: float = 10.0
    """Largest rotation under `--data.crop affine`, in degrees."""
    translate: float = 0.1
    """Largest shift under `--data.crop affine`, as a share of the image's side."""
    zoom: float = 0.1
    """Largest relative change of scale under `--data.crop affine`."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    autoaugment: AutoAugment = "none"
    """AutoAugment's policy for ImageNet or CIFAR-10 (torchvision), the augmentation of contrastive
    training."""
    randaugment_layers: int = 0
    """RandAugment operations per image (torchvision); 0 is off, the paper's AUG is 2."""
    randaugment_magnitude: int = 15
    """RandAugment magnitude on torchvision's scale 0-30."""
    mixup: float = 0.0
    """Mixup Beta(a, a) parameter; 0 is off, the paper's AUG is 0.5."""
    cutmix: float = 0.0
    """CutMix Beta(a, a) parameter; 0 is off. With mixup on as well, each batch takes one of the
    two."""
    views: int = 1
    """Differently augmented copies of each image in a batch, side by side; contrastive training
    takes 2."""
    antialias: bool = True
    """Antialias when a photo or an Inception crop is made smaller; the paper's pipeline did not."""
    loader: Loader = "auto"
    """`resident` keeps decoded images on the device, `streaming` decodes in workers; `auto` picks
    what fits."""
    workers: int = -1
    """Decoding processes per rank of the streaming loader; -1 is one a core, 0 is none."""
    max_bad_share: float = 0.001
    """Share of unreadable images above which the run stops."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule and what is done to the gradient."""

    name: str = "adamw"
    """`adamw`, `sgd`, `lamb`, or any optimizer name timm knows (`sgdw`, `lion`, ...)."""
    lr: float = 1e-3
    """Peak learning rate; never scaled by the batch size behind your back."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam-like optimizers' moments."""
    momentum: float = 0.9
    """Momentum of SGD-like optimizers."""
    weight_decay: float = 0.0
    """Decay; decoupled (lr x decay) in adamw, lion and sgdw, part of the gradient in sgd, of the
    update in lamb."""
    decay: Literal["kernels", "all"] = "kernels"
    """`kernels`: only weights of linear and convolution layers, as the paper; `all`: every
    parameter."""
    schedule: Schedule = "cosine"
    """Shape of the learning rate after warm-up: cosine to 0, linear or exponential to an end, or
    constant."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    linear_end: float = 1e-5
    """Where the linear schedule ends, relative to the peak (as big_vision)."""
    exponential_end: float = 0.01
    """Where the exponential schedule ends, relative to the peak."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient that reaches the optimizer (with SAM: the SAM gradient);
    0 is off."""
    ema: float = 0.0
    """Decay per step of an average of the weights, which is then evaluated; rises as (1 + n) / (10
    + n). 0 is off."""


@dataclass(frozen=True)
class SamConfig(SamVariant):
    """Sharpness-aware minimization; rho = 0 is plain training. All but rho are neutral by default,
    and go together."""

    rho: float = 0.0
    """Radius of the weight perturbation."""
    rho_schedule: Literal["constant", "lr"] = "constant"
    """`lr`: from `--sam.rho` at the peak learning rate to `--sam.rho-min` at the lowest (GSAM)."""
    rho_min: float = 0.0
    """Lowest radius under `--sam.rho-schedule lr`."""
    m: int = 0
    """Examples that share one ascent step (m-sharpness); 0 is all of a rank's batch. The paper:
    32."""
    adaptive: bool = False
    """Element-wise adaptive SAM (ASAM); wants a rho about ten times larger."""
    eta: float = 0.01
    """Added to |w| by ASAM."""
    shared_ascent: bool = False
    """Average the ascent gradient over ranks, so that all take one perturbation (m = whole
    batch)."""
    fraction: float = 1.0
    """Share of a group's images that the climb's gradient is taken from."""
    start: float = 0.0
    """Share of the run before the first climb; 0.8 is SAM late in training, of whose steps the
    others are plain."""
    end: float = 1.0
    """Share of the run after which there is no climb."""


@dataclass(frozen=True)
class AdversarialConfig:
    """Training on attacked images; eps = 0 is off. With SAM, weights and images ascend by the same
    backward pass."""

    eps: float = 0.0
    """Largest change of a pixel from 0 to 1; the paper's 2/255 is 0.00784."""
    num_steps: int = 1
    """Steps of the attack from a random start: 1 is fast adversarial training (FGSM), more is
    PGD."""
    step_size: float = 0.0
    """Length of a step; 0 is 1.25 eps for one step (fast adversarial training), 2.5 eps / num_steps
    for more."""
    clean_share: float = 0.0
    """Share of the images that are left as they are; 1 is ordinary training."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """What `--loss supcon` compares."""

    temperature: float = 0.1
    """Divides the cosines of two images."""
    hidden: int = 2048
    """Width of the hidden layer of the projection head."""
    projection: int = 128
    """Dimensions in which images are compared."""


def _head_optim() -> OptimConfig:
    return OptimConfig(
        name="rmsproptf", lr=0.05, momentum=0.0, weight_decay=1e-6, schedule="exponential"
    )


@dataclass(frozen=True)
class HeadConfig:
    """The second stage under `--loss supcon`: a linear classifier learns by softmax on the frozen
    encoder."""

    epochs: float = 90.0
    """Passes over the training images; ignored where `steps` is given."""
    steps: int = 0
    """Optimizer steps; 0 is what `epochs` makes."""
    optim: OptimConfig = field(default_factory=_head_optim)


@dataclass(frozen=True)
class GridConfig:
    """Learning rates to choose from on images held out of the training split, before the run
    itself."""

    lr: tuple[float, ...] = ()
    """Rates that are tried; empty is none, and `--optim.lr` holds."""
    share: float = 0.1
    """Share of each training class that the choice is made on; the run itself then trains on all of
    them."""


@dataclass(frozen=True)
class RunConfig:
    """How the run is executed; nothing here changes what is computed, beyond rounding."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""
    precision: Precision = "auto"
    """`auto` is bf16 on a GPU that has it, else fp32."""
    micro_batch: int = 0
    """Most images per forward pass and rank (gradient accumulation); 0 is no limit."""
    channels_last: bool = False
    """Channels-last memory format; some 10 % faster for convolutions."""
    compile: bool = False
    """torch.compile the model."""
    threads: int = 0
    """CPU threads of each process; 0 leaves torch's choice."""
    eval_every: int = 0
    """Steps between evaluations; a checkpoint is saved at each. 0 is once an epoch."""
    log_every: int = 10
    """Steps between training records; between them nothing is read back from the device."""
    keep: int = 2
    """Checkpoints kept besides the best one."""
    max_nonfinite: int = 10
    """Non-finite gradients in a row that end the run."""
    watch_every: int = 0
    """Steps between measurements of sharpness on a fixed batch, at some 30 gradients each; 0 is
    off."""
    watch_images: int = 256
    """Images of that batch, from the training split, without augmentation."""
    loggers: tuple[str, ...] = ()
    """Other places that receive the records: mlflow, tensorboard, trackio, wandb (each an extra),
    or a name that another package adds."""


@dataclass(frozen=True)
class Config:
    """Everything a run is a function of."""

    recipe: str = "vit-digits"
    """Name of the recipe these settings started from; follows from the command, not a flag."""
    output: Path = Path("runs")
    """Folder that holds the run folders."""
    name: str = ""
    """Name of the run's folder; empty: recipe, seed and time."""
    seed: int = 0
    """Seed of the initial weights, the order of images, augmentation and dropout."""
    epochs: float = 1.0
    """Passes over the training images; ignored where `steps` is given."""
    steps: int = 0
    """Optimizer steps; 0 is what `epochs` makes."""
    init: str = ""
    """Weights to start from: a run folder, a timm name with pretrained weights, or a file; empty is
    random."""
    loss: TrainingLoss = "softmax"
    """Softmax or (paper's ViT and Mixer) sigmoid cross-entropy, or supervised contrastive, then a
    linear classifier."""
    label_smoothing: float = 0.0
    """Share of each target spread evenly over the classes."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sam: SamConfig = field(default_factory=SamConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class MeasureConfig:
    """How `samovar measure` measures; all of it is stated in the records."""

    checkpoint: str = "best"
    """`best`, `last`, `init` or a step of the run, averaged where it keeps that; `pretrained` of a
    timm name."""
    model: str = ""
    """The network that a file of weights is of; a Flax `.npz` tells it."""
    source: str = ""
    """Images to take the loss over; empty is what the run was trained on (digits for a model by
    name)."""
    root: Path | None = None
    """Where downloaded data sets are kept; empty is the run's."""
    split: Literal["", "train", "val"] = ""
    """Which split of the source; empty is `train` for the loss's geometry, `val` for what is right
    and wrong."""
    images: int = 0
    """How many of its images, evenly per class; 0 is all. The paper: a tenth of ImageNet."""
    image_size: int = 0
    """Side in pixels for a model by name; 0 is its own."""
    batch_size: int = 256
    """Images per pass."""
    loss: Loss = "softmax"
    """Softmax cross-entropy compares models whatever they were trained with."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of Hessian products; the NTK is always float64."""
    seed: int = 0
    """Seed of probes, noise, and the choice of images."""
    k: int = 1
    """Eigenvalues under `hessian`."""
    tol: float = 1e-3
    """Largest Ritz residual, relative to the eigenvalue."""
    max_steps: int = 100
    """Lanczos steps at most; what is found by then is recorded as not converged."""
    params: tuple[str, ...] = ()
    """Patterns of parameter names under `blocks`, each a block; empty is the paper's Table 3."""
    probes: int = 8
    """Random vectors under `density`; a sixth of the products under `trace`."""
    density_steps: int = 64
    """Lanczos steps per probe under `density`."""
    sigma: float = 0.05
    """Standard deviation of the weight noise under `flatness`."""
    draws: int = 10
    """Draws of the noise."""
    noise: Literal["isotropic", "filter"] = "isotropic"
    """The same sigma for every weight, or sigma times the root mean square of the weight's
    filter."""
    rho: float = 0.05
    """Radius under `sharpness`; ten times of it for the adaptive form."""
    ascent_steps: int = 10
    """Steps of the projected ascent under `sharpness`."""
    ntk_batch: int = 48
    """Images per kernel."""
    ntk_batches: int = 4
    """Kernels averaged over."""
    ntk_output: str = "sum"
    """`sum` of the logits, `full`, or the index of one logit."""
    ntk_relu: bool = False
    """Replace GELU by ReLU, as the paper."""
    ntk_head: Literal["keep", "random"] = "keep"
    """`random`: draw a classifier head, which a network at a zero-head initialisation needs."""
    landscape: Literal["random", "eigenvectors", "between"] = "random"
    """Directions under `landscape`: filter-normalised Gaussian, the Hessian's top eigenvectors, or
    to `--other`."""
    other: str = ""
    """Under `--landscape between`: another run, or a step of this one, at 1 on the x axis."""
    dims: Literal[1, 2] = 2
    """A line or a plane; `between` is always a line."""
    points: int = 25
    """Grid points per axis, odd to go through the trained point; the paper: 50."""
    span: float = 1.0
    """The axes go from -span to span; eigenvectors have length 1, and some 0.1 is far there."""
    landscape_images: int = 512
    """Images of the landscape's loss, evenly per class; 0 is all that are measured."""
    processes: int = 0
    """Processes that share the grid's rows; 0 is one a core on a CPU. Under torchrun the ranks
    share them."""
    pictures: int = 8
    """Images under `attention` and `predictions`, evenly per class."""
    testset: str = ""
    """A published test set under `testset`: NAME:PATH, for instance imagenet-r:PATH or
    cifar10-c:PATH."""
    corruptions: tuple[str, ...] = ()
    """Names under `robustness` and `testset`; empty is all 19."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Severities under `robustness` and `testset`."""
    corruption_images: int = 1000
    """Images that are corrupted, evenly per class, each in every way; 0 is all that are
    measured."""
    attack_eps: float = 2 / 255
    """Radius under `attack`, in pixels from 0 to 1; the paper's. Fractions and multiples of it make
    the curve."""
    attack_steps: int = 10
    """Steps of PGD, each an eighth of the radius long, as the paper's; fewer than ten are longer,
    to reach it."""
    attack_norm: Literal["inf", "2"] = "inf"
    """Largest change of a pixel, or Euclidean length."""
    attack_restarts: int = 0
    """Further random starts."""
    attack_images: int = 1000
    """Images that are attacked, evenly per class; 0 is all that are measured."""
    probe_images: int = 10_000
    """Training images that `knn` and `linear` learn from, evenly per class; 0 is all."""
    knn_k: int = 20
    """Nearest training images that vote under `knn`."""
    knn_temperature: float = 0.07
    """Divides the cosines that are the logarithms of their votes."""
    output: Path = Path("runs")
    """Folder for the records of a model that is of no run."""
    name: str = ""
    """Name of its run folder there; empty: the model and the time."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    workers: int = -1
    """Decoding processes; -1 is one a core, 0 is none."""


@dataclass(frozen=True)
class CorruptConfig:
    """How `samovar corrupt` makes worse copies of images."""

    corruptions: tuple[str, ...] = ()
    """Names; empty is all 19."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Of 1 to 5."""
    size: int = 0
    """Resize and crop to this side in pixels first, as evaluation does; 0 keeps each image's own
    size."""
    seed: int = 0
    """With an image's path below the folder it decides every random number."""
    workers: int = -1
    """Processes; -1 is one a core, 0 works in this one."""
