"""Checks of settings; each error is one line that names the flag, the value and what is allowed."""

from __future__ import annotations

from typing import Any

from samovar import plugins
from samovar.config.encoded import dashed, flatten
from samovar.config.measuring import CorruptConfig, MeasureConfig
from samovar.config.settings import LOGGERS, Config
from samovar.ranges import out_of_range
from samovar.sam import variant
from samovar.words import suggest


def validate(config: Config) -> None:
    """Check the settings of a run, as far as that needs no data.

    Raises:
        ValueError: names the flag, the value given, what is allowed."""
    _check_ranges(config)
    if config.epochs == 0 and config.steps == 0:
        raise ValueError("--epochs 0 with --steps 0 trains nothing; give one of the two")
    if config.sam.adaptive and config.sam.eta == 0:
        raise ValueError(
            "--sam.eta 0 freezes zero weights under ASAM; give a small positive number such as 0.01"
        )
    _check_sam(config)
    _check_shard(config)
    if config.grid.lr and config.data.tune_share:
        raise ValueError(
            f"--data.tune-share {config.data.tune_share:g} does not go with --grid.lr, which "
            "holds out --grid.share of the same images; leave one of them out"
        )
    if config.loss == "supcon":
        _check_contrastive(config)
    loggers = (*LOGGERS, *plugins.names("loggers"))
    for name in config.run.loggers:
        if name not in loggers:
            raise ValueError(f"--run.loggers {name} is unknown; {suggest(name, loggers)}")


def validate_measure(config: MeasureConfig) -> None:
    """Check the settings of a measurement, as far as that needs no model.

    Raises:
        ValueError: names the flag, the value given, what is allowed."""
    _check_ranges(config)
    if config.k > config.max_steps:
        raise ValueError(
            f"--k {config.k} is more than --max-steps {config.max_steps}; give at most as many"
        )
    if not (config.ntk_output in ("sum", "full") or config.ntk_output.isdigit()):
        raise ValueError(
            f"--ntk-output {config.ntk_output} is unknown; give sum, full or the index of a logit"
        )
    _check_severities(config)
    # both are plausible alone: the default radius is meant for the other norm
    if config.attack_norm == "2" and config.attack_eps == MeasureConfig.attack_eps:
        raise ValueError(
            f"--attack-norm 2 with --attack-eps {config.attack_eps:.3g}, the default, which suits "
            "single pixels and is almost nothing as a Euclidean length; give --attack-eps, such as "
            "0.5"
        )
    if (config.landscape == "between") != bool(config.other):
        raise ValueError(
            f"--landscape {config.landscape} with --other {config.other or '(nothing)'}: `between` "
            "needs another run or step, the others none"
        )


def validate_corrupt(config: CorruptConfig) -> None:
    """Check the settings of corrupted copies, as far as that needs no images.

    Raises:
        ValueError: names the flag, the value given, what is allowed."""
    _check_ranges(config)
    _check_severities(config)


def validate_layout(config: Config, world_size: int) -> None:
    """Check that batch, ranks, ascent groups and micro-batches divide each other.

    Raises:
        ValueError: names the numbers that do not fit and those that do."""
    # without SAM there are no ascent groups, so m does not matter
    batch, m = config.data.batch_size, config.sam.m if config.sam.rho else 0
    if batch % world_size:
        raise ValueError(
            f"--data.batch-size {batch} does not divide over {world_size} ranks; "
            f"pick a multiple of {world_size}"
        )
    ranks = shard_ranks(config.run.shard, world_size)
    if m % ranks:
        raise ValueError(
            f"--sam.m {m} does not divide over the {ranks} ranks of --run.shard "
            f"{config.run.shard}, which share each ascent; pick a multiple of {ranks}"
        )
    per_rank, m = batch // world_size, m // ranks
    if m and per_rank % m:
        divisors = (d for d in range(1, per_rank + 1) if per_rank % d == 0)
        near = min(divisors, key=lambda d: (abs(d - m), d))
        raise ValueError(
            f"--sam.m {m * ranks} does not divide the {per_rank * ranks} images of "
            f"{'a rank' if ranks == 1 else f'{ranks} ranks'}; pick a divisor such as {near * ranks}"
        )


def shard_ranks(choice: str, world_size: int) -> int:
    """Return the ranks that share one copy of the weights under a `--run.shard`.

    Raises:
        ValueError: it is no choice, or N does not divide the ranks."""
    if choice == "none":
        return 1
    if choice == "full":
        return world_size
    number = choice.removeprefix("hybrid:")
    if number == choice or not number.isdecimal() or int(number) < 2:
        raise ValueError(
            f"--run.shard {choice} is unknown; give none, full or hybrid:N with N of 2 or more"
        )
    if world_size % int(number):
        raise ValueError(
            f"--run.shard {choice} does not divide {world_size} ranks into sets of {number}; "
            "give a divisor, or full"
        )
    return int(number)


def _check_shard(config: Config) -> None:
    """Refuse settings that are not right, or not tested, on sharded weights."""
    choice = config.run.shard
    if choice == "none":
        return
    number = choice.removeprefix("hybrid:")
    # the ranks are not known yet; this refuses what is no choice
    shard_ranks(choice, int(number) if number.isdecimal() else 1)
    flat = flatten(config)
    for name, works, why in (
        ("loss", ("softmax", "sigmoid"), "its two stages are not sharded"),
        ("sam.noise", (False,), "each rank would draw noise of its own for its shard"),
        ("sam.teacher", ("none",), "the teacher is not sharded"),
        ("run.compile", (False,), "the compiled network hides its blocks"),
        ("run.watch_every", (0,), "curvature needs whole weights; measure the checkpoints instead"),
        ("model.trainable", ("all",), "a frozen encoder needs no shards"),
        ("optim.name", ("adamw", "sgd"), "other optimizers are not known to be right on shards"),
        ("grid.lr", ((),), "its trials hold further networks; choose the rate first"),
    ):  # fmt: skip
        if flat[name] not in works:
            wanted = " or ".join(map(str, works)) if any(works) else "its default"
            raise ValueError(
                f"{_given(config, name)} with --run.shard {choice}: {why}; give "
                f"--{dashed(name)} {wanted}, or --run.shard none"
            )


def _check_ranges(config: Any) -> None:
    for name, value, allowed in out_of_range(config):
        raise ValueError(f"--{dashed(name)} {value} is out of range; give {allowed}")


def _check_severities(config: MeasureConfig | CorruptConfig) -> None:
    if not config.severities:
        raise ValueError("--severities (none) leaves nothing to do; give some of 1 to 5")


def _check_sam(config: Config) -> None:
    """Refuse settings of SAM that contradict each other."""
    sam = config.sam
    if sam.m and sam.shared_ascent:
        raise ValueError(
            "--sam.m and --sam.shared-ascent exclude each other: "
            "one groups examples, the other all of them"
        )
    if clash := variant.conflict(sam) or _conflict(config):
        one, other, why = clash
        raise ValueError(f"{_given(config, one)} with {_given(config, other)}: {why}")


def _conflict(config: Config) -> tuple[str, str, str] | None:
    """Return the first two settings around SAM that contradict each other, and the reason."""
    sam, part = config.sam, config.sam.fraction < 1
    attacked = config.adversarial.eps > 0
    steady = config.optim.schedule == "constant" and not config.optim.warmup_steps
    # Subtracting gradients only makes sense if both are of the same images.
    other_images = "the two gradients would be of different images; leave one of them out"
    scales = "each scales the climb by the weights; leave one of them out"
    # One backward pass serves images and weights, so there is neither a part nor a second step.
    once = (
        "images climb by the same backward pass as the weights, on all of them and once; "
        "leave one of them out"
    )
    instead = "earlier logits take the place of the climb; give --sam.rho 0"
    mixes = "an image's earlier logits would be those of another mixture; leave one of them out"
    unlike = "the teacher would see other images than the network; leave one of them out"
    clean = "a step without a climb would train on images before their last move"
    no_span = "there is no step between them; give a start below the end"
    swapped = "the lowest radius is above the highest; exchange them"
    fixed_rate = "the rate does not change; give --sam.rho-schedule constant"
    no_decay = config.optim.schedule != "wsd"
    decays = "it has no decay of its own; give --optim.schedule wsd, or a share of the run"
    start = 1 - config.optim.decay_share if sam.start == "decay" else sam.start
    found = (
        *(
            (getattr(sam, name) and part, name, "fraction", "it takes no gradient for its climb")
            for name in ("momentum", "stale", "noise")
        ),
        (
            sam.momentum and config.optim.name.startswith("sgd") and not config.optim.momentum,
            "momentum", "optim.momentum", "there is none to climb along; give --optim.momentum 0.9",
        ),
        (sam.layerwise and sam.adaptive, "layerwise", "adaptive", scales),
        (sam.teacher == "earlier" and sam.rho > 0, "teacher", "rho", instead),
        (sam.teacher == "earlier" and config.data.mixup > 0, "teacher", "data.mixup", mixes),
        (sam.teacher == "earlier" and config.data.cutmix > 0, "teacher", "data.cutmix", mixes),
        (sam.teacher != "none" and attacked, "teacher", "adversarial.eps", unlike),
        (sam.noise and sam.adaptive, "noise", "adaptive", scales),
        (part and sam.sharp_only, "fraction", "sharp_only", other_images),
        (sam.sharp_only and attacked, "sharp_only", "adversarial.eps", clean),
        (part and sam.alpha > 0, "fraction", "alpha", other_images),
        (part and sam.gamma != 0.5, "fraction", "gamma", other_images),
        (part and sam.decoupled, "fraction", "decoupled", other_images),
        (part and sam.reuse > 0, "fraction", "reuse", other_images),
        (sam.start == "decay" and no_decay, "start", "optim.schedule", decays),
        (start >= sam.end, "start", "end", no_span),
        (sam.rho_min > sam.rho, "rho_min", "rho", swapped),
        (
            sam.rho_min > 0 and sam.rho_schedule == "constant",
            "rho_min", "rho_schedule", "give --sam.rho-schedule lr",
        ),
        (part and attacked, "fraction", "adversarial.eps", once),
        (sam.ascent_steps > 1 and attacked, "ascent_steps", "adversarial.eps", once),
        (sam.rho_schedule == "lr" and steady, "rho_schedule", "optim.schedule", fixed_rate),
    )  # fmt: skip
    return next(((one, other, why) for clash, one, other, why in found if clash), None)


def _given(config: Config, name: str) -> str:
    """Return a setting as its flag with its value; `name` without a dot is one of SAM's."""
    name = name if "." in name else f"sam.{name}"
    value = flatten(config)[name]
    return f"--{dashed(name)}" if value is True else f"--{dashed(name)} {value}"


def _check_contrastive(config: Config) -> None:
    """Refuse settings that do not work with a loss over all images of a batch and their classes."""
    if config.data.views < 2:
        raise ValueError(
            f"--data.views {config.data.views} with --loss supcon compares nothing; give 2"
        )
    if config.head.epochs == 0 and config.head.steps == 0:
        raise ValueError(
            "--head.epochs 0 with --head.steps 0 trains no classifier; give one of the two"
        )
    # most of these split the batch or mix the classes that the loss compares
    flat, free = flatten(config), flatten(Config())
    for name in (
        "sam.m", "sam.fraction", "run.micro_batch", "adversarial.eps", "data.mixup", "data.cutmix",
        "label_smoothing", "sam.teacher", "optim.ema", "model.trainable", "grid.lr",
    ):  # fmt: skip
        if flat[name] != free[name]:
            advice = "leave it out" if name == "grid.lr" else f"give --{dashed(name)} {free[name]}"
            raise ValueError(
                f"--{dashed(name)} {flat[name]} does not go with --loss supcon, which compares "
                f"whole images of a whole batch by their classes; {advice}"
            )
