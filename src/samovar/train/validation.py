"""Validate a run while it trains: by loss and accuracy, or by its features before it classifies.

All ranks call these functions together, because each evaluates its part of the images."""

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
"""Most training images, evenly per class, whose features vote on those of held-out images."""
K, TEMPERATURE = MeasureConfig.knn_k, MeasureConfig.knn_temperature


def validate(
    config: Config,
    source: Source,
    runtime: Runtime,
    state: TrainState,
    bad_files: Path | None = None,
) -> list[Record]:
    """Evaluate the state on the validation split.

    Under `supcon`, where the classifier does not learn yet, the features are evaluated. On several
    ranks the BatchNorm statistics of rank 0 replace those of the others.

    Returns:
        Records of `val/loss` and `val/accuracy`, or of `val/knn_accuracy`.

    Raises:
        BadImages: too many images cannot be read.
        NotFinite: the features are not finite."""
    if runtime.world_size > 1:
        # each rank has its own BatchNorm statistics, and a checkpoint saves those of rank 0
        for buffer in state.model.buffers():
            dist.broadcast(buffer, 0)
    judge = _by_features if config.loss == "supcon" else _by_classifier
    return judge(config, source, runtime, state, bad_files)


def _by_classifier(
    config: Config, source: Source, runtime: Runtime, state: TrainState, bad_files: Path | None
) -> list[Record]:
    """Record loss and accuracy, of the averaged weights if the run keeps an average."""
    # smoothed targets raise the loss, so runs with and without them would not compare
    objective = make_objective(replace(config, label_smoothing=0.0), len(source.classes))
    weights = state.ema.swapped(state.model.body) if state.ema else contextlib.nullcontext()
    with weights:
        images = _rank_batches(source.val, "val", config, runtime, bad_files)
        result = evaluate(state.model, images, objective, runtime)
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
    """Record the accuracy of a vote of the nearest training images, without augmentation."""
    near = source.train.take(evenly(source.train.labels, MOST_NEIGHBOURS, config.data.split_seed))
    voters = _rank_batches(near, "train", config, runtime, bad_files)
    judged = _rank_batches(source.val, "val", config, runtime, bad_files)
    with runtime.autocast():
        bank = features(state.model, voters)
        found, labels = features(state.model, judged)
    # every rank judges its own part of the validation images by the voters of all ranks
    known, classes = (_from_all_ranks(part, runtime) for part in bank)
    correct = knn_guess(known, classes, found, k=K, temperature=TEMPERATURE) == labels
    counts = torch.tensor([correct.sum(), len(correct)], device=runtime.device)
    if runtime.world_size > 1:
        dist.all_reduce(counts)
    right, n = counts.tolist()
    where = {"split": "val", "step": state.step}
    settings = {"k": K, "temperature": TEMPERATURE, "train_images": len(known)}
    return [Record("val/knn_accuracy", right / n, "1", _stderr(right / n, n), n, where, settings)]


def _rank_batches(
    split: Split, role: str, config: Config, runtime: Runtime, bad_files: Path | None
) -> Generator[Batch, None, None]:
    """Yield this rank's part of a split."""
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


def _from_all_ranks(rows: Tensor, runtime: Runtime) -> Tensor:
    if runtime.world_size == 1:
        return rows
    parts: list[Tensor] = [rows] * runtime.world_size
    # not all_gather: ranks differ by an image, or by more where images are unreadable
    dist.all_gather_object(parts, rows)
    return torch.cat(parts)


def _stderr(share: float, n: int) -> float:
    return float((share * (1 - share) / n) ** 0.5)
