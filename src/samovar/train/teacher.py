"""Teachers of the trajectory loss: the average of the weights (MESA), or earlier logits (SAF)."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from samovar.anymodel.devices import to_device
from samovar.config import Config
from samovar.config.settings import SamConfig
from samovar.data.draws import Plan
from samovar.data.loader import Batch
from samovar.models.factory import Classifier
from samovar.objectives import Loss, Objective
from samovar.objectives.trajectory import trajectory_loss
from samovar.runs.checkpoint import CheckpointError
from samovar.runtime import Runtime
from samovar.train.optim import Ema

MOST_IN_MEMORY = 2**30
"""Bytes of logits that are kept on the device and in checkpoints; more are a memory map."""

FILE = "logits.bin"
"""Memory map in the run folder."""


def teacher_of(config: Config, model: Classifier) -> Teacher | None:
    """Return the teacher that a config names, at the start of a run; None if there is none."""
    makers: dict[str, Callable[[SamConfig, Classifier], Teacher]] = {
        "average": AverageTeacher,
        "earlier": EarlierTeacher,
    }
    name = config.sam.teacher
    return None if name == "none" else makers[name](config.sam, model)


def check_lag(config: Config, num_images: int) -> None:
    """Refuse a batch in which an image may need logits that the same step makes.

    Raises:
        ValueError: names the flags and both numbers."""
    sam, size = config.sam, config.data.batch_size
    # where batches straddle epochs, an image may be the last of one and the first of the next
    lag = sam.teacher_lag - (num_images % size > 0)
    if sam.teacher == "earlier" and size > lag * num_images:
        raise ValueError(
            f"--data.batch-size {size} of {num_images} images may hold an image twice within "
            f"--sam.teacher-lag {sam.teacher_lag} epochs; give a larger lag or a smaller batch"
        )


class Teacher:
    """Gives each image of a batch the logits that the network should stay close to."""

    def __init__(self, settings: SamConfig) -> None:
        self.settings = settings

    def follow(
        self,
        stream: Generator[Batch, None, None],
        config: Config,
        runtime: Runtime,
        num_images: int,
        first: int,
        run: Path,
    ) -> Generator[Batch, None, None]:
        """Yield the batches of a run with the index and the epoch of each image.

        Args:
            stream: the batches of this rank.
            config: the settings of the stage.
            runtime: rank and number of ranks.
            num_images: images of the training split.
            first: the step of the first batch.
            run: the run's folder."""
        self.begin(num_images, config, run, is_main=runtime.is_main)
        layout = (runtime.rank, runtime.world_size, config.data.views)
        plan = Plan(config.seed, num_images, config.data.batch_size, *layout)
        with closing(stream):
            for step, batch in enumerate(stream, start=first):
                positions = plan.positions(step)
                epochs = torch.from_numpy(positions // plan.views // plan.num_images)
                index = torch.from_numpy(plan.images(positions))
                yield replace(batch, index=index, epoch=epochs)

    def begin(self, num_images: int, config: Config, run: Path, *, is_main: bool) -> None:
        """Prepare for the images of a run, after a resume as well."""

    def teach(self, batch: Batch, config: Config, runtime: Runtime) -> Batch:
        """Return the batch with logits of the teacher; unchanged before there are any."""
        raise NotImplementedError

    def objective(self, objective: Objective) -> Objective:
        """Return the objective plus the weighted trajectory loss."""

        def taught(model: nn.Module, batch: Batch) -> Loss:
            loss = objective(model, batch)
            self.see(batch, loss.logits)
            if batch.teacher is None:
                return loss
            sam = self.settings
            further = trajectory_loss(
                loss.logits,
                batch.teacher,
                sam.teacher_tau,
                tau_squared=sam.teacher_tau_squared,
                taught=batch.taught,
            )
            return Loss(loss.value + sam.teacher_weight * further, loss.logits)

        return taught

    def see(self, batch: Batch, logits: Tensor) -> None:
        """Take note of the logits of a pass."""

    def update(self, model: Classifier) -> None:
        """Learn from a step, after the optimizer's."""

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and tensors for a checkpoint."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        raise NotImplementedError

    def _since(self, batch: Batch, first: float) -> Tensor | None:
        """Return which images are past an epoch [B], on the host; None if none is."""
        if batch.epoch is None:  # made images, of no epoch
            return torch.ones(len(batch), dtype=torch.bool)
        found = batch.epoch >= first
        return found if bool(found.any()) else None


class AverageTeacher(Teacher):
    """The running average of the weights, without dropout: MESA."""

    def __init__(self, settings: SamConfig, model: Classifier) -> None:
        super().__init__(settings)
        self.module = deepcopy(model).requires_grad_(False).eval()
        self.ema = Ema(model.body, settings.teacher_decay)
        # the average is written into the copy's own weights
        self.ema.weights = dict(self.module.body.state_dict())

    @torch.no_grad()
    def teach(self, batch: Batch, config: Config, runtime: Runtime) -> Batch:
        """Return the batch with the average's logits, from `teacher_start` on."""
        on = self._since(batch, self.settings.teacher_start)
        if on is None:
            return batch
        with runtime.autocast():
            pieces = torch.split(batch.images, config.run.micro_batch or len(batch))
            logits = torch.cat([self.module(piece) for piece in pieces])
        return replace(batch, teacher=logits, taught=to_device(on, logits.device))

    def update(self, model: Classifier) -> None:
        """Move the average towards the weights."""
        self.ema.update(model.body)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and the number of updates."""
        return dict(self.ema.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.ema.load_state_dict(state)


class EarlierTeacher(Teacher):
    """The image's own logits of some epochs before, kept by its index: SAF.

    All ranks keep the logits of all images, since an image comes to another rank in each epoch.
    Up to `MOST_IN_MEMORY` bytes they lie on the device and in checkpoints. More lie in a file of
    the run folder, with room for the epochs that a resume repeats; every step then waits for
    the device."""

    def __init__(self, settings: SamConfig, model: Classifier) -> None:
        super().__init__(settings)
        self.lag = settings.teacher_lag
        self.slots = self.lag
        self.table: Tensor | None = None
        """[slots, images, K]: the logits of epoch e are in slot e % slots."""
        self.tags: Tensor | None = None
        """[slots, images] int64: 1 + the epoch of each entry; of a file only."""
        self.path: Path | None = None
        self.kind: dict[str, Any] = {}
        """Of a file: the number of classes and the type of its entries."""
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.num_images, self.spare, self.is_main = 0, 0, True

    def begin(self, num_images: int, config: Config, run: Path, *, is_main: bool) -> None:
        """Take the number of images, and the folder of a table that is too large for memory."""
        self.num_images, self.path, self.is_main = num_images, run / FILE, is_main
        interval = config.run.eval_every * config.data.batch_size / num_images
        # a resume may go back `keep` checkpoints, and an epoch may be begun
        self.spare = 1 + math.ceil(max(1.0, interval)) * (config.run.keep + 1)

    def teach(self, batch: Batch, config: Config, runtime: Runtime) -> Batch:
        """Return the batch with the logits of `teacher_lag` epochs before, where there are any."""
        self.seen = []  # of a try that ran out of memory
        if batch.epoch is None or batch.index is None:
            return batch
        on = self._since(batch, max(self.settings.teacher_start, self.lag))
        if on is None:
            return batch
        if self.table is None:  # resumed beside a file
            self._open(*self._sizes())
        assert self.table is not None
        device = batch.images.device
        rows = ((batch.epoch - self.lag) % self.slots, batch.index)
        if self.tags is None:
            self.table = to_device(self.table, device)  # a resumed one may be elsewhere
        else:
            held = self.tags[rows] == 1 + batch.epoch - self.lag
            if not bool(held[on].all()):
                raise CheckpointError(
                    f"{self.path} lacks logits of {self.lag} epochs before; it was changed, or the "
                    "checkpoint is older than what it holds: start the run anew"
                )
        logits = self.table[tuple(to_device(each, self.table.device) for each in rows)]
        return replace(batch, teacher=to_device(logits, device), taught=to_device(on, device))

    def see(self, batch: Batch, logits: Tensor) -> None:
        """Keep the logits until the step is done."""
        if batch.epoch is not None and batch.index is not None and logits.requires_grad:
            self.seen.append((batch.epoch, batch.index, logits.detach()))

    def update(self, model: Classifier) -> None:
        """Write the step's logits, of all ranks, to the table."""
        if not self.seen:
            return
        logits = torch.cat([each for _, _, each in self.seen])
        epochs, index = (
            to_device(torch.cat([row[i] for row in self.seen]), logits.device) for i in (0, 1)
        )
        self.seen = []
        epochs, index, logits = (_of_all_ranks(each) for each in (epochs, index, logits))
        if self.table is None:
            self._open(logits.shape[1], logits.dtype, logits.device)
        assert self.table is not None
        if self.tags is None:
            self.table[epochs % self.slots, index] = logits
        elif self.is_main:
            epochs, index = epochs.cpu(), index.cpu()
            self.table[epochs % self.slots, index] = logits.cpu()
            self.tags[epochs % self.slots, index] = 1 + epochs

    def _open(self, classes: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make the table, or map its file, which is made if it is missing."""
        numbers = self.slots * self.num_images * classes
        if numbers * dtype.itemsize <= MOST_IN_MEMORY or self.path is None:
            shape = (self.slots, self.num_images, classes)
            self.table = torch.zeros(shape, dtype=dtype, device=device)
            return
        self.slots = self.lag + self.spare
        shape = (self.slots, self.num_images, classes)
        self.table = _mapped(self.path, shape, dtype)
        self.tags = _mapped(self.path.with_suffix(".epochs"), shape[:2], torch.int64)
        self.kind = {"classes": classes, "dtype": str(dtype).removeprefix("torch.")}

    def _sizes(self) -> tuple[int, torch.dtype, torch.device]:
        return self.kind["classes"], getattr(torch, self.kind["dtype"]), torch.device("cpu")

    def state_dict(self) -> dict[str, Any]:
        """Return the table, or of a file its form alone."""
        if self.table is None:
            return {}
        return {"table": self.table} if self.tags is None else dict(self.kind)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`; the table keeps the device that it was saved from."""
        if "table" in state:
            self.table = state["table"].clone()
        elif state:  # its file is opened by the first step
            self.kind = dict(state)


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype).view(shape)


def _of_all_ranks(tensor: Tensor) -> Tensor:
    """Return the rows of all ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
