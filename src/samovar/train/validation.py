"""What a run is judged by while it trains: loss and accuracy on held-out images, or its features
until it classifies.

All ranks call these functions together, as they share the images."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from samovar.config import Config, MeasureConfig
from samovar.data.loader import Batch, eval_batches
from samovar.data.splits import Source, Split, evenly
from samovar.measure.features import features, knn_guess
from samovar.objectives import make_objective
from samovar.runs.records import Record
from samovar.runtime import Runtime
from samovar.train.evaluation import evaluate
from samovar.train.loop import TrainState

MOST_NEIGHBOURS = 5000
"""Training images, evenly per class, that the features of held-out ones are compared with."""
K, TEMPERATURE = MeasureConfig.knn_k, MeasureConfig.knn_temperature


def validate(
    config: Config,
    source: Source,
    runtime: Runtime,
    state: TrainState,
    bad_files: Path | None = None,
) -> list[Record]:
    """What the validation split says of the state; BatchNorm's statistics become those of rank 0 on
    every rank.

    Under `supcon` nothing is said of the classifier, which does not learn yet.

    Raises:
        BadImages: too many images cannot be read.
        ValueError: features that are not finite."""
    if runtime.world_size > 1:
        for buffer in (
            state.model.buffers()
        ):  # BatchNorm statistics are each rank's own; rank 0's are what is saved
            dist.broadcast(buffer, 0)
    judge = _by_features if config.loss == "supcon" else _by_classifier
    return judge(config, source, runtime, state, bad_files)


def _by_classifier(
    config: Config, source: Source, runtime: Runtime, state: TrainState, bad_files: Path | None
) -> list[Record]:
    """Loss and accuracy of the averaged weights where there are any, else of the plain ones."""
    objective = make_objective(replace(config, label_smoothing=0.0), len(source.classes))
    weights = state.ema.swapped(state.model.body) if state.ema else contextlib.nullcontext()
    with weights:
        result = evaluate(
            state.model, _share(source.val, "val", config, runtime, bad_files), objective, runtime
        )
    where = {"split": "val", "step": state.step}
    settings = {"loss": config.loss, "ema": bool(state.ema)}
    stderr = _stderr(result.accuracy, result.n)
    return [
        Record("val/loss", result.loss, "nats", n=result.n, where=where, settings=settings),
        Record("val/accuracy", result.accuracy, "1", stderr, result.n, where, settings),
    ]


def _by_features(
    config: Config, source: Source, runtime: Runtime, state: TrainState, bad_files: Path | None
) -> list[Record]:
    """Accuracy of the votes of training images near in feature space, none of them augmented."""
    near = source.train.take(evenly(source.train.labels, MOST_NEIGHBOURS, config.data.split_seed))
    with runtime.autocast():
        bank = features(state.model, _share(near, "train", config, runtime, bad_files))
        found, labels = features(state.model, _share(source.val, "val", config, runtime, bad_files))
    known, classes = (_of_all_ranks(part, runtime) for part in bank)
    correct = knn_guess(known, classes, found, k=K, temperature=TEMPERATURE) == labels
    counts = torch.tensor([correct.sum(), len(correct)], device=runtime.device)
    if runtime.world_size > 1:
        dist.all_reduce(counts)
    right, n = counts.tolist()
    where = {"split": "val", "step": state.step}
    settings = {"k": K, "temperature": TEMPERATURE, "train_images": len(known)}
    return [Record("val/knn_accuracy", right / n, "1", _stderr(right / n, n), n, where, settings)]


def _share(
    split: Split, role: str, config: Config, runtime: Runtime, bad_files: Path | None
) -> Generator[Batch, None, None]:
    return eval_batches(
        split,
        config.data,
        batch_size=min(config.data.batch_size, 512),
        device=runtime.device,
        rank=runtime.rank,
        world_size=runtime.world_size,
        bad_files=bad_files,
        role=role,
    )


def _of_all_ranks(rows: Tensor, runtime: Runtime) -> Tensor:
    if runtime.world_size == 1:
        return rows
    parts: list[Tensor] = [rows] * runtime.world_size
    dist.all_gather_object(
        parts, rows
    )  # not all_gather: shares differ by an image, or by more where some are lost
    return torch.cat(parts)


def _stderr(share: float, n: int) -> float:
    return float((share * (1 - share) / n) ** 0.5)
