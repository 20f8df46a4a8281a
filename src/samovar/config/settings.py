"""Settings of a training run; every default stands here, in `sections` or in `measuring`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from samovar.config.sections import (
    DataConfig,
    ImageCount,
    ModelConfig,
    OptimConfig,
    Share,
    StepCount,
    Threads,
)
from samovar.ranges import Range
from samovar.sam.variant import SamVariant

Loss = Literal["softmax", "sigmoid"]
TrainingLoss = Literal["softmax", "sigmoid", "supcon"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
LOGGERS = ("mlflow", "tensorboard", "trackio", "wandb")
"""Built-in loggers; other packages add theirs under the entry point group `samovar.loggers`."""

Eps = Annotated[
    float, Range("a radius in pixels from 0 to 1, such as 0.00784 for 2/255", ge=0, le=1)
]


Auto = Literal["auto"]
Decay = Literal["decay"]
"""A word in place of a share of the run: where the learning rate of `wsd` begins to fall."""


@dataclass(frozen=True)
class SamConfig(SamVariant):
    """Sharpness-aware minimization; rho = 0 is plain training.

    All settings but rho are neutral by default, and they combine."""

    rho: Annotated[float, Range("a radius, 0 for plain training", ge=0)] = 0.0
    """Radius of the weight perturbation."""
    rho_schedule: Literal["constant", "lr", "rise"] = "constant"
    """`lr`: from `--sam.rho` at the peak learning rate to `--sam.rho-min` at the lowest (GSAM).
    `rise`: from `--sam.rho-min` at the start of the run to `--sam.rho` at its end, by a cosine
    (ARWP)."""
    rho_min: Annotated[float, Range("a radius, 0 or more", ge=0)] = 0.0
    """Lowest radius under `--sam.rho-schedule lr` or `rise`."""
    m: Annotated[int, Range("a number of examples, 0 for the rank's whole batch", ge=0)] = 0
    """Examples that share one ascent step (m-sharpness); 0 is a rank's whole batch. The paper
    uses 32."""
    adaptive: bool = False
    """Element-wise adaptive SAM (ASAM); needs a rho about ten times larger."""
    eta: Annotated[float, Range("a small positive number", ge=0)] = 0.01
    """Added to |w| by ASAM."""
    shared_ascent: bool = False
    """Average the ascent gradient over ranks, so that all take one perturbation (m = whole
    batch)."""
    fraction: Annotated[float, Range("a share above 0, up to 1", ge=1e-6, le=1)] = 1.0
    """Share of a group's images used for the gradient of the ascent."""
    start: Annotated[float, Range("a share of the run from 0 to 1", ge=0, le=1)] | Decay = 0.0
    """Share of the run before the first ascent; 0.8 is SAM late in training, after 80 % plain
    steps. `decay`: where the decay of `--optim.schedule wsd` begins."""
    end: Annotated[float, Range("a share of the run from 0 to 1", ge=0, le=1)] = 1.0
    """Share of the run after the last ascent."""
    teacher: Literal["none", "average", "earlier"] = "none"
    """Add the trajectory loss: a KL divergence to the logits of a teacher. `average`: the running
    average of the weights (MESA). `earlier`: the image's own logits of some epochs before (SAF)."""
    teacher_weight: Annotated[float, Range("a weight, 0 or more", ge=0)] = 0.3
    """Weight lambda of the trajectory loss; its authors use 0.3 for SAF and 0.8 for MESA."""
    teacher_tau: Annotated[float, Range("a temperature above 0, such as 5", ge=1e-6)] = 5.0
    """Temperature tau that divides the logits of both."""
    teacher_tau_squared: bool = True
    """Multiply by tau^2, as the authors' code does and the published equations do not show."""
    teacher_start: Annotated[float, Range("a number of epochs, 0 or more", ge=0)] = 5.0
    """Epochs before the trajectory loss is added."""
    teacher_lag: Annotated[int, Range("a number of epochs, 1 or more", ge=1)] = 3
    """Epochs between SAF's logits and the image's own."""
    teacher_decay: Annotated[float, Range("a decay from 0 up to 1", ge=0, lt=1)] = 0.999
    """Decay per step of MESA's average, from a low one at the start; it is not that of
    `--optim.ema`."""


@dataclass(frozen=True)
class AdversarialConfig:
    """Training on attacked images; eps = 0 is off.

    With SAM, weights and images ascend by the same backward pass."""

    eps: Eps = 0.0
    """Largest change of a pixel in [0, 1]; the paper's 2/255 is 0.00784."""
    num_steps: StepCount = 1
    """Steps of the attack from a random start: 1 is fast adversarial training (FGSM), more is
    PGD."""
    step_size: Annotated[
        float, Range("a length in pixels from 0 to 1, 0 for the usual one", ge=0, le=1)
    ] = 0.0
    """Length of a step; 0 is 1.25 eps for one step (fast adversarial training), 2.5 eps / num_steps
    for more."""
    clean_share: Share = 0.0
    """Share of the images left clean; 1 is ordinary training."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """Supervised contrastive training under `--loss supcon`."""

    temperature: Annotated[float, Range("a temperature above 0, such as 0.1", ge=1e-6)] = 0.1
    """Divides the cosine similarity of two images."""
    hidden: Annotated[int, Range("a width, 1 or more", ge=1)] = 2048
    """Width of the hidden layer of the projection head."""
    projection: Annotated[int, Range("a number of dimensions, 1 or more", ge=1)] = 128
    """Dimensions of the space in which images are compared."""


def _head_optim() -> OptimConfig:
    return OptimConfig(
        name="rmsproptf", lr=0.05, momentum=0.0, weight_decay=1e-6, schedule="exponential"
    )


@dataclass(frozen=True)
class HeadConfig:
    """Second stage under `--loss supcon`: a linear softmax classifier on the frozen encoder."""

    epochs: Annotated[
        float, Range("passes over the data, above 0 unless --head.steps is given", ge=0)
    ] = 90.0
    """Passes over the training images; ignored if `steps` is given."""
    steps: Annotated[int, Range("a number of steps, 0 to follow --head.epochs", ge=0)] = 0
    """Optimizer steps; 0 follows `epochs`."""
    optim: OptimConfig = field(default_factory=_head_optim)


@dataclass(frozen=True)
class GridConfig:
    """Choice of the learning rate on held-out training images, before the run itself."""

    lr: tuple[Annotated[float, Range("learning rates above 0", gt=0)], ...] = ()
    """Learning rates to try; empty means `--optim.lr` as it is."""
    share: Annotated[float, Range("a share from 0.001 to 0.9", ge=0.001, le=0.9)] = 0.1
    """Share of each training class held out for the choice; the run itself then trains on all of
    them."""


@dataclass(frozen=True)
class RunConfig:
    """Execution of the run; none of it but patience changes the result beyond rounding, and shards
    that of SAM: they say which images share an ascent."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""
    precision: Precision = "auto"
    """`auto` is bf16 on a GPU that supports it, else fp32."""
    micro_batch: Annotated[int, Range("a number of images, 0 for no limit", ge=0)] = 0
    """Most images per forward pass and rank (gradient accumulation); 0 is no limit. Where
    memory runs out, the number is halved."""
    memory: Annotated[float, Range("GiB above 0, 0 for no limit, or auto", ge=0)] | Auto = 0.0
    """Memory in GiB that this process may take on its device, or `auto`: nine tenths of what is
    free. If a step would take more, its images run in the fewest equal parts that fit, as
    `--run.micro-batch` does; batch size and m stay what they are. 0 is no limit."""
    channels_last: bool = False
    """Channels-last memory format; about 10 % faster for convolutions."""
    compile: bool = False
    """Compile the model with torch.compile."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time, which costs speed on a GPU; on a CPU they
    do so anyway. Operations without such an algorithm are refused."""
    shard: str = "none"
    """Split weights, gradients and optimizer state over ranks (FSDP2): `none`, `full` over all of
    them, or `hybrid:N` over N at a time. The ranks that share the weights share each ascent."""
    checkpointing: bool = False
    """Keep the inputs of the blocks alone and run each again in the backward pass: less memory for
    one more forward pass, the same numbers."""
    threads: Threads = 0
    """CPU threads of each process; 0 leaves torch's choice."""
    eval_every: Annotated[int, Range("a number of steps, 0 for once an epoch", ge=0)] = 0
    """Steps between evaluations; a checkpoint is saved at each. 0 is once an epoch."""
    log_every: StepCount = 10
    """Steps between training records; nothing is read back from the device between them."""
    keep: Annotated[int, Range("a number of checkpoints, 1 or more", ge=1)] = 2
    """Checkpoints kept besides the best one."""
    patience: Annotated[int, Range("a number of evaluations, 0 for off", ge=0)] = 0
    """Evaluations in a row without a better validation accuracy that end the run; 0 is off."""
    max_nonfinite: StepCount = 10
    """Consecutive non-finite gradients that end the run."""
    watch_every: Annotated[int, Range("a number of steps, 0 for off", ge=0)] = 0
    """Steps between measurements of sharpness on a fixed batch, at about 30 gradients each; 0 is
    off."""
    watch_images: ImageCount = 256
    """Images of that batch, from the training split, without augmentation."""
    loggers: tuple[str, ...] = ()
    """Other places that receive the records: mlflow, tensorboard, trackio, wandb (each an extra),
    or a name that another package adds."""


@dataclass(frozen=True)
class Config:
    """All settings that determine a run."""

    recipe: str = "vit-digits"
    """Name of the recipe these settings started from; set by the command, not by a flag."""
    output: Path = Path("runs")
    """Folder that holds the run folders."""
    name: str = ""
    """Name of the run's folder; empty: recipe, seed and time."""
    seed: int = 0
    """Seed of the initial weights, the order of images, augmentation and dropout."""
    epochs: Annotated[
        float, Range("passes over the data, above 0 unless --steps is given", ge=0)
    ] = 1.0
    """Passes over the training images; ignored if `steps` is given."""
    steps: Annotated[int, Range("a number of steps, 0 to follow --epochs", ge=0)] = 0
    """Optimizer steps; 0 follows `epochs`."""
    init: str = ""
    """Weights to start from: a run folder, a timm name with pretrained weights, or a file; empty is
    random."""
    loss: TrainingLoss = "softmax"
    """Softmax or (the paper's ViT and Mixer) sigmoid cross-entropy, or supervised contrastive
    followed by a linear classifier."""
    label_smoothing: Share = 0.0
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
