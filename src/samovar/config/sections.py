"""Settings of the network, the images and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from samovar.ranges import Range

Crop = Literal["none", "affine", "pad", "inception"]
Loader = Literal["auto", "resident", "streaming"]
AutoAugment = Literal["none", "imagenet", "cifar10"]
Schedule = Literal["cosine", "linear", "constant", "exponential", "wsd"]

Share = Annotated[float, Range("a share from 0 to 1", ge=0, le=1)]
Rate = Annotated[float, Range("a rate from 0 to 1", ge=0, le=1)]
ImageCount = Annotated[int, Range("a number of images, 1 or more", ge=1)]
StepCount = Annotated[int, Range("a number of steps, 1 or more", ge=1)]
Threads = Annotated[int, Range("a number of threads, 0 for torch's choice", ge=0)]
Workers = Annotated[int, Range("a number of processes, -1 for one a core", ge=-1)]
Beta = Annotated[float, Range("a Beta parameter, 0 for off", ge=0)]
Decay = Annotated[float, Range("a decay rate from 0 up to 1", ge=0, lt=1)]


@dataclass(frozen=True)
class ModelConfig:
    """Network and its initial weights."""

    name: str = "vit-digits"
    """A name of `samovar list models`, any timm model name, or `module:function` returning an
    nn.Module."""
    init: Literal["paper", "library"] = "paper"
    """`paper`: our models start as in the paper's Flax code, timm's with a zero head; `library`:
    as timm starts them."""
    head_bias: float = 0.0
    """Initial bias of the classification head under `--model.init paper`; the paper uses -10 with
    the sigmoid loss."""
    dropout: Rate = 0.0
    """Dropout rate after position embeddings, attention output and both dense layers of an MLP."""
    drop_path: Rate = 0.0
    """Stochastic depth rate of the last block; it grows linearly from 0 at the first."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from images in [0, 1] by the model's first layer; one value, or one a channel."""
    std: tuple[Annotated[float, Range("positive numbers, which divide pixels", gt=0)], ...] = (0.5,)
    """Divides images in [0, 1] after `mean` in the model's first layer; one value, or one a
    channel."""
    trainable: Literal["all", "head"] = "all"
    """`head`: train only the classifier, on a frozen encoder in eval mode."""


@dataclass(frozen=True)
class DataConfig:
    """Images and their processing before the model sees them."""

    source: str = "digits"
    """A source of `samovar list sources`, such as digits or folder:PATH."""
    root: Path = Path("data")
    """Folder of downloaded data sets."""
    fraction: Annotated[float, Range("a share above 0, up to 1", gt=0, le=1)] = 1.0
    """Share of the training images used, taken per class; the paper uses 1, 1/2, 1/4 and 1/10."""
    val_share: Share = 0.1
    """Share of each class held out for validation if the source has no validation split."""
    tune_share: Annotated[float, Range("a share from 0 to 0.9", ge=0, le=0.9)] = 0.0
    """Share of each training class to validate on instead of the validation split, which then
    stays unseen."""
    split_seed: int = 0
    """Seed of the held-out split and of `fraction`, separate from the run's seed so that runs with
    different seeds share their data."""
    image_size: Annotated[int, Range("a side in pixels, 0 for that of --init", ge=0)] = 8
    """Height and width in pixels of the images the model sees; 0 takes that of `--init`."""
    batch_size: ImageCount = 128
    """Images per step, over all ranks."""
    crop: Crop = "none"
    """`affine` (digits), `pad` and crop (CIFAR), `inception` (the paper's 5-100 % area) or
    `none`."""
    pad: Annotated[int, Range("a number of pixels, 0 or more", ge=0)] = 4
    """Zero pixels added on each side under `--data.crop pad`."""
    degrees: Annotated[float, Range("an angle from 0 to 180", ge=0, le=180)] = 10.0
    """Largest rotation under `--data.crop affine`, in degrees."""
    translate: Annotated[float, Range("a share of the side from 0 to 1", ge=0, le=1)] = 0.1
    """Largest shift under `--data.crop affine`, as a share of the image's side."""
    zoom: Annotated[float, Range("a relative change from 0 to 0.99", ge=0, le=0.99)] = 0.1
    """Largest relative change of scale under `--data.crop affine`."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    autoaugment: AutoAugment = "none"
    """AutoAugment policy for ImageNet or CIFAR-10 (torchvision); contrastive training uses it."""
    randaugment_layers: Annotated[int, Range("a number of operations, 0 for off", ge=0)] = 0
    """RandAugment operations per image (torchvision); 0 is off, the paper's AUG uses 2."""
    randaugment_magnitude: Annotated[int, Range("a magnitude from 0 to 30", ge=0, le=30)] = 15
    """RandAugment magnitude on torchvision's scale 0-30."""
    mixup: Beta = 0.0
    """Mixup Beta(a, a) parameter; 0 is off, the paper's AUG uses 0.5."""
    cutmix: Beta = 0.0
    """CutMix Beta(a, a) parameter; 0 is off. If mixup is on too, each batch takes one of the two
    at random."""
    views: Annotated[int, Range("a number of copies, 1 or more", ge=1)] = 1
    """Differently augmented copies of each image in a batch, side by side; contrastive training
    uses 2."""
    antialias: bool = True
    """Antialias when a photo or an Inception crop is made smaller; the paper's pipeline did not."""
    loader: Loader = "auto"
    """`resident` keeps decoded images on the device, `streaming` decodes in workers; `auto` picks
    what fits."""
    workers: Workers = -1
    """Decoding processes per rank of the streaming loader; -1 is one a core, 0 is none."""
    max_bad_share: Share = 0.001
    """Share of unreadable images of a split above which the run stops; five are always allowed
    unless it is 0."""


SCHEDULE_STEPS = ("warmup_steps",)
"""Settings of `OptimConfig` that count steps, and shrink where flags make a run shorter."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer, learning-rate schedule, gradient clipping and weight averaging."""

    name: str = "adamw"
    """`adamw`, `sgd`, `lamb`, or any optimizer name timm knows (`sgdw`, `lion`, ...)."""
    lr: Annotated[float, Range("a learning rate, 0 or more", ge=0)] = 1e-3
    """Peak learning rate; never scaled by the batch size."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of the moments in Adam-like optimizers."""
    momentum: Rate = 0.9
    """Momentum of SGD-like optimizers."""
    weight_decay: Annotated[float, Range("a decay, 0 for off", ge=0)] = 0.0
    """Weight decay; decoupled (lr x decay) in adamw, lion and sgdw, part of the gradient in sgd,
    part of the update in lamb."""
    decay: Literal["kernels", "all"] = "kernels"
    """`kernels`: decay only weights of linear and convolution layers, as the paper does; `all`:
    decay every parameter."""
    schedule: Schedule = "cosine"
    """Shape of the learning rate after warm-up: cosine to 0, linear or exponential to an end,
    constant, or `wsd` (warmup-stable-decay: constant, then to 0 in the last part of the run)."""
    decay_share: Annotated[float, Range("a share above 0, up to 1", gt=0, le=1)] = 0.25
    """Share of the run, at its end, in which the rate of `wsd` falls."""
    decay_shape: Literal["linear", "sqrt"] = "linear"
    """How the rate of `wsd` falls to 0 after a share t of its decay: `linear` 1 - t, `sqrt`
    1 - sqrt(t)."""
    warmup_steps: Annotated[int, Range("a number of steps, 0 for none", ge=0)] = 0
    """Steps over which the learning rate rises linearly from 0."""
    linear_end: Share = 1e-5
    """Last learning rate of the linear schedule, relative to the peak (as in big_vision)."""
    exponential_end: Annotated[float, Range("a share above 0, up to 1", ge=1e-12, le=1)] = 0.01
    """Last learning rate of the exponential schedule, relative to the peak."""
    clip_norm: Annotated[float, Range("a norm, 0 for off", ge=0)] = 0.0
    """Largest global norm of the gradient that reaches the optimizer (with SAM: the SAM gradient);
    0 is off."""
    ema: Annotated[float, Range("a decay from 0 (off) to 1", ge=0, le=1)] = 0.0
    """Decay per step of an average of the weights, which is then evaluated; it rises as
    (1 + n) / (10 + n). 0 is off."""
