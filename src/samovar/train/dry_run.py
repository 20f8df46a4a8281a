"""`samovar train RECIPE --dry-run`: schedule, ascent groups, memory and cost in words."""

from __future__ import annotations

from samovar import config as configs
from samovar.config import Config
from samovar.config.derived import Shorten
from samovar.models.load import resolve
from samovar.runtime import Runtime, started
from samovar.train.micro_batch import divide, need_of, room_for
from samovar.train.rehearse import Data, Rehearsal, data_of, rehearse
from samovar.train.schedules import lr_at
from samovar.train.sharding import shard_words


def dry_run(config: Config, ranks: int, shorten: Shorten | None = None) -> list[str]:
    """Rehearse on this machine for `samovar train RECIPE --dry-run`; return the lines to print.

    Args:
        ranks: the ranks of the planned run; ascent groups are described as on these.
        shorten: fits warm-up to the run's length, as for a run.

    Raises:
        ValueError: settings that do not fit each other, or do not divide over `ranks` ranks."""
    configs.validate_layout(config, ranks)
    if not (config.model.name and config.data.image_size):
        config = resolve(config)
    with started(config.run) as runtime:
        data = data_of(config)
        config, notes = shorten(config, data.num_train) if shorten else (config, ())
        found = rehearse(config, runtime, data)
        return [*notes, *lines(config, data, found, ranks), *_passes(config, found, runtime, ranks)]


# --- in words

SUSTAINED = 100e12
"""FLOP/s of one GPU in the estimate of hours: about a third of an A100's peak in bfloat16."""


def training_flops(config: Config, data: Data, flops: int) -> float:
    """Return the FLOPs of a whole training, without evaluation.

    A backward pass counts as two forward ones.

    Args:
        flops: FLOPs of the forward pass of one image."""
    return 3.0 * flops * configs.image_gradients(config, data.num_train)


def lines(config: Config, data: Data, found: Rehearsal, ranks: int) -> list[str]:
    """Format a rehearsal as lines for a person."""
    total = configs.num_steps(config, data.num_train)
    flops = training_flops(config, data, found.flops)
    losses = ", ".join(f"{loss:.4f}" for loss in found.losses)
    return [
        f"model      {config.model.name}: {found.params:,} parameters, {found.decayed:,} of them "
        f"decay; {found.flops / 1e9:.2f} GFLOPs an image forward",
        f"data       {config.data.source}: {data.num_train:,} training images, "
        f"{data.num_classes} classes, {config.data.image_size} px; loss {config.loss}",
        *_schedule(config, total),
        *_ascent(config, ranks),
        f"update     {_update(config)}",
        f"memory     weights {_mega(found.weight_bytes)}, gradients, optimizer and copies "
        f"{_mega(found.state_bytes)}; a forward pass keeps "
        f"{_mega(found.kept_bytes / found.images)} an image",
        *([f"shards     {shard_words(found, config.run.shard, ranks)}"] if ranks > 1 else []),
        f"cost       {flops:.2e} FLOPs in all, {flops / SUSTAINED / 3600:,.1f} hours of a GPU that "
        f"sustains {SUSTAINED / 1e12:.0f} TFLOP/s (derived)",
        f"rehearsed  {len(found.losses)} steps of {found.images} made images: loss {losses}; "
        f"{found.seconds:.2f} s a step here",
    ]


def _schedule(config: Config, total: int) -> list[str]:
    o = config.optim
    decay = {configs.decay_start(o, total)} if o.schedule == "wsd" else set()
    points = sorted(
        {0, min(o.warmup_steps, total), total // 4, total // 2, 3 * total // 4, total} | decay
    )
    rates = ", ".join(f"{lr_at(step, o, total):.3g} at {step:,}" for step in points)
    return [
        f"steps      {total:,} of {config.data.batch_size} images; "
        f"warm-up {o.warmup_steps:,}, then {o.schedule}",
        f"lr         {rates}",
    ]


def _ascent(config: Config, ranks: int) -> list[str]:
    sam = config.sam
    if not sam.rho:
        return ["gradient   plain"]
    batch = config.data.batch_size
    each = batch // ranks
    together = configs.shard_ranks(config.run.shard, ranks)
    unit = "a rank" if together == 1 else f"{together} ranks that share the weights"
    each *= together
    groups = f"{each // sam.m} groups of {sam.m}" if sam.m else "one group"
    shared = "one ascent for all ranks" if sam.shared_ascent else "each from its own gradient"
    words = configs.sam_words(sam)
    return [
        f"ascent     rho {sam.rho:g}; {batch} images on {ranks} ranks, {each} {unit}: "
        f"{groups} {unit}, {shared}",
        *([f"variant    {words}"] if words else []),
    ]


def _passes(config: Config, found: Rehearsal, runtime: Runtime, ranks: int) -> list[str]:
    """Return a line on how a step fits into `--run.memory`, none without it."""
    if not config.run.memory or config.run.micro_batch:
        return []
    need = need_of(found, found.images // config.data.views)
    room = room_for(config.run.memory, runtime)
    division = divide(config, need, room, ranks, normalized=found.normalized)
    return [f"passes     {division.note}"]


def _update(config: Config) -> str:
    o = config.optim
    clip = f"clip to global norm {o.clip_norm:g}" if o.clip_norm else "no clipping"
    decay = f"decay {o.weight_decay:g} x lr of {o.decay}"
    return f"average over groups and ranks, {clip}, {o.name}, {decay}"


def _mega(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"
