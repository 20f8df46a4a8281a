"""The measurement `attack`: accuracy under PGD, at one radius and at others for a curve."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samovar.anymodel.restore import evaluating
from samovar.attacks import pgd
from samovar.config import MeasureConfig
from samovar.data.loader import Batch
from samovar.measure.accuracy import share
from samovar.measure.predictions import predict, predict_classes, save, to_rgb
from samovar.measure.subject import Subject
from samovar.runs.records import Record

RADII = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Radii of the curve, in units of `--attack-eps`; 0 is added to them."""


def attack(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Measure the accuracy under PGD at `--attack-eps`, and at fractions and multiples of it.

    Raises:
        ValueError: `--precision fp16`."""
    if config.precision == "fp16":
        # gradients of images below 6e-8 would be 0, and an attack that fails looks like robustness
        raise ValueError(
            "--precision fp16 loses the small gradients of `attack`; give bf16 or fp32"
        )
    images = subject.batches
    if config.attack_images:
        images = images.few(config.attack_images, config.seed)
    radii = [config.attack_eps * factor for factor in (0.0, *RADII)]
    # the radii of the curve stay in the range of --attack-eps
    survived: dict[float, list[Tensor]] = {eps: [] for eps in radii if eps <= 1}
    seconds = dict.fromkeys(survived, 0.0)
    for index, batch in enumerate(images):
        for eps in survived:
            # radii take turns batch by batch, so each is timed by itself
            start = time.perf_counter()
            survived[eps].append(_survives(subject, config, batch, eps, index))
            seconds[eps] += time.perf_counter() - start
    for eps, parts in survived.items():
        right, main = torch.cat(parts), eps == config.attack_eps
        gradients = config.attack_steps * (1 + config.attack_restarts) * len(right) * (eps > 0)
        record = share(
            "robustness/pgd_accuracy" if main else "robustness/pgd_curve",
            int(right.sum()),
            len(right),
            where={"eps": eps},
            settings={
                "attack": "PGD",
                "norm": config.attack_norm,
                "steps": config.attack_steps,
                "restarts": config.attack_restarts,
                "random_start": True,
                "eps": eps,
                "step_size": step_of(eps, config.attack_steps),
            },
            cost={"gradients": gradients, "seconds": round(seconds[eps], 3)},
            source="arXiv:1706.06083; radius, steps and step size: arXiv:2106.01548, appendix E.5",
        )
        yield _with_pictures(record, subject, config, arrays) if main else record


def step_of(eps: float, num_steps: int) -> float:
    """Return the length of a step: an eighth of the radius, as the paper's 0.25 of 2.

    It is longer where so few steps would not reach the radius."""
    # so the steps together are at least 1.25 radii long
    return eps * max(1 / 8, 1.25 / num_steps)


def _survives(
    subject: Subject, config: MeasureConfig, batch: Batch, eps: float, index: int
) -> Tensor:
    """Return True for each image that is classified rightly when attacked, [B] bool."""
    found = _attacked(subject, config, batch, eps, index)
    with evaluating(subject.model), torch.no_grad():
        return predict_classes(subject.model, found) == batch.labels.cpu()


def _attacked(
    subject: Subject, config: MeasureConfig, batch: Batch, eps: float, index: int
) -> Tensor:
    """Return the images of a batch, attacked; the random start depends on seed and batch number."""
    if eps == 0:
        return batch.images
    return pgd(
        subject.model,
        batch.images,
        batch.labels,
        eps=eps,
        step_size=step_of(eps, config.attack_steps),
        num_steps=config.attack_steps,
        norm=config.attack_norm,
        restarts=config.attack_restarts,
        generator=torch.Generator().manual_seed((config.seed << 32) + index),
    )


def _with_pictures(record: Record, subject: Subject, config: MeasureConfig, arrays: Path) -> Record:
    """Return the record with a file of a few images, clean and attacked, and their predictions."""
    batch = next(iter(subject.batches.few(min(8, config.pictures), config.seed)))
    changed = _attacked(subject, config, batch, config.attack_eps, 0)
    before, after = (
        predict(subject.model, batch),
        predict(subject.model, Batch(changed, batch.labels)),
    )
    columns = {
        "images": np.stack([to_rgb(before.images), to_rgb(after.images)]),
        "labels": batch.labels.cpu().numpy(),
        "predicted": np.stack([each.predicted.cpu().numpy() for each in (before, after)]),
        "probability": np.stack([each.probability.cpu().numpy() for each in (before, after)]),
        "names": np.array(["clean", f"PGD, eps {config.attack_eps:.4g}"]),
        "classes": np.array(subject.classes),
    }
    return replace(
        record, arrays=save(arrays, "attack", subject, config, columns, title="attacked")
    )
