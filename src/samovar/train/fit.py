"""The usual consumer of `train.steps`: resumes, evaluates, records, saves, and stops when told
to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from samovar.config import (
    Config,
    differences,
    from_dict,
    num_steps,
    stages,
    to_dict,
    validate_layout,
)
from samovar.data.loader import batches
from samovar.data.sources import open_source
from samovar.data.splits import Source
from samovar.measure.features import NotFinite
from samovar.measure.watch import Watch
from samovar.objectives import make_objective
from samovar.restore import bare
from samovar.runs import checkpoint
from samovar.runs.checkpoint import Checkpoint
from samovar.runs.loggers import open_sinks
from samovar.runs.records import Record, RunDir, Sink, replace_text
from samovar.runtime import Runtime, provenance
from samovar.train import optim
from samovar.train.loop import Step, TrainState, build, next_stage, steps
from samovar.train.validation import validate

# Settings a resumed run may change: none alters what is computed (threads and loader at most its
# rounding).
HARMLESS = (
    "output", "name", "run.threads", "run.eval_every", "run.log_every", "run.keep", "run.loggers",
    "run.max_nonfinite", "run.watch_every", "run.watch_images", "data.root",
    "data.workers", "data.loader", "data.max_bad_share",
)  # fmt: skip


class Interrupted(Exception):
    """A signal ended the run; everything up to `step` is saved."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}, which is saved")
        self.signum = signum


class Diverged(Exception):
    """Too many non-finite gradients in a row; the weights are those of the last finite step."""


@dataclass(frozen=True)
class Progress:
    """What `fit` yields: `kind` is `start`, `train`, `val` or `done`."""

    kind: str
    step: int
    total: int
    values: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_resume(saved: Config, wanted: Config) -> None:
    """Refuse to resume under settings that would make it another run.

    Raises:
        ValueError: names the first such setting with both values."""
    changed = {
        name: pair for name, pair in differences(saved, wanted).items() if name not in HARMLESS
    }
    if changed:
        name, (before, now) = next(iter(changed.items()))
        flag = "--" + name.replace("_", "-")
        raise ValueError(
            f"{flag} {now} differs from the run's {before}, and a resume continues the same run;"
            " drop the flag, or start a new run with --config RUN/config.json"
        )


def fingerprint(config: Config) -> str:
    """Hash of all settings that alter what is computed, as far as they differ from the defaults.

    So a setting that a later version adds does not make strangers of older runs."""
    read_back: Config = from_dict(
        to_dict(config)
    )  # a float given as 300 and one read from JSON as 300.0 are the same
    changed = differences(read_back, Config(recipe=config.recipe))
    kept = {name: str(value) for name, (value, _) in changed.items() if name not in HARMLESS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def prepare(config: Config, runtime: Runtime) -> tuple[Source, TrainState]:
    """Open the images and build the state before the first step; nothing is written yet.

    Raises:
        ValueError: settings, data, model and layout do not fit each other."""
    validate_layout(config, runtime.world_size)
    if not (config.model.name and config.data.image_size):
        raise ValueError(
            "this config leaves its model or image size to --init; give what samovar.models.load.resolve makes"
        )
    source = open_source(config.data)
    if config.loss == "supcon":
        _check_pairs(source)
    state = build(config, runtime, num_classes=len(source.classes), channels=source.channels)
    for stage, section in zip(stages(config), ("optim", "head.optim"), strict=False):
        optim.check_warmup(stage.optim, num_steps(stage, len(source.train)), section)
    return source, state


def _check_pairs(source: Source) -> None:
    """Refuse classes that have nothing to compare an image with."""
    single = np.flatnonzero(np.bincount(source.train.labels, minlength=len(source.classes)) == 1)
    if len(single):
        raise ValueError(
            f"--loss supcon compares images of one class, and class {source.classes[single[0]]!r} of --data.source "
            f"{source.name} has one training image; add images to it or remove it"
        )


@dataclass(frozen=True)
class _Stage:
    """A part of the run with settings of its own, from one step of the run up to another."""

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
    config: Config, run: RunDir, runtime: Runtime, source: Source, state: TrainState
) -> Iterator[Progress]:
    """Train to the end from wherever `run` stands, evaluating and saving on the way.

    Args:
        source: the images, and
        state: the state before the first step, both as `prepare` returns them; a second stage goes
            on with another.

    Raises:
        BadImages: too many images cannot be read.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
        Diverged: `run.max_nonfinite` non-finite gradients in a row.
        OSError: the disk is full; the last checkpoint is intact."""
    parts = _stages(config, len(source.train))
    total = parts[-1].stop
    keeper = _Keeper(config, run, runtime, state)
    notes = keeper.restore(parts, source.classes) or state.notes
    images = {"train_images": float(len(source.train)), "val_images": float(len(source.val))}
    yield Progress("start", keeper.state.step, total, images, notes)
    with _signals() as stop:
        for part in parts:
            if part.first and part.first == keeper.state.step:
                keeper.state = next_stage(keeper.state, part.config, runtime)
            if keeper.state.step < part.stop:
                yield from _loop(part, source, runtime, keeper, stop, total)
    state = keeper.state
    evaluations = {f"best/{k}": v for k, v in state.best.items()} | {
        f"last/{k}": v for k, v in state.last.items()
    }
    yield Progress(
        "done", state.step, total, {**evaluations, "skipped": state.tally["skipped"].item()}
    )


def _loop(
    part: _Stage, source: Source, runtime: Runtime, keeper: _Keeper, stop: _Stop, total: int
) -> Iterator[Progress]:
    """Train a stage from wherever the state stands in it; it counts its own steps, and all else
    counts the run's."""
    config, state, length = part.config, keeper.state, part.stop - part.first
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
    # in the first stage alone: a curve of two losses would mean nothing
    watched = config.run.watch_every and runtime.is_main and part.first == 0
    watch = Watch(config, source, runtime.device) if watched else None
    clock = _Clock(config.data.batch_size, state.step)
    with contextlib.closing(stream):
        for step in steps(state, stream, objective, config, runtime, length, part.first):
            done = step.step - part.first
            boundary = done % every == 0 or done == length
            meeting = boundary or done % config.run.log_every == 0
            if watch and done % config.run.watch_every == 0:
                for record in watch.records(bare(state.wrapped), step.step, step.lr):
                    keeper.record(record)
            if meeting:
                yield Progress("train", step.step, total, keeper.log(step, clock, config))
            if boundary:
                yield Progress("val", step.step, total, _validate(config, source, runtime, keeper))
                keeper.save()
                clock.mark(step.step)
            if _agreed(stop, runtime, meeting):
                if not boundary:
                    keeper.save()
                raise Interrupted(stop.signum, step.step)


def _validate(
    config: Config, source: Source, runtime: Runtime, keeper: _Keeper
) -> dict[str, float]:
    """Evaluate, record it, and note it in the state where it is of a classifier."""
    state = keeper.state
    values: dict[str, float] = {"step": state.step}
    try:
        records = validate(config, source, runtime, state, keeper.run.bad_files)
    except NotFinite as error:
        raise Diverged(
            f"at step {state.step} {error}; lower --optim.lr or set --optim.clip-norm"
        ) from error
    for record in records:
        keeper.record(record)
        values[record.name] = record.value
    if "val/accuracy" in values:
        state.last = values
        if not state.best or values["val/accuracy"] > state.best["val/accuracy"]:
            state.best = values
    return values


class _Keeper:
    """What a run leaves on disk: records and checkpoints, written by the main rank alone."""

    def __init__(self, config: Config, run: RunDir, runtime: Runtime, state: TrainState) -> None:
        self.config, self.run, self.runtime, self.state = config, run, runtime, state
        self.fingerprint = fingerprint(config)
        self.sinks: list[Sink] = []

    def restore(self, parts: list[_Stage], classes: Sequence[str]) -> tuple[str, ...]:
        """Load the newest whole checkpoint, if any, and cut the records back to it; returns notes
        for the reader.

        What was saved at the border of two stages is the first one's.

        Raises:
            CheckpointError: there are checkpoints, and none can be used."""
        found, complaints = checkpoint.load_latest(self.run.checkpoints, self.fingerprint)
        if complaints and not found:
            raise checkpoint.CheckpointError(
                f"{complaints[0]}; no older checkpoint is whole; start anew with --config {self.run.config_path}"
            )
        notes = [f"{complaint}; using the one before" for complaint in complaints]
        if found:
            part = next(part for part in parts if found.step <= part.stop)
            if part.first:
                self.state = next_stage(self.state, part.config, self.runtime)
            restore(self.state, found)
            notes.append(f"resumed at step {found.step}")
        if self.runtime.is_main:
            self.run.rewind(self.state.step)
            history = "provenance.json" if not found else f"provenance-resumed-{found.step}.json"
            self.run.write_json(history, provenance(self.runtime))
            self.run.keep_classes(classes)
            self.sinks = open_sinks(self.config.run.loggers, self.run, self.config)
        return tuple(notes)

    def record(self, record: Record) -> None:
        """Append to the run's records and to every sink."""
        if self.runtime.is_main:
            self.run.append(record)
            for sink in self.sinks:
                sink(record)

    def log(self, step: Step, clock: _Clock, config: Config) -> dict[str, float]:
        """Read the tally back from the device and record it; the one host sync of the training
        loop."""
        loss = (
            "train/contrastive_loss" if config.loss == "supcon" else "train/loss"
        )  # nats that do not compare
        numbers = self.state.tally | {"grad_norm": step.grad_norm}
        tally = dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))
        values = {
            loss: tally["loss"] / max(tally["steps"], 1),
            "train/lr": step.lr,
            "train/grad_norm": tally["grad_norm"],
            "train/images_per_second": clock.rate(step.step),
            "train/skipped": tally["skipped"],
        }
        units = {loss: "nats", "train/images_per_second": "images/s"}
        for name, value in values.items():
            self.record(Record(name, value, units.get(name, ""), where={"step": step.step}))
        self.state.tally["loss"].zero_()
        self.state.tally["steps"].zero_()
        if tally["tripped"]:
            limit = self.config.run.max_nonfinite
            raise Diverged(
                f"gradients were not finite for {limit} steps in a row, up to step {tally['tripped']:.0f};"
                " lower --optim.lr, raise --optim.warmup-steps or set --optim.clip-norm"
            )
        return values

    def save(self) -> None:
        """Write a checkpoint, then point at the best one, then delete what is no longer kept."""
        if self.runtime.is_main:
            checkpoint.save(self.run.checkpoints, snapshot(self.state), self.fingerprint)
            best = self.state.best
            if best:
                replace_text(self.run.checkpoints / "best.json", json.dumps(best) + "\n")
            checkpoint.prune(
                self.run.checkpoints, self.config.run.keep, int(best["step"]) if best else None
            )


def snapshot(state: TrainState) -> Checkpoint:
    """The state as a checkpoint."""
    others: dict[str, Any] = {
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict() if state.scaler else {},
        "tally": {name: value.item() for name, value in state.tally.items()},
        "best": state.best,
        "last": state.last,
    }
    if state.memory.average or state.memory.component:
        others["sam"] = state.memory.state_dict()
    if state.projection is not None:
        others["projection"] = state.projection.state_dict()
    ema = state.ema.state_dict() if state.ema else {}
    if ema:  # kept out of the file of weights, which other programs load
        others["ema_updates"] = int(ema.pop("num_updates"))
    return Checkpoint(state.step, state.model.body.state_dict(), ema, others)


def restore(state: TrainState, found: Checkpoint) -> None:
    """Bring a freshly built state to where a checkpoint was taken, bit for bit."""
    state.model.body.load_state_dict(found.model)
    state.optimizer.load_state_dict(found.state["optimizer"])
    if "sam" in found.state:
        state.memory.load_state_dict(found.state["sam"])
    if state.projection is not None:
        state.projection.load_state_dict(found.state["projection"])
    if state.scaler:
        state.scaler.load_state_dict(found.state["scaler"])
    if state.ema:
        state.ema.load_state_dict(
            found.ema | {"num_updates": torch.tensor(found.state["ema_updates"])}
        )
    for name, value in found.state["tally"].items():
        state.tally[name].fill_(value)
    state.best, state.last = found.state["best"], found.state["last"]
    state.step = found.step


class _Clock:
    """Images per second since the last mark."""

    def __init__(self, batch_size: int, step: int) -> None:
        self.batch_size = batch_size
        self.mark(step)

    def mark(self, step: int) -> None:
        """Start counting from here, so that evaluation is left out."""
        self.step, self.since = step, time.perf_counter()

    def rate(self, step: int) -> float:
        """Images per second since the mark, which moves to here."""
        images = (step - self.step) * self.batch_size
        seconds = time.perf_counter() - self.since
        self.mark(step)
        return images / seconds


@dataclass
class _Stop:
    signum: int = 0


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    """Turn the first SIGINT or SIGTERM into a request; a second one acts at once."""
    stop = _Stop()

    def ask(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        signal.signal(signum, before[signal.Signals(signum)])

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        for signum in before:
            signal.signal(signum, ask)
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _agreed(stop: _Stop, runtime: Runtime, meeting: bool) -> bool:
    """True once every rank knows of the request; several ranks compare notes only at `meeting`
    points."""
    if runtime.world_size == 1:
        return stop.signum != 0
    if not meeting:
        return False
    asked = torch.tensor(stop.signum, device=runtime.device)
    dist.all_reduce(asked, dist.ReduceOp.MAX)
    stop.signum = int(asked.item())
    return stop.signum != 0
