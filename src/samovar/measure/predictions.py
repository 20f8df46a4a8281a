"""Predictions of single images, and the measurement `predictions`: examples and worst mistakes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from samovar.anymodel.outputs import logits_of
from samovar.anymodel.restore import evaluating
from samovar.config import Loss, MeasureConfig
from samovar.data.loader import Batch
from samovar.measure.accuracy import share
from samovar.measure.subject import Subject, arrays_name
from samovar.runs.records import Record


@dataclass(frozen=True)
class Predicted:
    """Predictions of a network for n images."""

    images: Tensor
    """[n, C, H, W] in [0, 1]."""
    labels: Tensor
    predicted: Tensor
    """[n] class of the largest logit."""
    probability: Tensor
    """[n] probability of the predicted class: softmax, or sigmoid under the sigmoid loss."""
    probability_true: Tensor
    """[n] probability of the true class."""
    loss: Tensor
    """[n] in nats, without label smoothing."""

    def __getitem__(self, rows: Tensor | slice) -> Predicted:
        return Predicted(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __add__(self, other: Predicted) -> Predicted:
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Predicted(*map(torch.cat, pairs))


def predict(model: nn.Module, batch: Batch, loss: Loss = "softmax") -> Predicted:
    """Predict the images of a batch, in eval mode; the model is restored afterwards.

    Raises:
        ValueError: a label is no index of the logits."""
    with evaluating(model), torch.no_grad():
        logits = logits_of(model(batch.images))
    highest = int(batch.labels.max())
    if logits.ndim != 2 or highest >= logits.shape[1]:
        raise ValueError(
            f"a label is {highest} and the model gives logits of shape {list(logits.shape)}; "
            f"give a model with an output of [batch, {highest + 1}] or more"
        )
    # probabilities of half precision are too coarse to rank mistakes
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    predicted, true = logits.argmax(1), batch.labels[:, None]
    if loss == "softmax":
        shares = logits.softmax(1)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
    else:
        # each class but the true one costs log(1 + e^z), the true one log(1 + e^-z) = log(1 + e^z)
        # - z
        shares = logits.sigmoid()
        losses = F.softplus(logits).sum(1) - logits.gather(1, true)[:, 0]
    probability = shares.gather(1, predicted[:, None])[:, 0]
    probability_true = shares.gather(1, true)[:, 0]
    return Predicted(batch.images, batch.labels, predicted, probability, probability_true, losses)


def predict_classes(model: nn.Module, images: Tensor) -> Tensor:
    """Return the class of the largest logit of each image, [B], on the host.

    Raises:
        ValueError: logits are not finite."""
    logits = logits_of(model(images))
    if not bool(logits.isfinite().all()):
        raise ValueError("logits are not finite; check the model's weights")
    return logits.argmax(1).cpu()


def pick(subject: Subject, config: MeasureConfig) -> Predicted:
    """Predict `--pictures` images of the split, spread evenly over the classes.

    Raises:
        ValueError: no image can be read."""
    few = subject.batches.few(config.pictures, config.seed)
    found = [predict(subject.model, batch, subject.settings["loss"]) for batch in few]
    if not found:
        raise ValueError(
            f"no image of the {subject.settings['split']} split can be read; "
            "check --source and --root"
        )
    return functools.reduce(operator.add, found)


def predictions(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Measure the accuracy; save the worst mistakes, and as many images spread over the classes."""
    loss: Loss = subject.settings["loss"]
    even = pick(subject, config)
    worst, correct, count = even[:0], 0, 0
    for batch in subject.batches:
        found = predict(subject.model, batch, loss)
        wrong = found.predicted != found.labels
        correct, count = correct + int((~wrong).sum()), count + len(batch)
        worst += found[wrong]
        # cut after every batch, so that memory does not grow with the number of mistakes
        worst = worst[worst.loss.argsort(descending=True, stable=True)[: config.pictures]]
    shown = worst + even
    columns = {field.name: getattr(shown, field.name).cpu().numpy() for field in fields(shown)[1:]}
    columns |= {"images": to_rgb(shown.images), "classes": np.array(subject.classes, dtype=np.str_)}
    columns["worst"] = np.arange(len(shown.labels)) < len(worst.labels)
    yield share(
        "predictions/accuracy",
        correct,
        count,
        settings={
            "pictures": config.pictures,
            "worst": "wrong ones of highest loss",
            "others": "even over classes",
        },
        cost={"forwards": len(subject.batches)},
        arrays=save(arrays, "predictions", subject, config, columns),
    )


# --- pictures in files


def to_rgb(images: Tensor) -> NDArray[np.uint8]:
    """Return images [n, C, H, W] in [0, 1] as [n, H, W, 3] in 0 to 255.

    Where C is not 3, the mean over channels is shown as grey."""
    if images.shape[1] != 3:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    levels = images.detach().clamp(0, 1).mul(255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def save(
    arrays: Path,
    measurement: str,
    subject: Subject,
    config: MeasureConfig,
    columns: dict[str, Any],
    *,
    title: str = "",
) -> str:
    """Write columns into a measurement's file of arrays; return its path below the run folder.

    Only the main rank writes.

    Args:
        measurement, title: as in `arrays_name`.
        columns: arrays by name."""
    name = arrays_name(measurement, subject, config, title=title)
    if subject.runtime.is_main:
        arrays.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(arrays / name, **columns)
    return f"arrays/{name}"
