"""Estimate of the time that jobs take on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from samovar import config as configs
from samovar.runs import checkpoint
from samovar.runs.records import RunDir
from samovar.runtime import started
from samovar.studies.jobs import Job, Measured
from samovar.train.estimate import seconds_per_gradient, training_gradients
from samovar.train.rehearse import Data, data_of

_LANCZOS = 13
"""Hessian products that an eigenvalue typically takes."""

_PRODUCT = 2.5
"""Time of a Hessian product in gradients."""

_PARTS = 7
"""Parts of a network that `blocks` takes an eigenvalue of, as in Table 3."""

_CORRUPTIONS = 19


def seconds_left(jobs: Sequence[Job]) -> float:
    """Estimate the seconds that the jobs take here on one core or GPU.

    A few steps of each network on made images give its speed."""
    speeds: dict[tuple[str, int], float] = {}
    total = 0.0
    for job in jobs:
        config, data = job.config, data_of(job.config)
        key = config.model.name, config.data.image_size
        if key not in speeds:
            with started(config.run) as runtime:
                speeds[key] = seconds_per_gradient(config, data, runtime)
        # held-out images of CIFAR-10 and of ImageNet
        num_val = 10_000 if data.num_train < 1_000_000 else 50_000
        work = training_gradients(config, data.num_train) * _share_left(job, data)
        work += sum(measuring_gradients(each, data.num_train, num_val) for each in job.measurements)
        total += speeds[key] * work
    return total


def _share_left(job: Job, data: Data) -> float:
    """Return the share of a run's training that is left after its last checkpoint."""
    total = sum(configs.num_steps(stage, data.num_train) for stage in configs.stages(job.config))
    saved = checkpoint.steps_saved(RunDir(job.folder).checkpoints)
    return max(0.0, 1 - saved[-1] / total) if saved else 1.0


# --- work in gradients of one image


def measuring_gradients(measured: Measured, num_train: int, num_val: int) -> float:
    """Estimate images times gradients of a measurement; a forward pass is a third of a gradient."""
    config = measured.config
    images = min(config.images or num_train, num_train)
    corrupted = min(config.corruption_images or num_val, num_val)
    attacked = min(config.attack_images or num_val, num_val)
    drawn = min(config.landscape_images or images, images)
    work: dict[str, float] = {
        "hessian": _LANCZOS * _PRODUCT * images * config.k,
        "blocks": _PARTS * _LANCZOS * _PRODUCT * images,
        "flatness": (config.draws + 1) / 3 * images,
        "ntk": 2.0 * config.ntk_batch * config.ntk_batches,
        "robustness": _CORRUPTIONS * len(config.severities) / 3 * corrupted,
        "attack": 6.0 * config.attack_steps * attacked,
        "landscape": config.points**config.dims / 3 * drawn,
        "testset": 50_000 / 3,
    }
    # every other measurement is about one forward pass over the images
    return work.get(measured.name, images / 3)
