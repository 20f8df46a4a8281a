"""The measurement `robustness`: accuracy under the 19 corruptions at 5 severities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from samovar.anymodel.devices import to_device
from samovar.anymodel.restore import evaluating
from samovar.config import MeasureConfig
from samovar.data.corruptions import CORRUPTIONS, corrupt, image_seed
from samovar.data.loader import Batch
from samovar.data.streaming import num_workers, worker_context
from samovar.measure.accuracy import share
from samovar.measure.predictions import predict, predict_classes, save, to_rgb
from samovar.measure.subject import Batches, Subject
from samovar.runs.records import Record

CHUNK = 2048
"""Images that are decoded and kept in memory at once, while every corruption of them is made."""
CLEAN = ("", 0)
"""The condition of images as they are, beside (corruption, severity)."""
PER_TASK = 64
"""Images a worker corrupts at a time."""

Pixels = npt.NDArray[np.uint8]


class CorruptionTask(NamedTuple):
    """Some images of a chunk, and the one corruption to make of them."""

    name: str
    severity: int
    start: int
    stop: int


@dataclass(frozen=True)
class Corrupted(Dataset[Tensor]):
    """The corrupted images of a chunk, by task; sent to the workers."""

    images: Pixels
    """[n, H, W, C] uint8."""
    first: int
    """Number of the first image in its split; the images' seeds depend on it."""
    seed: int

    def __getitem__(self, task: CorruptionTask) -> Tensor:
        """Return the corrupted images of a task, [b, C, H, W] uint8."""
        made = [
            corrupt(
                self.images[row],
                task.name,
                severity=task.severity,
                seed=image_seed(self.seed, self.first + row),
            )
            for row in range(task.start, task.stop)
        ]
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def robustness(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Measure the accuracy under each corruption at each severity, and its mean.

    The mean is the paper's number. The corruptions are made here of these images, so the records
    never call them ImageNet-C, which is a published test set (see `testset`)."""
    # the same numbers and pictures whatever the order in which corruptions are asked for
    names = _names(config.corruptions)
    config = replace(config, severities=tuple(sorted(set(config.severities))))
    batches = subject.batches
    if config.corruption_images:
        batches = batches.few(config.corruption_images, config.seed)
    hits, labels = _hits(subject, batches, names, config)
    clean = hits.pop(CLEAN)
    count, right = len(labels), {each: int(found.sum()) for each, found in hits.items()}
    settings = {"corruptions": "made here of these images", "corrupted_images": count}
    values = [correct / count for correct in right.values()]
    mean = sum(values) / len(values)
    yield Record(
        "robustness/mean_corruption_accuracy",
        mean,
        "1",
        # an upper bound: as if an image that is misread were misread under every corruption
        math.sqrt(mean * (1 - mean) / count),
        count,
        settings=settings | {"corruption_names": names, "severities": list(config.severities)},
        cost={"forwards": len(values) * count},
        source="plain mean over corruptions and severities: arXiv:2106.01548",
        arrays=_save(subject, config, names, arrays, hits, clean, labels),
    )
    for (name, severity), correct in right.items():
        yield share(
            "robustness/corruption_accuracy",
            correct,
            count,
            where={"corruption": name, "severity": severity},
            settings=settings,
            source="arXiv:1903.12261",
        )


def _names(asked: tuple[str, ...]) -> list[str]:
    """Return the corruptions asked for (none: all), each once, in the order of the table."""
    unknown = [name for name in asked if name not in CORRUPTIONS]
    if unknown:
        raise ValueError(
            f"--corruptions {unknown[0]} is unknown; give some of: {', '.join(CORRUPTIONS)}"
        )
    return [name for name in CORRUPTIONS if not asked or name in asked]


def _hits(
    subject: Subject, batches: Batches, names: list[str], config: MeasureConfig
) -> tuple[dict[tuple[str, int], Tensor], Tensor]:
    """Return which images are classified rightly under each (corruption, severity), and labels.

    Both are in the order of the images: [n] bool each, and [n]. The condition ("", 0) is the images
    as they are."""
    parts: dict[tuple[str, int], list[Tensor]] = {}
    seen: list[Tensor] = []
    count = 0
    for images, labels in _chunks(batches):
        tasks = [
            CorruptionTask(name, severity, start, min(start + PER_TASK, len(images)))
            for name in names
            for severity in config.severities
            for start in range(0, len(images), PER_TASK)
        ]
        # seeds depend on the image's number in the split, not on chunks or workers
        dataset = Corrupted(images, count, config.seed)
        made = _corrupt_all(dataset, tasks, num_workers(batches.config))
        with evaluating(subject.model), torch.no_grad():
            for start in range(0, len(images), PER_TASK):
                clean = torch.from_numpy(images[start : start + PER_TASK]).permute(0, 3, 1, 2)
                pixels = to_device(clean, subject.runtime.device).float() / 255
                hits = predict_classes(subject.model, pixels) == labels[start : start + PER_TASK]
                parts.setdefault(CLEAN, []).append(hits)
            for task, each in zip(tasks, made, strict=True):
                pixels = to_device(each, subject.runtime.device).float() / 255
                hits = predict_classes(subject.model, pixels) == labels[task.start : task.stop]
                parts.setdefault((task.name, task.severity), []).append(hits)
        seen.append(labels)
        count += len(images)
    if not count:
        raise ValueError("no image can be read; check --source and --root")
    return {each: torch.cat(found) for each, found in parts.items()}, torch.cat(seen)


def _chunks(batches: Batches) -> Iterator[tuple[Pixels, Tensor]]:
    """Yield images [n, H, W, C] uint8, cropped as in evaluation, and labels, a chunk at a time."""
    held: list[Batch] = []
    # many small batches of a file loader become one chunk, so that workers have enough to do
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


def _corrupt_all(dataset: Corrupted, tasks: list[CorruptionTask], workers: int) -> Iterator[Tensor]:
    """Return the images of the tasks, in order; the bits do not depend on the number of workers."""
    # workers take longer to start than so few images to corrupt
    if workers == 0 or len(tasks) * PER_TASK < CHUNK:
        return map(dataset.__getitem__, tasks)
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=tasks,
            num_workers=workers,
            multiprocessing_context=worker_context(),
            generator=torch.Generator(),  # else the loader draws from the global one
        )
    )


def _save(
    subject: Subject,
    config: MeasureConfig,
    names: list[str],
    arrays: Path,
    hits: dict[tuple[str, int], Tensor],
    clean: Tensor,
    labels: Tensor,
) -> str:
    """Save pictures under each corruption, and the outcome of every image; return the path."""
    columns = _pictures(subject, config, names) | {
        "outcomes": torch.stack(list(hits.values())).numpy(),
        "outcome_clean": clean.numpy(),
        "outcome_labels": labels.int().numpy(),
        "outcome_corruptions": np.array([name for name, _ in hits]),
        "outcome_severities": np.array([severity for _, severity in hits]),
    }
    return save(arrays, "robustness", subject, config, columns, title="corrupted")


def _pictures(subject: Subject, config: MeasureConfig, names: list[str]) -> dict[str, Any]:
    """Return a few images under each corruption, and their predictions, as arrays by name.

    The severity is 3, or the closest one asked for."""
    severity = min(config.severities, key=lambda each: abs(each - 3))
    images, labels = next(_chunks(subject.batches.few(min(4, config.pictures), config.seed)))
    dataset = Corrupted(images, 0, config.seed)
    made = [torch.from_numpy(images).permute(0, 3, 1, 2)]
    made += [dataset[CorruptionTask(name, severity, 0, len(images))] for name in names]
    device = subject.runtime.device
    batches = [
        Batch(to_device(pixels.float() / 255, device), to_device(labels, device)) for pixels in made
    ]
    rows = [predict(subject.model, batch) for batch in batches]
    return {
        "images": np.stack([to_rgb(row.images) for row in rows]),
        "labels": labels.numpy(),
        "predicted": np.stack([row.predicted.cpu().numpy() for row in rows]),
        "probability": np.stack([row.probability.cpu().numpy() for row in rows]),
        "names": np.array(["clean", *names]),
        "severity": np.array(severity),
        "classes": np.array(subject.classes),
    }
