"""The measurements `knn` and `linear`: accuracy of simple classifiers on a network's features."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from samovar.anymodel.devices import to_float64_device
from samovar.anymodel.restore import evaluating
from samovar.config import MeasureConfig
from samovar.data.loader import Batch
from samovar.data.splits import hold_out
from samovar.measure.accuracy import share
from samovar.measure.subject import Subject
from samovar.models.factory import Classifier
from samovar.runs.records import Record

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths C of the L2 penalty that a linear probe chooses from."""
HELD_OUT_SHARE = 0.1
"""Share of each class that C is chosen on."""
MAX_STEPS = 1000
"""Iterations of L-BFGS at most."""
_SIMILARITIES = 1 << 24
"""Cosines in memory at a time, 64 MiB."""


class NotFinite(ValueError):
    """Features are not finite: the network has diverged."""


def features(model: Classifier, stream: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Return the inputs of the classifier layer, [n, D] float32, and labels [n], on the host.

    The model is in eval mode inside and is restored afterwards. Cost: one forward pass.

    Raises:
        ValueError: no batches, features that are not finite, or a network without access to its
            features."""
    rows, labels = [], []
    with evaluating(model), torch.no_grad():
        for batch in stream:
            # on the host: those of all images may not fit on the device
            rows.append(model.features(batch.images).float().cpu())
            labels.append(batch.labels.cpu())
    if not rows:
        raise ValueError("there are no images; give at least one batch")
    found = torch.cat(rows)
    bad = int((~found.isfinite().all(1)).sum())
    if bad:
        raise NotFinite(
            f"features of {bad} of {len(found)} images are not finite; check the model's weights"
        )
    return found, torch.cat(labels)


def knn_guess(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    *,
    k: int = MeasureConfig.knn_k,
    temperature: float = MeasureConfig.knn_temperature,
) -> Tensor:
    """Return the class of each test feature by a vote of its nearest training features, [m].

    The k nearest by cosine vote with weight exp(cosine / temperature); of equal votes the lower
    class wins. Cost: n x m x D operations, in bounded memory.

    Args:
        train: [n, D] features, n >= 1.
        labels: [n] class indices.
        test: [m, D] features.
        k: neighbours, 1 or more; n where there are fewer.
        temperature: above 0; the smaller it is, the more weight the nearest have.

    Raises:
        ValueError: k or temperature is out of range, or features and labels do not fit.

    Source: Wu et al., arXiv:1805.01978, section 3.4."""
    _check(train, labels, test)
    if k < 1 or not temperature > 0:
        raise ValueError(
            f"k {k} and temperature {temperature} give no vote; "
            "give k of 1 or more and a temperature above 0"
        )
    # of unit vectors, dot products are cosines
    bank, num_classes = F.normalize(train), int(labels.max()) + 1
    labels = to_float64_device(labels)
    guesses = []
    for part in torch.split(F.normalize(test), max(1, _SIMILARITIES // len(bank))):
        nearest, rows = (part @ bank.T).topk(min(k, len(bank)), dim=1)
        # relative to the nearest, so that exp does not overflow
        nearest, rows = to_float64_device(nearest), to_float64_device(rows)
        weights = ((nearest - nearest[:, :1]).double() / temperature).exp()
        votes = weights.new_zeros(len(part), num_classes).scatter_add_(1, labels[rows], weights)
        guesses.append(votes.argmax(1))
    return torch.cat(guesses) if guesses else labels.new_empty(0)


@dataclass(frozen=True)
class Probe:
    """Softmax regression on standardized features."""

    regression: Any
    """scikit-learn's LogisticRegression, fitted."""
    mean: npt.NDArray[np.float64]
    """[D] mean of the training features."""
    std: npt.NDArray[np.float64]
    """[D] standard deviation of the training features, 1 where a feature is constant."""
    strength: float
    """The chosen C, the inverse strength of the L2 penalty."""
    converged: bool
    """False where L-BFGS stopped at its iteration limit."""

    def guess(self, test: Tensor) -> Tensor:
        """Return the most probable class [m] of features [m, D]."""
        if not len(test):
            return torch.empty(0, dtype=torch.int64)
        rows = (test.double().numpy() - self.mean) / self.std
        return torch.from_numpy(np.asarray(self.regression.predict(rows), np.int64))


def linear_probe(
    train: Tensor, labels: Tensor, test: Tensor, *, strengths: Sequence[float] = STRENGTHS
) -> Tensor:
    """Predict classes [m] of features [m, D] with a probe fitted on training features."""
    _check(train, labels, test)
    return fit_probe(train, labels, strengths=strengths).guess(test)


def fit_probe(
    train: Tensor,
    labels: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
    max_steps: int = MAX_STEPS,
) -> Probe:
    """Fit a linear classifier of features by scikit-learn's LogisticRegression (L-BFGS).

    C is the value of `strengths` with the highest accuracy on a tenth of each class (the smallest
    of equals); the fit then uses all features. Where no class has two images, C is the middle
    value. The result depends on the arguments alone.

    Args:
        train: [n, D] features of two classes or more.
        labels: [n] class indices.
        strengths: values of C, above 0.
        max_steps: L-BFGS iterations at most, of each fit.

    Raises:
        ValueError: only one class, or features and labels that do not fit."""
    _check(train, labels, train)
    if labels.min() == labels.max():
        raise ValueError("a linear probe needs features of two classes or more; give more images")
    rows, classes = train.double().numpy(), labels.numpy()
    mean, std = rows.mean(0), rows.std(0)
    # dead units are constant; they stay 0 after centring
    std[std == 0] = 1
    rows = (rows - mean) / std
    strength = _choose(rows, classes, sorted(strengths), max_steps)
    regression = _regression(strength, max_steps)
    return Probe(regression, mean, std, strength, _fit(regression, rows, classes))


def _choose(
    rows: npt.NDArray[np.float64],
    classes: npt.NDArray[np.int64],
    strengths: Sequence[float],
    max_steps: int,
) -> float:
    """Return the strength with the highest accuracy on the held-out tenth.

    Each fit starts from the coefficients of the one before."""
    # training images alone: the images that are scored must not choose C
    kept, held = hold_out(classes, HELD_OUT_SHARE, seed=0)
    if len(strengths) == 1 or not len(held):
        return strengths[len(strengths) // 2]
    regression, scores = _regression(strengths[0], max_steps), []
    for strength in strengths:
        _fit(regression.set_params(C=strength), rows[kept], classes[kept])
        scores.append(np.mean(regression.predict(rows[held]) == classes[held]))
    return strengths[int(np.argmax(scores))]


def _regression(strength: float, max_steps: int) -> Any:
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    return LogisticRegression(C=strength, max_iter=max_steps, warm_start=True)


def _fit(regression: Any, rows: npt.NDArray[np.float64], classes: npt.NDArray[np.int64]) -> bool:
    """Fit in place; return True if L-BFGS reached its tolerance."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        regression.fit(rows, classes)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _check(train: Tensor, labels: Tensor, test: Tensor) -> None:
    if (
        train.ndim != 2
        or not len(train)
        or labels.shape != train.shape[:1]
        or test.shape[1:] != train.shape[1:]
    ):
        shapes = f"{list(train.shape)}, {list(labels.shape)} and {list(test.shape)}"
        raise ValueError(
            f"training features, labels and features have shapes {shapes}; "
            "give [n, D], [n] and [m, D]"
        )


# --- the measurements


def knn(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """Measure the accuracy of a vote of the nearest training images, by cosine of features."""
    train, labels = _training_features(subject, config)
    test, truth = features(cast(Classifier, subject.model), subject.batches)
    guess = knn_guess(train, labels, test, k=config.knn_k, temperature=config.knn_temperature)
    settings = {
        "k": min(config.knn_k, len(train)),
        "temperature": config.knn_temperature,
        "probe_images": len(train),
    }
    right = int((guess == truth).sum())
    yield share(
        "features/knn_accuracy", right, len(truth), settings=settings, source="arXiv:1805.01978"
    )


def linear(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """Measure the accuracy of a linear classifier fitted on features of training images."""
    train, labels = _training_features(subject, config)
    test, truth = features(cast(Classifier, subject.model), subject.batches)
    probe = fit_probe(train, labels)
    settings = {
        "C": probe.strength,
        "C_of": list(STRENGTHS),
        "probe_images": len(train),
        "method": "L-BFGS",
    }
    right = int((probe.guess(test) == truth).sum())
    yield share(
        "features/linear_accuracy", right, len(truth), settings=settings, converged=probe.converged
    )


def _training_features(subject: Subject, config: MeasureConfig) -> tuple[Tensor, Tensor]:
    """Return features and labels of `--probe-images` training images.

    Raises:
        ValueError: the subject's images are the training images, or there are no others."""
    if subject.train is None or subject.settings["split"] == "train":
        raise ValueError(
            "--split train: knn and linear learn from the training images, so they cannot be "
            "tested on them; leave --split out"
        )
    # evenly per class, so that images of every class have neighbours
    count = config.probe_images or len(subject.train.split)
    return features(cast(Classifier, subject.model), subject.train.few(count, config.seed))
