"""The subject of a measurement: a model with its weights, and images without augmentation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samovar import config as configs
from samovar.config import Config, DataConfig, MeasureConfig, ModelConfig
from samovar.data.loader import Batch, eval_batches
from samovar.data.sources import open_source
from samovar.data.splits import Split, evenly, in_proportion
from samovar.measure import catalog
from samovar.measure.subject_model import check_fits, created, normalized
from samovar.models import table, timm_folder, trust
from samovar.models.factory import describe
from samovar.models.open import Opened, open_model
from samovar.models.table import has_constructor
from samovar.models.tensor_files import SUFFIXES
from samovar.objectives import make_objective
from samovar.runs.records import RunDir
from samovar.runtime import Runtime


@dataclass(frozen=True)
class Batches:
    """A split's images, cropped as in evaluation; every pass reads them again."""

    split: Split
    config: DataConfig
    batch_size: int
    device: torch.device
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[Batch]:
        return eval_batches(
            self.split,
            self.config,
            batch_size=self.batch_size,
            device=self.device,
            rank=self.rank,
            world_size=self.world_size,
        )

    def few(self, count: int, seed: int) -> Batches:
        """Return `count` of the images (or all, if fewer), spread evenly over the classes.

        So is every first part of them, such as the first half."""
        return replace(self, split=self.split.take(evenly(self.split.labels, count, seed)))

    def share(self, runtime: Runtime) -> Batches:
        """Return the rank's part of the images."""
        return replace(self, rank=runtime.rank, world_size=runtime.world_size)

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)


@dataclass(frozen=True)
class Subject:
    """A model, the images of its loss, and the protocol that every record states."""

    name: str
    model: nn.Module
    batches: Batches
    settings: dict[str, Any]
    """Everything that changes the numbers: checkpoint, images, loss, mode, seed."""
    where: dict[str, Any]
    """Step and split, for the records."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    runtime: Runtime
    """Ranks share the products of the Hessian; each rank computes everything else in full."""
    run: RunDir | None = None
    """The run that the weights come from; None for a model by name."""
    config: Config = field(default_factory=Config)
    """Settings of the run, or of the model by name."""
    train: Batches | None = None
    """The training images, whatever the split of `batches`; None where there are none."""
    notes: tuple[str, ...] = ()
    """Lines for the reader: the normalization of images, what was resized."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss [] over a batch, without label smoothing."""
        # losses of models are comparable only without it
        settings = replace(self.config, loss=self.settings["loss"], label_smoothing=0.0)
        return make_objective(settings, len(self.classes))(model, batch).value


def arrays_name(
    measurement: str, subject: Subject, config: MeasureConfig, *, title: str = ""
) -> str:
    """Return the name of a measurement's file of arrays, another one for every protocol.

    No record then loses its arrays to a later one.

    Args:
        title: begins the name; empty takes that of the measurement."""
    protocol = protocol_digest(measurement, subject, config)
    where = f"step{subject.where.get('step', 0)}-{subject.settings['split']}"
    return f"{title or measurement}-{where}-{protocol}.npz"


def protocol_digest(measurement: str, subject: Subject, config: MeasureConfig) -> str:
    """Return 8 characters that change with the subject and with each setting that is used."""
    # only the settings that are used: others would give the same numbers another file
    protocol = [subject.settings, subject.where, catalog.request(measurement, config)]
    text = json.dumps(protocol, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def open_subject(name: str, config: MeasureConfig, runtime: Runtime) -> Subject:
    """Open a run folder, trained weights from elsewhere, or a model by name at initialisation.

    Args:
        name: of the folder, file or model.
        config: chooses the checkpoint, the images and the loss.

    Raises:
        ValueError: `name` is none of these, the checkpoint is not there, or the data does not
            fit."""
    folder = Path(name)
    if (folder / "config.json").is_file() and not timm_folder.is_one(folder):
        run = RunDir.open(folder)
        if config.model:
            raise ValueError(
                f"--model {config.model}: {name} is a run, which knows its network; "
                "leave --model out"
            )
        if config.mean or config.std:
            raise ValueError(
                f"--mean, --std: {name} is a run, which knows its normalization; leave them out"
            )
        saved = configs.load(run.config_path)
        trust.refuse(saved.model.name, run.config_path)
        return _subject(name, saved, config, runtime, run)
    if folder.exists() or folder.suffix.lower() in SUFFIXES or config.checkpoint == "pretrained":
        return _opened_subject(name, config, runtime)
    if config.model:
        raise ValueError(
            f"--model {config.model}: {name} is a network at its initialisation; "
            "add --checkpoint pretrained"
        )
    return _subject(name, _config_of_model(name, config), config, runtime, None)


def _opened_subject(name: str, config: MeasureConfig, runtime: Runtime) -> Subject:
    """Open trained weights that belong to no run, with their classifier."""
    if config.checkpoint not in ("best", "pretrained"):
        raise ValueError(
            f"--checkpoint {config.checkpoint}: {name} is no run and has no others; "
            "leave --checkpoint out"
        )
    opened = open_model(name, name=config.model, image_size=config.image_size)
    data = DataConfig(image_size=opened.image_size)
    data = replace(data, source=config.source or data.source)
    return _subject(
        name, Config(recipe="", model=opened.config, data=data), config, runtime, None, opened
    )


def _config_of_model(name: str, config: MeasureConfig) -> Config:
    """Return settings for a network outside any run: its own image size, the flags' data."""
    # images of the size that the network is made for, even where those of the data are smaller
    row = table.MODELS.get(name)
    size = config.image_size or (row.image_size if row else 0)
    if not size:
        size = describe(name).image_size if ":" not in name else 224
    data = DataConfig(image_size=size)
    return Config(
        recipe="",
        model=ModelConfig(name=name),
        data=replace(data, source=config.source or data.source),
    )


def _subject(
    name: str,
    base: Config,
    config: MeasureConfig,
    runtime: Runtime,
    run: RunDir | None,
    opened: Opened | None = None,
) -> Subject:
    data = base.data
    if run and config.image_size not in (0, data.image_size):
        raise ValueError(
            f"--image-size {config.image_size}: {name} was trained at {data.image_size} px; "
            "leave --image-size out"
        )
    if config.source:
        # shares of the run's own data mean nothing for other images
        data = replace(data, source=config.source, fraction=1.0, tune_share=0.0)
    data = replace(data, root=config.root or data.root, workers=config.workers)
    source = open_source(data)
    title = config.split or "train"
    split = source.train if title == "train" else source.val
    if config.images and config.images < len(split):
        split = split.take(in_proportion(split.labels, config.images, config.seed))
    # weights from elsewhere come with a classifier; a run's network is made for the source
    if opened:
        check_fits(opened, source)
        model, pixels = normalized(opened.model, base.model, config, source, opened.normalization)
        weights, step, notes = {"weights": opened.notes[0]}, 0, opened.notes[1:]
        if opened.notes[0] != opened.name:  # which of the tensors of a file
            notes = (f"measures {opened.notes[0]}", *notes)
    else:
        model, pixels, weights, step = created(name, replace(base, data=data), config, run, source)
        notes = ()
    # a run's config has its normalization, and is what its records are of
    if run is None:
        base = replace(base, model=replace(base.model, mean=pixels.mean, std=pixels.std))
        weights = weights | pixels.settings
        # networks by their name alone have no weights whose normalization could be missed
        chosen = opened or config.mean or config.std or has_constructor(base.model.name)
        notes = (*notes, pixels.line) if chosen else notes
    settings = {
        "model": base.model.name,
        **weights,
        "source": data.source,
        "split": title,
        "images": len(split),
        "augmentation": "none",
        "mode": "eval",
        "loss": config.loss,
        "weight_decay_in_loss": False,
        "image_size": data.image_size,
        "seed": config.seed,
    }
    if data.tune_share:
        settings["tune_share"] = data.tune_share
    batches = Batches(split, data, config.batch_size, runtime.device)
    train = replace(batches, split=source.train)
    where = {"split": title} | ({"step": step} if run else {})
    model = model.to(runtime.device).eval()
    classes = tuple(source.classes)
    return Subject(name, model, batches, settings, where, classes, runtime, run, base, train, notes)
