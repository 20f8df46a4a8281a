"""Accuracy on images made worse: by the 19 corruptions at 5 severities, and by attacks."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from samovar.attacks import pgd
from samovar.config import MeasureConfig
from samovar.data.corruptions import CORRUPTIONS, corrupt, image_seed
from samovar.data.loader import Batch
from samovar.data.streaming import num_workers, worker_context
from samovar.measure.accuracy import share
from samovar.measure.predictions import Predicted, predict, save, to_rgb
from samovar.measure.subject import Batches, Subject
from samovar.restore import evaluating
from samovar.runs.records import Record

CHUNK = 2048
"""Images that are decoded and held at once while every corruption is made of them."""
PER_TASK = 64
"""Images a worker corrupts at a time."""
RADII = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the curve, in units of `--attack-eps`."""

Pixels = npt.NDArray[np.uint8]


class Task(NamedTuple):
    """Some images of a chunk, to be corrupted in one way."""

    name: str
    severity: int
    start: int
    stop: int


@dataclass(frozen=True)
class Corrupted(Dataset[Tensor]):
    """Makes the images of tasks; sent to the workers."""

    images: Pixels
    """[n, H, W, C] uint8."""
    first: int
    """Number of the first image in its split, which its seeds are made of."""
    seed: int

    def __getitem__(self, task: Task) -> Tensor:
        """The images of a task, corrupted, [b, C, H, W] uint8."""
        rows = range(task.start, task.stop)
        made = [
            corrupt(
                self.images[row],
                task.name,
                severity=task.severity,
                seed=image_seed(self.seed, self.first + row),
            )
            for row in rows
        ]
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def robustness(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Accuracy under each corruption at each severity, and its mean, the paper's number; never
    called ImageNet-C."""
    names = _names(config.corruptions)
    config = replace(config, severities=tuple(sorted(set(config.severities))))
    few = (
        subject.batches.few(config.corruption_images, config.seed)
        if config.corruption_images
        else subject.batches
    )
    right, count = _count_right(subject, few, names, config)
    settings = {"corruptions": "made here of these images", "corrupted_images": count}
    source = "arXiv:1903.12261"
    values = [correct / count for correct in right.values()]
    yield Record(
        "robustness/mean_corruption_accuracy", sum(values) / len(values), "1", _stderr_of_mean(values, count), count,
        settings=settings | {"corruption_names": names, "severities": list(config.severities)},
        cost={"forwards": len(values) * count}, source="plain mean over corruptions and severities: arXiv:2106.01548",
        arrays=_strip(subject, config, names, arrays),
    )  # fmt: skip
    for (name, severity), correct in right.items():
        where = {"corruption": name, "severity": severity}
        yield share(
            "robustness/corruption_accuracy",
            correct,
            count,
            where=where,
            settings=settings,
            source=source,
        )


def _names(asked: tuple[str, ...]) -> list[str]:
    """The corruptions asked for, each once, in the order of the table."""
    unknown = [name for name in asked if name not in CORRUPTIONS]
    if unknown:
        raise ValueError(
            f"--corruptions {unknown[0]} is unknown; give some of: {', '.join(CORRUPTIONS)}"
        )
    return [name for name in CORRUPTIONS if not asked or name in asked]


def _guess(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    if not bool(logits.isfinite().all()):
        raise ValueError("logits are not finite; look at the model's weights")
    return logits.argmax(1).cpu()


def _stderr_of_mean(values: list[float], count: int) -> float:
    """An upper bound: as if an image that is misread were misread under every corruption."""
    mean = sum(values) / len(values)
    return math.sqrt(mean * (1 - mean) / count)


def _count_right(
    subject: Subject, batches: Batches, names: list[str], config: MeasureConfig
) -> tuple[Counter[tuple[str, int]], int]:
    """How many images are read rightly under each (corruption, severity), and of how many."""
    right: Counter[tuple[str, int]] = Counter()
    count = 0
    for images, labels in _chunks(batches):
        tasks = [
            Task(name, severity, start, min(start + PER_TASK, len(images)))
            for name in names
            for severity in config.severities
            for start in range(0, len(images), PER_TASK)
        ]
        made = _made(Corrupted(images, count, config.seed), tasks, num_workers(batches.config))
        with evaluating(subject.model), torch.no_grad():
            for task, each in zip(tasks, made, strict=True):
                pixels = each.to(subject.runtime.device).float() / 255
                guess = _guess(subject.model, pixels)
                right[task.name, task.severity] += int(
                    (guess == labels[task.start : task.stop]).sum()
                )
        count += len(images)
    if not count:
        raise ValueError("no image can be read; check --source and --root")
    return right, count


def _chunks(batches: Batches) -> Iterator[tuple[Pixels, Tensor]]:
    """Images [n, H, W, C] uint8 as evaluation frames them, with their labels, some at a time."""
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= CHUNK:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(batches: list[Batch]) -> tuple[Pixels, Tensor]:
    pixels = torch.cat([(batch.images * 255).round().to(torch.uint8).cpu() for batch in batches])
    return pixels.permute(0, 2, 3, 1).contiguous().numpy(), torch.cat(
        [batch.labels.cpu() for batch in batches]
    )


def _made(dataset: Corrupted, tasks: list[Task], workers: int) -> Iterator[Tensor]:
    """What the tasks ask for, in order; the bits do not depend on the number of workers."""
    if (
        workers == 0 or len(tasks) * PER_TASK < CHUNK
    ):  # workers take longer to start than so few images
        return map(dataset.__getitem__, tasks)
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=tasks,
            num_workers=workers,
            multiprocessing_context=worker_context(),
            generator=torch.Generator(),
        )
    )


def _strip(subject: Subject, config: MeasureConfig, names: list[str], arrays: Path) -> str:
    """A few images under each corruption at severity 3 (or the nearest asked for), with what is
    made of them."""
    severity = min(config.severities, key=lambda each: abs(each - 3))
    images, labels = next(_chunks(subject.batches.few(min(4, config.pictures), config.seed)))
    dataset = Corrupted(images, 0, config.seed)
    rows = [_seen(subject, torch.from_numpy(images).permute(0, 3, 1, 2), labels)]
    rows += [
        _seen(subject, dataset[Task(name, severity, 0, len(images))], labels) for name in names
    ]
    columns = {
        "images": np.stack([to_rgb(row.images) for row in rows]),
        "labels": labels.numpy(),
        "predicted": np.stack([row.predicted.cpu().numpy() for row in rows]),
        "probability": np.stack([row.probability.cpu().numpy() for row in rows]),
        "names": np.array(["clean", *names]),
        "severity": np.array(severity),
        "classes": np.array(subject.classes),
    }
    return save(arrays, "robustness", subject, config, columns, title="corrupted")


def _seen(subject: Subject, images: Tensor, labels: Tensor) -> Predicted:
    device = subject.runtime.device
    return predict(subject.model, Batch((images.float() / 255).to(device), labels.to(device)))


# --- attacks
# ---------------------------------------------------------------------------------------------------------


def attack(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Accuracy under PGD at the radius asked for, and at fractions and multiples of it."""
    few = (
        subject.batches.few(config.attack_images, config.seed)
        if config.attack_images
        else subject.batches
    )
    settings = {
        "attack": "PGD", "norm": config.attack_norm, "steps": config.attack_steps, "restarts": config.attack_restarts,
        "random_start": True,
    }  # fmt: skip
    radii = [
        config.attack_eps * factor for factor in (0.0, *RADII) if config.attack_eps * factor <= 1
    ]
    found: dict[float, list[Tensor]] = {eps: [] for eps in radii}
    seconds = dict.fromkeys(found, 0.0)
    for index, batch in enumerate(few):
        for eps in found:
            start = time.perf_counter()
            found[eps].append(_survived(subject, config, batch, eps, index))
            seconds[eps] += time.perf_counter() - start
    for eps, parts in found.items():
        right, main = torch.cat(parts), eps == config.attack_eps
        record = share(
            "robustness/pgd_accuracy" if main else "robustness/pgd_curve", int(right.sum()), len(right),
            where={"eps": eps}, settings=settings | {"eps": eps, "step_size": step_of(eps, config.attack_steps)},
            cost={
                "gradients": config.attack_steps * (1 + config.attack_restarts) * len(right) * (eps > 0),
                "seconds": round(seconds[eps], 3),
            },
            source="arXiv:1706.06083; radius, steps and step size: arXiv:2106.01548, appendix E.5",
        )  # fmt: skip
        yield _with_strip(record, subject, config, arrays) if main else record


def step_of(eps: float, num_steps: int) -> float:
    """An eighth of the radius, the paper's 0.25 of 2; more where so few steps would not reach
    it."""
    return eps * max(1 / 8, 1.25 / num_steps)


def _survived(
    subject: Subject, config: MeasureConfig, batch: Batch, eps: float, index: int
) -> Tensor:
    found = _attacked(subject, config, batch, eps, index)
    with evaluating(subject.model), torch.no_grad():
        return _guess(subject.model, found) == batch.labels.cpu()


def _attacked(
    subject: Subject, config: MeasureConfig, batch: Batch, eps: float, index: int
) -> Tensor:
    if eps == 0:
        return batch.images
    return pgd(
        subject.model, batch.images, batch.labels, eps=eps, step_size=step_of(eps, config.attack_steps),
        num_steps=config.attack_steps, norm=config.attack_norm, restarts=config.attack_restarts,
        generator=torch.Generator().manual_seed((config.seed << 32) + index),
    )  # fmt: skip


def _with_strip(record: Record, subject: Subject, config: MeasureConfig, arrays: Path) -> Record:
    """The record with a file of a few images, attacked ones beside them, and what is made of
    both."""
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
