"""Plan of a reproduction: its runs and their measurements.

Nothing in this file needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from samovar import config as configs
from samovar import recipes
from samovar.config import Config, MeasureConfig
from samovar.config.encoded import dashed
from samovar.studies.claims import Claim
from samovar.studies.columns import COLUMNS
from samovar.studies.jobs import Job, Measured, changed, check_measure, shorter
from samovar.studies.reproduce.rows import Row, config_of, name_of
from samovar.studies.reproduce.scales import SCALES, Scale
from samovar.studies.reproduce.studies import STUDIES
from samovar.studies.reproduce.study import Study, title_of

FREE = (
    "epochs", "steps", "optim.warmup_steps", "data.source", "data.root", "data.workers",
    "data.loader", "data.max_bad_share",
)  # fmt: skip
"""Settings that flags may change beside those of `run`: length, and the place of the data.

All others make a run what it is in its table."""

STUDY_FILE = "study.json"
"""File that distinguishes the folder of a study from a run's."""


@dataclass(frozen=True)
class ReproduceRequest:
    """A `samovar reproduce` command line."""

    names: tuple[str, ...]
    """Names of `STUDIES`."""
    scale: str
    seeds: int
    output: Path
    changes: Mapping[str, Any]
    """Settings of every run by dotted name, as flags give them."""
    measure: Mapping[str, Any]
    """Settings of every measurement, likewise."""
    testsets: tuple[str, ...] = ()
    """NAME:PATH of published test sets, at a scale that has their classes."""
    jobs: int = 1
    rows: tuple[str, ...] = ()
    """Patterns of row keys; empty for all rows."""


@dataclass(frozen=True)
class ReproduceJob(Job):
    """A run of a study and its measurements."""

    row: Row
    seed: int

    @property
    def title(self) -> str:
        """Row and seed."""
        return f"{title_of(self.row)}, seed {self.seed}"


# --- checks


def check(request: ReproduceRequest) -> None:
    """Check that the studies have rows at the scale, and that no flag changes what they choose.

    Raises:
        ValueError: the first study or flag that does not fit, and what does."""
    scale = SCALES[request.scale]
    for name in request.names:
        rows = STUDIES[name].rows(scale)
        if not rows:
            able = [title for title, other in SCALES.items() if STUDIES[name].rows(other)]
            raise ValueError(
                f"{name} has nothing to train at --scale {request.scale}; "
                f"give --scale {' or '.join(able)}"
            )
        if not rows_of(name, request):
            raise ValueError(
                f"--rows {','.join(request.rows)} fits no row of {name}; "
                f"it has {', '.join(row.key for row in rows)}"
            )
    for name in request.changes:
        if name not in FREE and not name.startswith("run."):
            raise ValueError(
                f"--{dashed(name)} is set by reproduce; train the recipe by itself to change it"
            )
    check_measure(changed(scale.measure, request.measure))
    _check_place(request)
    if request.testsets and not scale.testsets:
        raise ValueError(
            f"--testset needs ImageNet's classes, and --scale {request.scale} has others; "
            "leave it out"
        )


def _check_place(request: ReproduceRequest) -> None:
    """Refuse an output that is a file, or has a run where a study would be written."""
    if request.output.exists() and not request.output.is_dir():
        raise ValueError(f"--output {request.output} is a file; give a folder")
    for folder in (request.output / name for name in request.names):
        if (folder / "config.json").is_file() and not (folder / STUDY_FILE).is_file():
            raise ValueError(
                f"{folder} is a run, and a study would be written there; give another --output"
            )


# --- rows, claims, jobs


def rows_of(name: str, request: ReproduceRequest) -> list[Row]:
    """Return the rows of a study that are asked for."""
    return [
        row
        for row in STUDIES[name].rows(SCALES[request.scale])
        if not request.rows or any(fnmatch(row.key, pattern) for pattern in request.rows)
    ]


def claims_of(name: str, request: ReproduceRequest) -> list[Claim]:
    """Return the claims of a study whose rows are all asked for."""
    keys = {row.key for row in rows_of(name, request)}
    return [
        claim
        for claim in STUDIES[name].claims(SCALES[request.scale])
        if {row for row, _ in claim.cells} <= keys
    ]


def jobs_of(request: ReproduceRequest) -> list[ReproduceJob]:
    """Return the runs of all studies, each once with the measurements of all of them.

    Runs that others start from come first. Seeds take turns, so that a stopped command has done
    some of every row."""
    scale = SCALES[request.scale]
    wanted: dict[Row, dict[str, None]] = {}
    for name in request.names:
        for row in rows_of(name, request):
            if row.transfer:  # its first run is needed even if no study measures it
                wanted.setdefault(row.origin, {})
            wanted.setdefault(row, {}).update(dict.fromkeys(needs(STUDIES[name], scale)))
    jobs = [
        _job(row, seed, measurements, request)
        for seed in range(request.seeds)
        for row, measurements in wanted.items()
    ]
    # a stable sort, which keeps the turns of the seeds
    return sorted(jobs, key=lambda job: bool(job.row.transfer))


def needs(study: Study, scale: Scale) -> list[str]:
    """Return the measurements that a study takes of every run."""
    # columns that training records need no measurement
    found = [COLUMNS[column].measurement for column in study.columns(scale)]
    return [name for name in dict.fromkeys([*found, *study.pictures]) if name]


def _job(
    row: Row, seed: int, measurements: Iterable[str], request: ReproduceRequest
) -> ReproduceJob:
    scale = SCALES[request.scale]
    if row.transfer:
        config = _transfer(row, scale, seed, request)
    else:
        config = shorter(config_of(row, scale), request.changes)
    name = f"{name_of(row, scale)}-seed{seed}"
    config = replace(config, seed=seed, output=request.output, name=name)
    # settings that clash are found here, before the first run
    configs.validate(config)
    measured = [found for name in measurements for found in _measured(name, config, request)]
    return ReproduceJob(config, tuple(measured), row, seed)


_TRANSFER_STEPS = 1000
"""Steps of fine-tuning at the small scales."""


def _transfer(row: Row, scale: Scale, seed: int, request: ReproduceRequest) -> Config:
    """Return the fine-tuning of Table 11, from the run of the same seed.

    It sees as many images of the new source as that run saw of the old one."""
    # the size of the source chooses between the two rows of Table 11
    config = recipes.transfer(10_000 if row.transfer.startswith("cifar") else 2_000)
    first: Config = changed(config_of(row.origin, scale), request.changes)
    data = replace(
        config.data,
        source=row.transfer,
        image_size=first.data.image_size,
        fraction=first.data.fraction,
        root=first.data.root,
    )
    if not scale.testsets:
        data = replace(data, batch_size=first.data.batch_size, crop="pad", flip=True)
        optim = replace(config.optim, warmup_steps=_TRANSFER_STEPS // 20)
        config = replace(config, steps=_TRANSFER_STEPS, optim=optim)
    origin = request.output / f"{name_of(row.origin, scale)}-seed{seed}"
    config = replace(config, recipe="transfer", init=str(origin), model=first.model, data=data)
    # the data and warm-up that flags give belong to the first run
    own = {
        name: value
        for name, value in request.changes.items()
        if name.split(".")[0] in ("run", "epochs", "steps")
    }
    tuned: Config = changed(config, own)
    return tuned


def _measured(name: str, config: Config, request: ReproduceRequest) -> list[Measured]:
    """Return a measurement with its settings; one for each test set given."""
    base: MeasureConfig = changed(SCALES[request.scale].measure, request.measure)
    base = replace(base, device=config.run.device)
    if "data.workers" in request.changes:
        base = replace(base, workers=config.data.workers)
    if name == "ntk":
        # the paper's kappa belongs to the architecture, so it is taken at initialisation
        base = replace(base, checkpoint="init", images=0, ntk_relu=True, ntk_head="random")
    if name in ("robustness", "attack"):
        # --measure.images limits the training images; these draw from all that are held out
        base = replace(base, images=0)
    if name == "testset":
        return [Measured(name, replace(base, testset=testset)) for testset in request.testsets]
    return [Measured(name, base)]
