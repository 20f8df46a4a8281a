"""Accuracy of a classifier with confidence intervals, and calibration of its probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samovar.anymodel import outputs
from samovar.anymodel.restore import evaluating
from samovar.config import MeasureConfig
from samovar.data.loader import Batch
from samovar.measure.subject import Subject, arrays_name
from samovar.runs.records import Record

NUM_BINS = 15
"""Bins of confidence, as in Guo et al., arXiv:1706.04599."""


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's interval for a share of n independent trials, of 95 % by default.

    Its coverage holds near 0 and 1 and for small n too.

    Args:
        z: half width of the interval in standard errors of a normal distribution.

    Raises:
        ValueError: no trials, or more successes than trials.

    Source: Wilson (1927)."""
    from scipy.stats import binomtest  # takes a second to import

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"{successes} successes of {n} trials are no share; give 0 <= successes <= n, n >= 1"
        )
    # SciPy takes the probability within +- z
    confidence = math.erf(z / math.sqrt(2))
    found = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def top_k(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Return True for each image whose label is among the k highest logits, [n] bool.

    Of equal logits the lower class comes first.

    Args:
        logits: [n, K].
        labels: [n] class indices."""
    # counted and not sorted: the order of equal logits in a sort depends on the device
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return ahead.sum(1) < k


def any_of(logits: Tensor, labels: Sequence[Sequence[int]]) -> Tensor:
    """Return True for each image whose highest logit is one of its labels, [m] bool.

    Images without labels are left out, as in the scoring of ReaL.

    Args:
        logits: [n, K].
        labels: class indices of each image.

    Raises:
        ValueError: more or fewer lists of labels than images, or all of them empty.

    Source: Beyer et al., arXiv:2006.07159."""
    if len(labels) != len(logits):
        raise ValueError(
            f"{len(labels)} lists of labels for {len(logits)} images; give one for each image"
        )
    found = logits.argmax(1).tolist()
    right = [guess in set(each) for guess, each in zip(found, labels, strict=True) if len(each)]
    if not right:
        raise ValueError(
            "every list of labels is empty, so there is nothing to score; "
            "give the labels of this set"
        )
    return torch.tensor(right)


@dataclass(frozen=True)
class Calibration:
    """Accuracy by confidence, the highest probability, in bins of equal width over [0, 1]."""

    ece: float
    """Expected calibration error: mean over images of |accuracy - confidence| of their bin."""
    edges: np.ndarray
    """[bins + 1] edges of the bins."""
    confidence: np.ndarray
    """[bins] mean confidence, nan for an empty bin."""
    accuracy: np.ndarray
    """[bins] accuracy, nan for an empty bin."""
    counts: np.ndarray
    """[bins] number of images."""


def calibration(logits: Tensor, labels: Tensor, num_bins: int = NUM_BINS) -> Calibration:
    """Compute the reliability curve of softmax probabilities and its expected calibration error.

    A bin is open below and closed above, as in Guo et al. Few images per bin, or many bins, bias
    the error upwards.

    Args:
        logits: [n, K], n >= 1.
        labels: [n] class indices.
        num_bins: >= 1.

    Source: Naeini et al. (2015), Guo et al., arXiv:1706.04599."""
    # float64, since confidences near 1 are the usual case and float32 rounds them together
    confidence, guess = logits.cpu().double().softmax(1).max(1)
    right = (guess == labels.cpu()).double().numpy()
    sure = confidence.numpy()
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 of an empty bin is nan
        means = np.bincount(bins, sure, num_bins) / counts
        rates = np.bincount(bins, right, num_bins) / counts
    return Calibration(
        float(np.nansum(counts * np.abs(rates - means)) / len(sure)), edges, means, rates, counts
    )


def logits_of(model: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Return logits [n, K] in float32 and labels [n] of all batches, on the host.

    The model is in eval mode inside and is restored afterwards. Cost: one forward pass.

    Raises:
        ValueError: no batches, or logits that are not finite."""
    rows, labels = [], []
    with evaluating(model), torch.no_grad():
        for batch in batches:
            rows.append(outputs.logits_of(model(batch.images)).float())
            labels.append(batch.labels)
    if not rows:
        raise ValueError("there are no images; give at least one batch")
    logits = torch.cat(rows).cpu()
    bad = int((~logits.isfinite().all(1)).sum())
    if bad:
        raise ValueError(
            f"logits of {bad} of {len(logits)} images are not finite; check the model's weights"
        )
    return logits, torch.cat(labels).cpu()


def share(name: str, right: int, n: int, **fields: Any) -> Record:
    """Return the record of a share, `right` of n, with standard error and Wilson interval."""
    value = right / n
    return Record(
        name, value, "1", math.sqrt(value * (1 - value) / n), n, interval=wilson(right, n), **fields
    )


def accuracy(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Measure top-1, top-5, softmax loss, accuracy of each class, and calibration."""
    logits, labels = logits_of(subject.model, subject.batches)
    for k in (1, 5):
        if logits.shape[1] > k:  # top-5 of five classes is always 1
            kept = _keep_outcomes(logits, labels, subject, config, arrays) if k == 1 else ""
            hits = int(top_k(logits, labels, k).sum())
            yield share(f"accuracy/top{k}", hits, len(labels), arrays=kept)
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    stderr = float(losses.std() / math.sqrt(len(losses))) if len(losses) > 1 else None
    yield Record(
        "accuracy/loss",
        float(losses.mean()),
        "nats",
        stderr,
        len(losses),
        settings={"of": "softmax"},
    )
    right = top_k(logits, labels)
    # classes without images here have no accuracy
    for index in sorted(set(labels.tolist())):
        rows = right[labels == index]
        where = {"class": subject.classes[index], "index": index}
        yield share("accuracy/class", int(rows.sum()), len(rows), where=where)
    found = calibration(logits, labels)
    name = arrays_name("accuracy", subject, config, title="calibration")
    if subject.runtime.is_main:
        keys = ("edges", "confidence", "accuracy", "counts")
        np.savez(arrays / name, **{key: getattr(found, key) for key in keys})
    yield Record(
        "accuracy/ece",
        found.ece,
        "1",
        n=len(labels),
        settings={"bins": NUM_BINS, "binning": "equal width"},
        source="arXiv:1706.04599",
        arrays=f"arrays/{name}",
    )


def _keep_outcomes(
    logits: Tensor, labels: Tensor, subject: Subject, config: MeasureConfig, arrays: Path
) -> str:
    """Save what was predicted of each image, in the order of the split; return the file's path.

    With it, two networks can be compared image by image, which tells far smaller differences than
    two shares do."""
    name = arrays_name("accuracy", subject, config, title="outcomes")
    if subject.runtime.is_main:
        chances = logits.double().softmax(1)
        np.savez_compressed(
            arrays / name,
            labels=labels.int().numpy(),
            predicted=_first_highest(logits).int().numpy(),
            probability=chances.max(1).values.float().numpy(),
            probability_true=chances.gather(1, labels[:, None])[:, 0].float().numpy(),
            classes=np.array(subject.classes, dtype=np.str_),
        )
    return f"arrays/{name}"


def _first_highest(logits: Tensor) -> Tensor:
    """Return the class of the highest logit, [n]; the lowest of equal ones, as in `top_k`."""
    return (logits == logits.max(1, keepdim=True).values).int().argmax(1)
