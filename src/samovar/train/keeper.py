"""Keep what a run leaves on disk: records, checkpoints, the log of its speed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np
import torch

from samovar.config import Config
from samovar.data.splits import Source
from samovar.runs import checkpoint, progress
from samovar.runs.loggers import open_loggers
from samovar.runs.progress import RunProgress
from samovar.runs.records import Record, RunDir, Sink, replace_text
from samovar.runtime import Runtime, provenance
from samovar.train import resume
from samovar.train.loop import Step, TrainState
from samovar.train.utilization import utilization_per_image

CLASS_COUNTS = "class_counts.json"
"""File of the run folder with the images of each class: classes, train, val."""


class Diverged(Exception):
    """Too many non-finite gradients in a row; the weights are those of the last finite step."""


class Keeper:
    """Writer of one run's folder; only the main rank writes."""

    def __init__(
        self, config: Config, run: RunDir, runtime: Runtime, *, trial: bool = False
    ) -> None:
        self.is_read = runtime.is_main and not trial
        """Whether a person reads the folder, not only another program."""
        self.config, self.run, self.runtime = config, run, runtime
        self.fingerprint = resume.fingerprint(config)
        self.sinks: list[Sink] = []
        self.total = 0
        """Steps of the whole run; known from `begin` on."""
        self.channels = 0
        """Channels of the images; known from `begin` on."""
        self._utilization: dict[str, float | None] = {}

    def begin(
        self, step: int, total: int, source: Source, notes: Sequence[str], *, resumed: bool
    ) -> None:
        """Prepare the folder for training from `step`, and open the loggers.

        Args:
            step: steps done so far.
            total: steps of the whole run.
            source: the images, whose classes and their sizes are kept.
            notes: how the data was read: splits, files left out, sizes of classes.
            resumed: the run goes on from a checkpoint."""
        if not self.runtime.is_main:
            return
        # what was recorded after the checkpoint will be recorded again
        self.run.rewind(step)
        # a branch starts from a checkpoint, and was not begun before
        again = resumed and (self.run.path / "provenance.json").exists()
        name = f"provenance-resumed-{step}.json" if again else "provenance.json"
        self.run.write_json(name, provenance(self.runtime) | {"data": list(notes)})
        self.run.keep_classes(source.classes)
        self.total, self.channels = total, source.channels
        if self.is_read:
            self.run.write_json(CLASS_COUNTS, _class_counts(source))
            progress.write(self.run, RunProgress("training", step, total))
        self.sinks = open_loggers(self.config.run.loggers, self.run, self.config)

    def record(self, record: Record) -> None:
        """Append a record to the run, and hand it to every logger."""
        if self.runtime.is_main:
            self.run.append(record)
            for sink in self.sinks:
                sink(record)

    def log(self, state: TrainState, step: Step, clock: Clock, config: Config) -> dict[str, float]:
        """Record loss, rate, gradient norm and speed since the last call, and return them.

        Args:
            config: the settings of the stage that `step` belongs to.

        Raises:
            Diverged: `run.max_nonfinite` gradients in a row were not finite."""
        # contrastive and classification losses do not compare, so they are two curves
        loss = "train/contrastive_loss" if config.loss == "supcon" else "train/loss"
        # one transfer for all numbers: the only host sync of the training loop
        numbers = state.tally | {"grad_norm": step.grad_norm}
        climbs = state.memory.sharpness.get("climbs")
        numbers |= {} if climbs is None else {"climbs": climbs.to(step.grad_norm)}
        tally = dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))
        values = {
            loss: tally["loss"] / max(tally["steps"], 1),
            "train/lr": step.lr,
            "train/grad_norm": tally["grad_norm"],
            "train/images_per_second": clock.rate(step.step),
            "train/skipped": tally["skipped"],
        }
        if "climbs" in tally:  # what AE-SAM's second passes have cost so far
            values["train/climbs"] = tally["climbs"]
        if self.runtime.is_main and (per_image := self._per_image(state, config)):
            values["train/mfu"] = values["train/images_per_second"] * per_image
        units = {loss: "nats", "train/images_per_second": "images/s"}
        for name, value in values.items():
            self.record(Record(name, value, units.get(name, ""), where={"step": step.step}))
        state.tally["loss"].zero_()
        state.tally["steps"].zero_()
        if tally["tripped"]:
            raise Diverged(
                f"gradients were not finite for {self.config.run.max_nonfinite} steps in a row, "
                f"up to step {tally['tripped']:.0f}; "
                "lower --optim.lr, raise --optim.warmup-steps or set --optim.clip-norm"
            )
        return values

    def _per_image(self, state: TrainState, config: Config) -> float | None:
        """Return the utilization of one image a second; counted once for each stage."""
        key = config.loss
        if key not in self._utilization:
            here = (state.model, config, self.runtime, self.channels)
            self._utilization[key] = utilization_per_image(*here)
        return self._utilization[key]

    def divided(self, state: TrainState, config: Config) -> None:
        """Record that memory ran out: the images per pass from this step on."""
        settings = {"batch_size": config.data.batch_size}
        where = {"step": state.step}
        self.record(Record("train/micro_batch", state.micro_batch, where=where, settings=settings))

    def stopped_early(self, state: TrainState, config: Config) -> None:
        """Record the step at which patience ran out."""
        settings = {"patience": config.run.patience, "best_step": int(state.best["step"])}
        where = {"step": state.step}
        self.record(Record("train/stopped_early", state.step, where=where, settings=settings))

    def end(self, step: int, total: int) -> None:
        """Note that the run has come to its end."""
        if self.is_read:
            progress.write(self.run, RunProgress("done", step, total))

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, name the best one, delete those no longer kept."""
        if not self.runtime.is_main:
            if state.sharding:  # the main rank gathers what it writes
                resume.snapshot(state, keep=False)
            return
        folder, best = self.run.checkpoints, state.best
        checkpoint.save(folder, resume.snapshot(state), self.fingerprint)
        # in this order a crash at any point leaves a best.json whose checkpoint exists
        if best:
            replace_text(folder / "best.json", json.dumps(best) + "\n")
        checkpoint.prune(folder, self.config.run.keep, int(best["step"]) if best else None)
        if self.is_read:
            progress.write(self.run, RunProgress("training", state.step, self.total))


def _class_counts(source: Source) -> dict[str, list[str] | list[int]]:
    """Return names, training images and validation images, in the order of the logits."""
    train, val = (
        np.bincount(split.labels, minlength=len(source.classes)).tolist()
        for split in (source.train, source.val)
    )
    return {"classes": list(source.classes), "train": train, "val": val}


class Clock:
    """Stopwatch of training speed."""

    def __init__(self, batch_size: int, step: int) -> None:
        self.batch_size = batch_size
        self.mark(step)

    def mark(self, step: int) -> None:
        """Start counting at this step; called after an evaluation, to leave out its time."""
        self.step, self.since = step, time.perf_counter()

    def rate(self, step: int) -> float:
        """Return images per second since the mark, and move the mark to this step."""
        images = (step - self.step) * self.batch_size
        seconds = time.perf_counter() - self.since
        self.mark(step)
        return images / seconds
