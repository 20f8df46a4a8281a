"""Checks of settings at the border, in the words of the flag."""

from __future__ import annotations

import math
from typing import Any

from samovar import plugins
from samovar.config.encoded import dashed, flatten
from samovar.config.settings import LOGGERS, Config, CorruptConfig, MeasureConfig
from samovar.sam import variant
from samovar.words import suggest

_RANGES: dict[str, tuple[float, float, str]] = {
    "epochs": (0, math.inf, "passes over the data, above 0 unless --steps is given"),
    "steps": (0, math.inf, "a number of steps, 0 for what --epochs makes"),
    "label_smoothing": (0, 1, "a share from 0 to 1"),
    "model.dropout": (0, 1, "a rate from 0 to 1"),
    "model.drop_path": (0, 1, "a rate from 0 to 1"),
    "data.fraction": (0, 1, "a share above 0, up to 1"),
    "data.val_share": (0, 1, "a share from 0 to 1"),
    "data.image_size": (0, math.inf, "a side in pixels, 0 for that of --init"),
    "data.batch_size": (1, math.inf, "a number of images, 1 or more"),
    "data.views": (1, math.inf, "a number of copies, 1 or more"),
    "data.tune_share": (0, 0.9, "a share from 0 to 0.9"),
    "data.pad": (0, math.inf, "a number of pixels, 0 or more"),
    "data.translate": (0, 1, "a share of the side from 0 to 1"),
    "data.zoom": (0, 0.99, "a relative change below 1"),
    "data.randaugment_layers": (0, math.inf, "a number of operations, 0 for off"),
    "data.randaugment_magnitude": (0, 30, "a magnitude from 0 to 30"),
    "data.mixup": (0, math.inf, "a Beta parameter, 0 for off"),
    "data.cutmix": (0, math.inf, "a Beta parameter, 0 for off"),
    "data.workers": (-1, math.inf, "a number of processes, -1 for one a core"),
    "data.max_bad_share": (0, 1, "a share from 0 to 1"),
    "optim.lr": (0, math.inf, "a learning rate, 0 or more"),
    "optim.momentum": (0, 1, "a rate from 0 to 1"),
    "optim.weight_decay": (0, math.inf, "a decay, 0 for off"),
    "optim.warmup_steps": (0, math.inf, "a number of steps, 0 for none"),
    "optim.clip_norm": (0, math.inf, "a norm, 0 for off"),
    "optim.exponential_end": (1e-12, 1, "a share of the peak above 0, up to 1"),
    "optim.ema": (0, 1, "a decay from 0 (off) to 1"),
    "sam.rho": (0, math.inf, "a radius, 0 for plain training"),
    "sam.m": (0, math.inf, "a number of examples, 0 for the rank's whole batch"),
    "sam.eta": (0, math.inf, "a small positive number"),
    "sam.rho_min": (0, math.inf, "a radius, 0 or more"),
    "sam.fraction": (1e-6, 1, "a share above 0, up to 1"),
    "sam.start": (0, 1, "a share of the run from 0 to 1"),
    "sam.end": (0, 1, "a share of the run from 0 to 1"),
    "adversarial.eps": (0, 1, "a radius in pixels from 0 to 1, such as 0.00784 for 2/255"),
    "adversarial.num_steps": (1, math.inf, "a number of steps, 1 or more"),
    "adversarial.step_size": (0, 1, "a length in pixels from 0 to 1, 0 for the usual one"),
    "adversarial.clean_share": (0, 1, "a share from 0 to 1"),
    "contrastive.temperature": (1e-6, math.inf, "a temperature above 0, such as 0.1"),
    "contrastive.hidden": (1, math.inf, "a width, 1 or more"),
    "contrastive.projection": (1, math.inf, "a number of dimensions, 1 or more"),
    "head.epochs": (0, math.inf, "passes over the data, above 0 unless --head.steps is given"),
    "head.steps": (0, math.inf, "a number of steps, 0 for what --head.epochs makes"),
    "grid.share": (0.001, 0.9, "a share from 0.001 to 0.9"),
    "run.micro_batch": (0, math.inf, "a number of images, 0 for no limit"),
    "run.threads": (0, math.inf, "a number of threads, 0 for torch's choice"),
    "run.eval_every": (0, math.inf, "a number of steps, 0 for once an epoch"),
    "run.log_every": (1, math.inf, "a number of steps, 1 or more"),
    "run.watch_every": (0, math.inf, "a number of steps, 0 for off"),
    "run.watch_images": (1, math.inf, "a number of images, 1 or more"),
    "run.keep": (1, math.inf, "a number of checkpoints, 1 or more"),
    "run.max_nonfinite": (1, math.inf, "a number of steps, 1 or more"),
}
_RANGES |= {f"head.{name}": _RANGES[name] for name in list(_RANGES) if name.startswith("optim.")}


_MEASURE_RANGES: dict[str, tuple[float, float, str]] = {
    "images": (0, math.inf, "a number of images, 0 for all"),
    "image_size": (0, math.inf, "a side in pixels, 0 for the model's own"),
    "batch_size": (1, math.inf, "a number of images, 1 or more"),
    "k": (1, math.inf, "a number of eigenvalues, 1 or more"),
    "tol": (1e-12, 1, "a relative error above 0, up to 1"),
    "max_steps": (1, math.inf, "a number of Lanczos steps, 1 or more"),
    "probes": (2, math.inf, "a number of random vectors, 2 or more"),
    "density_steps": (1, math.inf, "a number of Lanczos steps, 1 or more"),
    "sigma": (0, math.inf, "a standard deviation, 0 or more"),
    "draws": (1, math.inf, "a number of draws, 1 or more"),
    "rho": (0, math.inf, "a radius, 0 or more"),
    "ascent_steps": (1, math.inf, "a number of steps, 1 or more"),
    "ntk_batch": (2, math.inf, "a number of images, 2 or more"),
    "ntk_batches": (1, math.inf, "a number of batches, 1 or more"),
    "points": (2, 1001, "a number of grid points per axis, 2 to 1001"),
    "span": (1e-9, math.inf, "a distance above 0"),
    "landscape_images": (0, math.inf, "a number of images, 0 for all"),
    "processes": (0, math.inf, "a number of processes, 0 for one a core"),
    "pictures": (1, 256, "a number of images, 1 to 256"),
    "corruption_images": (0, math.inf, "a number of images, 0 for all"),
    "attack_eps": (0, 1, "a radius in pixels from 0 to 1, such as 0.00784 for 2/255"),
    "attack_steps": (1, math.inf, "a number of steps, 1 or more"),
    "attack_restarts": (0, math.inf, "a number of random starts, 0 or more"),
    "attack_images": (0, math.inf, "a number of images, 0 for all"),
    "probe_images": (0, math.inf, "a number of images, 0 for all"),
    "knn_k": (1, math.inf, "a number of neighbours, 1 or more"),
    "knn_temperature": (1e-6, math.inf, "a temperature above 0, such as 0.07"),
    "threads": (0, math.inf, "a number of threads, 0 for torch's choice"),
    "workers": (-1, math.inf, "a number of processes, -1 for one a core"),
}


def _check_ranges(values: dict[str, Any], ranges: dict[str, tuple[float, float, str]]) -> None:
    for name, (low, high, allowed) in ranges.items():
        value = values[name]
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"--{dashed(name)} {value} is out of range; give {allowed}")


def validate_measure(config: MeasureConfig) -> None:
    """Check what can be checked without a model.

    Raises:
        ValueError: names the flag, the value given, what is allowed."""
    _check_ranges(flatten(config), _MEASURE_RANGES)
    if config.k > config.max_steps:
        raise ValueError(
            f"--k {config.k} is more than --max-steps {config.max_steps}; give at most as many"
        )
    if not (config.ntk_output in ("sum", "full") or config.ntk_output.isdigit()):
        raise ValueError(
            f"--ntk-output {config.ntk_output} is unknown; give sum, full or the index of a logit"
        )
    _check_severities(config.severities)
    if config.attack_norm == "2" and config.attack_eps == MeasureConfig.attack_eps:
        raise ValueError(
            f"--attack-norm 2 with --attack-eps {config.attack_eps:.3g}, the default, which is made for single "
            "pixels and next to nothing as a Euclidean length; give --attack-eps, such as 0.5"
        )
    if (config.landscape == "between") != bool(config.other):
        raise ValueError(
            f"--landscape {config.landscape} with --other {config.other or '(nothing)'}: `between` needs another run "
            "or step, the others none"
        )


def validate_corrupt(config: CorruptConfig) -> None:
    """Check what can be checked without images.

    Raises:
        ValueError: names the flag, the value given, what is allowed."""
    ranges = {
        "size": (0, math.inf, "a side in pixels, 0 to keep it"),
        "workers": _MEASURE_RANGES["workers"],
    }
    _check_ranges(flatten(config), ranges)
    _check_severities(config.severities)


def _check_severities(severities: tuple[int, ...]) -> None:
    if not severities or not set(severities) <= {1, 2, 3, 4, 5}:
        given = " ".join(map(str, severities)) or "(none)"
        raise ValueError(f"--severities {given} are not of 1 to 5; give some of them")


def validate(config: Config) -> None:
    """Check what can be checked without data.

    Raises:
        ValueError: names the flag, the value given, what is allowed."""
    _check_ranges(flatten(config), _RANGES)
    if config.epochs == 0 and config.steps == 0:
        raise ValueError("--epochs 0 with --steps 0 trains nothing; give one of the two")
    if config.data.fraction == 0:
        raise ValueError(
            "--data.fraction 0 leaves no training images; give a share above 0, up to 1"
        )
    if config.sam.adaptive and config.sam.eta == 0:
        raise ValueError(
            "--sam.eta 0 freezes zero weights under ASAM; give a small positive number such as 0.01"
        )
    _validate_sam(config)
    if any(s <= 0 for s in config.model.std):
        raise ValueError(f"--model.std {config.model.std} divides pixels; give positive numbers")
    for lr in config.grid.lr:
        if not 0 < lr < math.inf:
            raise ValueError(f"--grid.lr {lr:g} is out of range; give learning rates above 0")
    if config.grid.lr and config.data.tune_share:
        raise ValueError(
            f"--data.tune-share {config.data.tune_share:g} does not go with --grid.lr, which holds out --grid.share of "
            "the same images; leave one of them out"
        )
    if config.loss == "supcon":
        _validate_contrastive(config)
    loggers = (*LOGGERS, *plugins.names("loggers"))
    for name in config.run.loggers:
        if name not in loggers:
            raise ValueError(f"--run.loggers {name} is unknown; {suggest(name, loggers)}")


def _validate_sam(config: Config) -> None:
    """Refuse settings of SAM that are out of range or mean nothing together."""
    sam = config.sam
    if sam.m and sam.shared_ascent:
        raise ValueError(
            "--sam.m and --sam.shared-ascent exclude each other: one groups examples, the other all of them"
        )
    if found := variant.fault(sam):
        name, allowed = found
        raise ValueError(
            f"--sam.{dashed(name)} {getattr(sam, name)} is out of range; give {allowed}"
        )
    if clash := variant.conflict(sam) or _conflict(config):
        one, other, why = clash
        raise ValueError(f"{_given(config, one)} with {_given(config, other)}: {why}")


def _conflict(config: Config) -> tuple[str, str, str] | None:
    """The first two settings around SAM that mean nothing together, and why."""
    sam, part = config.sam, config.sam.fraction < 1
    other_images = "the two gradients would be of different images; leave one of them out"
    scales = "each scales the climb by the weights; leave one of them out"
    once = "images climb by the same backward pass as the weights, on all of them and once; leave one of them out"
    found = (
        (sam.momentum and part, "momentum", "fraction", "it takes no gradient for its climb"),
        (
            sam.momentum and config.optim.name.startswith("sgd") and not config.optim.momentum,
            "momentum", "optim.momentum", "there is none to climb along; give --optim.momentum 0.9",
        ),
        (sam.layerwise and sam.adaptive, "layerwise", "adaptive", scales),
        (part and sam.alpha > 0, "fraction", "alpha", other_images),
        (part and sam.gamma != 0.5, "fraction", "gamma", other_images),
        (part and sam.decoupled, "fraction", "decoupled", other_images),
        (part and sam.reuse > 0, "fraction", "reuse", other_images),
        (sam.start >= sam.end, "start", "end", "there is no step between them; give a start below the end"),
        (sam.rho_min > sam.rho, "rho_min", "rho", "the lowest radius is above the highest; exchange them"),
        (sam.rho_min > 0 and sam.rho_schedule == "constant", "rho_min", "rho_schedule", "give --sam.rho-schedule lr"),
        (part and config.adversarial.eps > 0, "fraction", "adversarial.eps", once),
        (sam.ascent_steps > 1 and config.adversarial.eps > 0, "ascent_steps", "adversarial.eps", once),
        (
            sam.rho_schedule == "lr" and config.optim.schedule == "constant" and not config.optim.warmup_steps,
            "rho_schedule", "optim.schedule", "the rate does not change; give --sam.rho-schedule constant",
        ),
    )  # fmt: skip
    return next(((one, other, why) for clash, one, other, why in found if clash), None)


def _given(config: Config, name: str) -> str:
    """A setting as its flag and its value; one of SAM's by its own name."""
    name = name if "." in name else f"sam.{name}"
    value = flatten(config)[name]
    return f"--{dashed(name)}" if value is True else f"--{dashed(name)} {value}"


def _validate_contrastive(config: Config) -> None:
    """Refuse what a loss that compares all images of a batch by their classes cannot have beside
    it."""
    if config.data.views < 2:
        raise ValueError(
            f"--data.views {config.data.views} with --loss supcon compares nothing; give 2"
        )
    if config.head.epochs == 0 and config.head.steps == 0:
        raise ValueError(
            "--head.epochs 0 with --head.steps 0 trains no classifier; give one of the two"
        )
    defaults = Config()
    flat, free = flatten(config), flatten(defaults)
    for name in (
        "sam.m", "sam.fraction", "run.micro_batch", "adversarial.eps", "data.mixup", "data.cutmix", "label_smoothing",
        "optim.ema", "model.trainable", "grid.lr",
    ):  # fmt: skip
        if flat[name] != free[name]:
            advice = "leave it out" if name == "grid.lr" else f"give --{dashed(name)} {free[name]}"
            raise ValueError(
                f"--{dashed(name)} {flat[name]} does not go with --loss supcon, which compares whole images of a whole"
                f" batch by their classes; {advice}"
            )


def validate_layout(config: Config, world_size: int) -> None:
    """Check that batch, ranks, ascent groups and micro-batches divide each other.

    Raises:
        ValueError: names the numbers that do not fit and those that do."""
    batch, m = config.data.batch_size, config.sam.m if config.sam.rho else 0
    if batch % world_size:
        raise ValueError(
            f"--data.batch-size {batch} does not divide over {world_size} ranks; pick a multiple of {world_size}"
        )
    per_rank = batch // world_size
    if m and per_rank % m:
        near = min(
            (d for d in range(1, per_rank + 1) if per_rank % d == 0), key=lambda d: (abs(d - m), d)
        )
        raise ValueError(
            f"--sam.m {m} does not divide the {per_rank} images of a rank; pick a divisor such as {near}"
        )
