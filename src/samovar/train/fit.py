"""Run training: resume, evaluate, record, checkpoint, stop on a signal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

from samovar.anymodel.restore import bare
from samovar.config import Config, num_steps, stages, validate_layout
from samovar.data import badfiles
from samovar.data.loader import batches
from samovar.data.sources import class_notes, open_source
from samovar.data.splits import Source
from samovar.measure.features import NotFinite
from samovar.measure.watch import Watch
from samovar.models.normalization import note_of_training
from samovar.models.table import has_constructor
from samovar.objectives import make_objective
from samovar.runs.checkpoint import Checkpoint, CheckpointError
from samovar.runs.records import RunDir
from samovar.runtime import Runtime
from samovar.runtime.heartbeat import doing
from samovar.runtime.signals import StopRequest, noted
from samovar.train import branch, patience, resume
from samovar.train.batch_picture import pictured
from samovar.train.keeper import Clock, Keeper
from samovar.train.keeper import Diverged as Diverged
from samovar.train.loop import TrainState, build, next_stage, steps
from samovar.train.micro_batch import fit_memory
from samovar.train.schedules import check_warmup
from samovar.train.teacher import check_lag
from samovar.train.validation import validate


class Interrupted(Exception):
    """A signal ended the run; everything up to `step` is saved."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}, which is saved")
        self.signum = signum


@dataclass(frozen=True)
class Progress:
    """An event of a run, for whoever shows or watches it."""

    kind: str
    """`start`, `train`, `val`, `note` or `done`."""
    step: int
    total: int
    """Steps of the whole run, all stages together."""
    values: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Lines for the reader: classes, resumed where, weights at the start, how memory was saved; at
    the end why it stopped early, and the images that could not be read."""


def prepare(
    config: Config, runtime: Runtime, source: Source | None = None
) -> tuple[Source, TrainState]:
    """Open the images and build the state before the first step; nothing is written.

    Args:
        source: the images, if they are open already.

    Raises:
        ValueError: settings, data, model and layout do not fit each other."""
    validate_layout(config, runtime.world_size)
    if not (config.model.name and config.data.image_size):
        raise ValueError(
            "this config leaves its model or image size to --init; "
            "pass it through samovar.models.load.resolve first"
        )
    source = source or open_source(config.data)
    check_lag(config, len(source.train))
    if config.loss == "supcon":
        _check_pairs(source)
    with doing(f"building {config.model.name}"):
        state = build(config, runtime, num_classes=len(source.classes), channels=source.channels)
    fit_memory(config, state, source, runtime)
    if has_constructor(config.model.name):
        state.notes += (note_of_training(state.model, config.model, source.channels),)
    for stage, section in zip(stages(config), ("optim", "head.optim"), strict=False):
        state.notes += check_warmup(stage.optim, num_steps(stage, len(source.train)), section)
    return source, state


def _check_pairs(source: Source) -> None:
    """Refuse a class with a single training image, which has no other to be compared with."""
    single = np.flatnonzero(np.bincount(source.train.labels, minlength=len(source.classes)) == 1)
    if len(single):
        raise ValueError(
            f"--loss supcon compares images of one class, and class "
            f"{source.classes[single[0]]!r} of --data.source {source.name} has one training image; "
            "add images to it or remove it"
        )


@dataclass(frozen=True)
class _Stage:
    """A part of the run with settings of its own, from `first` steps done to `stop` steps done."""

    config: Config
    first: int
    stop: int


def _stages(config: Config, num_train: int) -> list[_Stage]:
    found: list[_Stage] = []
    for stage in stages(config):
        first = found[-1].stop if found else 0
        found.append(_Stage(stage, first, first + num_steps(stage, num_train)))
    return found


def fit(
    config: Config,
    run: RunDir,
    runtime: Runtime,
    source: Source,
    state: TrainState,
    *,
    trial: bool = False,
) -> Iterator[Progress]:
    """Train to the end of the run from its newest checkpoint, or from `state` if there is none.

    Args:
        source: the images, from `prepare`.
        state: the state before the first step, from `prepare`. It changes in place; a second stage
            continues in a new one.
        trial: leave out what only a person reads: the picture of the first batch, how far the run
            is, and the sizes of the classes.

    Raises:
        BadImages: too many images cannot be read.
        CheckpointError: the run has checkpoints, and none can be used.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
        Diverged: `run.max_nonfinite` gradients in a row were not finite.
        OSError: the disk is full; the last checkpoint is intact."""
    parts = _stages(config, len(source.train))
    total = parts[-1].stop
    keeper = Keeper(config, run, runtime, trial=trial)

    # Every rank reads the checkpoint itself. Nothing is written before one has been found to fit,
    # so a refused resume leaves the folder as it was.
    states: list[TrainState] = []
    bring = lambda found: states.append(_resumed(state, found, parts, runtime))  # noqa: E731
    found, notes = resume.newest(run, keeper.fingerprint, bring)
    if found:
        state = states[-1]
        notes.append(branch.origin_line(run, found.step))
    counts = class_notes(source)
    data_notes = (*source.notes, *counts)
    keeper.begin(state.step, total, source, data_notes, resumed=found is not None)
    sizes = {"train_images": float(len(source.train)), "val_images": float(len(source.val))}
    yield Progress("start", state.step, total, sizes, (*counts, *(notes or state.notes)))

    # A signal only leaves a note here; training stops at the next step, where it can save.
    with noted() as request:
        for part in parts:
            # The classifier stage after contrastive training has an optimizer of its own. A
            # checkpoint taken on the border belongs to the stage before.
            if part.first and part.first == state.step:
                state = next_stage(state, part.config, runtime)
            if state.step < part.stop and not patience.is_over(config, state):
                yield from _train(part, state, source, runtime, keeper, request, total)

    notes = [patience.note(config, state, total)] if state.step < total else []
    keeper.end(state.step, total)
    values = {f"best/{name}": value for name, value in state.best.items()}
    values |= {f"last/{name}": value for name, value in state.last.items()}
    values["skipped"] = state.tally["skipped"].item()
    notes += badfiles.summary(run.bad_files)
    yield Progress("done", state.step, total, values, tuple(notes))


def _resumed(
    state: TrainState, found: Checkpoint, parts: list[_Stage], runtime: Runtime
) -> TrainState:
    """Return the state of a checkpoint, built for the stage in which it was saved."""
    part = next((part for part in parts if found.step <= part.stop), None)
    if part is None:
        raise CheckpointError(f"step {found.step} is beyond the run's {parts[-1].stop} steps")
    if part.first:
        state = next_stage(state, part.config, runtime)
    resume.restore(state, found)
    return state


def _train(
    part: _Stage,
    state: TrainState,
    source: Source,
    runtime: Runtime,
    keeper: Keeper,
    request: StopRequest,
    total: int,
) -> Iterator[Progress]:
    """Train one stage from where `state` stands in it to its end, or until patience is out.

    Batches and schedules count the stage's steps; records, checkpoints and events the run's."""
    config, length = part.config, part.stop - part.first
    every = config.run.eval_every or max(1, len(source.train) // config.data.batch_size)
    objective = make_objective(config, len(source.classes), runtime.world_size)
    stream = batches(
        source,
        config.data,
        seed=config.seed,
        start=state.step - part.first,
        stop=length,
        rank=runtime.rank,
        world_size=runtime.world_size,
        device=runtime.device,
        bad_files=keeper.run.bad_files,
    )
    if state.teacher is not None:
        here = (config, runtime, len(source.train), state.step - part.first)
        stream = state.teacher.follow(stream, *here, keeper.run.path)
    # Sharpness is watched in the first stage only: one curve over two losses would mean nothing.
    watched = config.run.watch_every and runtime.is_main and part.first == 0
    watch = Watch(config, source, runtime.device) if watched else None
    clock = Clock(config.data.batch_size, state.step)
    work = doing("training", total, "steps", state.step)
    with contextlib.closing(stream), work as activity:
        first = keeper.is_read and state.step == 0
        seen = pictured(stream, source.classes, keeper.run.path) if first else stream
        for step in steps(state, seen, objective, config, runtime, length, part.first):
            activity.done, done = step.step, step.step - part.first
            evaluates = done % every == 0 or done == length
            logs = evaluates or done % config.run.log_every == 0

            if watch and done % config.run.watch_every == 0:
                for record in watch.records(bare(state.wrapped), step.step, step.lr):
                    keeper.record(record)

            if step.note:
                keeper.divided(state, config)
                yield Progress("note", step.step, total, notes=(step.note,))

            # Logging comes first because it notices a divergence, which must not be saved.
            if logs:
                yield Progress("train", step.step, total, keeper.log(state, step, clock, config))
            if evaluates:
                values = _evaluate(config, state, source, runtime, keeper)
                yield Progress("val", step.step, total, values)
                stops = patience.is_over(config, state) and done < length
                if stops:
                    keeper.stopped_early(state, config)
                keeper.save(state)
                if stops:
                    return
                clock.mark(step.step)

            if _agreed(request, runtime, meeting=logs):
                if not evaluates:
                    keeper.save(state)
                raise Interrupted(request.signum, step.step)


def _evaluate(
    config: Config, state: TrainState, source: Source, runtime: Runtime, keeper: Keeper
) -> dict[str, float]:
    """Evaluate and record; a classifier's accuracy also enters the state as best and last."""
    try:
        records = validate(config, source, runtime, state, keeper.run.bad_files)
    except NotFinite as error:
        raise Diverged(
            f"at step {state.step} {error}; lower --optim.lr or set --optim.clip-norm"
        ) from error
    values: dict[str, float] = {"step": state.step}
    for record in records:
        keeper.record(record)
        values[record.name] = record.value
    if "val/accuracy" in values:
        patience.judge(config, state, values)
    return values


def _agreed(request: StopRequest, runtime: Runtime, *, meeting: bool) -> bool:
    """Return True once every rank knows of a request to stop.

    Signals reach ranks at different steps, so several ranks compare notes, and do so only at
    `meeting` points, which all of them reach at the same step."""
    if runtime.world_size > 1:
        if not meeting:
            return False
        asked = torch.tensor(request.signum, device=runtime.device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        request.signum = int(asked.item())
    return request.signum != 0
