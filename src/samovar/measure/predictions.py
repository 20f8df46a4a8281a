"""What a network predicts: its accuracy, the mistakes it is surest of, and examples picked evenly
over the classes."""

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

from samovar.config import Loss, MeasureConfig
from samovar.data.loader import Batch
from samovar.measure.accuracy import share
from samovar.measure.subject import Subject, arrays_name
from samovar.restore import evaluating
from samovar.runs.records import Record


@dataclass(frozen=True)
class Predicted:
    """What a network makes of n images."""

    images: Tensor
    """[n, C, H, W] in [0, 1]."""
    labels: Tensor
    predicted: Tensor
    """[n] the class of the largest logit."""
    probability: Tensor
    """[n] of the predicted class: softmax of the logits, or sigmoid under the sigmoid loss."""
    probability_true: Tensor
    """[n] of the true class."""
    loss: Tensor
    """[n] in nats, without label smoothing."""

    def __getitem__(self, rows: Tensor | slice) -> Predicted:
        return Predicted(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __add__(self, other: Predicted) -> Predicted:
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Predicted(*map(torch.cat, pairs))


def predict(model: nn.Module, batch: Batch, loss: Loss = "softmax") -> Predicted:
    """What the model makes of a batch, in eval mode; it comes back as it was.

    Raises:
        ValueError: labels that are no index of the logits."""
    with evaluating(model), torch.no_grad():
        logits = model(batch.images)
    highest = int(batch.labels.max())
    if logits.ndim != 2 or highest >= logits.shape[1]:
        raise ValueError(
            f"a label is {highest} and the model gives logits of shape {list(logits.shape)}; give a model with an "
            f"output of [batch, {highest + 1}] or more"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    predicted, true = logits.argmax(1), batch.labels[:, None]
    if loss == "softmax":
        shares, losses = logits.softmax(1), F.cross_entropy(logits, batch.labels, reduction="none")
    else:
        # each class but the true one costs log(1 + e^z), the true one log(1 + e^-z) = log(1 + e^z)
        # - z
        shares, losses = (
            logits.sigmoid(),
            (F.softplus(logits).sum(1) - logits.gather(1, true)[:, 0]),
        )
    probability, probability_true = (
        shares.gather(1, predicted[:, None])[:, 0],
        shares.gather(1, true)[:, 0],
    )
    return Predicted(batch.images, batch.labels, predicted, probability, probability_true, losses)


def pick(subject: Subject, config: MeasureConfig) -> Predicted:
    """What the network makes of a few images of the split, as many of each class as can be.

    Raises:
        ValueError: no image can be read."""
    few = subject.batches.few(config.pictures, config.seed)
    found = [predict(subject.model, batch, subject.settings["loss"]) for batch in few]
    if not found:
        raise ValueError(
            f"no image of the {subject.settings['split']} split can be read; check --source and --root"
        )
    return functools.reduce(operator.add, found)


def predictions(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Accuracy over the split; its worst mistakes, and as many images picked evenly over the
    classes."""
    loss: Loss = subject.settings["loss"]
    even = pick(subject, config)
    worst, correct, count = even[:0], 0, 0
    for batch in subject.batches:
        found = predict(subject.model, batch, loss)
        wrong = found.predicted != found.labels
        correct, count = correct + int((~wrong).sum()), count + len(batch)
        worst += found[wrong]
        worst = worst[worst.loss.argsort(descending=True, stable=True)[: config.pictures]]
    shown = worst + even
    columns = {field.name: getattr(shown, field.name).cpu().numpy() for field in fields(shown)[1:]}
    columns |= {"images": to_rgb(shown.images), "classes": np.array(subject.classes, dtype=np.str_)}
    columns["worst"] = np.arange(len(shown.labels)) < len(worst.labels)
    yield share(
        "predictions/accuracy", correct, count,
        settings={"pictures": config.pictures, "worst": "wrong ones of highest loss", "others": "even over classes"},
        cost={"forwards": len(subject.batches)}, arrays=save(arrays, "predictions", subject, config, columns),
    )  # fmt: skip


# --- pictures in files
# -----------------------------------------------------------------------------------------------


def to_rgb(images: Tensor) -> NDArray[np.uint8]:
    """[n, H, W, 3] in 0 to 255 of images [n, C, H, W] in [0, 1]; grey, or the mean of channels,
    where C is not 3."""
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

    Only the main rank writes. Args: as of `arrays_name`."""
    name = arrays_name(measurement, subject, config, title=title)
    if subject.runtime.is_main:
        arrays.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(arrays / name, **columns)
    return f"arrays/{name}"
