"""What a study takes: its runs, what is measured of each, and what that costs. Nothing in this file
needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from samovar import config as configs
from samovar import recipes
from samovar.config import Config, MeasureConfig
from samovar.studies.reproduce.claims import Claim
from samovar.studies.reproduce.columns import COLUMNS
from samovar.studies.reproduce.rows import Row, config_of, name_of
from samovar.studies.reproduce.scales import SCALES, Scale
from samovar.studies.reproduce.studies import STUDIES, Study, title_of

FREE = (
    "epochs", "steps", "optim.warmup_steps", "data.source", "data.root", "data.workers", "data.loader",
    "data.max_bad_share",
)  # fmt: skip
"""Settings that flags may change, beside those of `run`: length, the place of the data. All else
makes a run what it is in its table."""


@dataclass(frozen=True)
class Asked:
    """What a command line asks for."""

    names: tuple[str, ...]
    """Of `STUDIES`."""
    scale: str
    seeds: int
    output: Path
    changes: Mapping[str, Any]
    """Settings of every run by dotted name, as flags give them."""
    measure: Mapping[str, Any]
    """Of every measurement, likewise."""
    testsets: tuple[str, ...] = ()
    """NAME:PATH of published test sets, at a scale whose classes they have."""
    jobs: int = 1
    rows: tuple[str, ...] = ()
    """Patterns of the keys of rows; without any, all rows."""


@dataclass(frozen=True)
class Measured:
    """A measurement of a run."""

    name: str
    config: MeasureConfig


@dataclass(frozen=True)
class Job:
    """A run and what is measured of it."""

    config: Config
    measurements: tuple[Measured, ...]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.config.output / self.config.name

    @property
    def title(self) -> str:
        """The run in a few words."""
        return self.config.name


@dataclass(frozen=True)
class Task(Job):
    """A run of a study."""

    row: Row
    seed: int

    @property
    def title(self) -> str:
        """The row and the seed."""
        return f"{title_of(self.row)}, seed {self.seed}"


def check(asked: Asked) -> None:
    """Refuse studies that a scale has nothing for, and settings that a study chooses itself.

    Raises:
        ValueError: names them."""
    for name in asked.names:
        if not STUDIES[name].rows(SCALES[asked.scale]):
            able = [title for title, scale in SCALES.items() if STUDIES[name].rows(scale)]
            raise ValueError(
                f"{name} has nothing to train at --scale {asked.scale}; give --scale {' or '.join(able)}"
            )
        keys = [row.key for row in STUDIES[name].rows(SCALES[asked.scale])]
        if not rows_of(name, asked):
            raise ValueError(
                f"--rows {','.join(asked.rows)} fits no row of {name}; it has {', '.join(keys)}"
            )
    for name in asked.changes:
        if name not in FREE and not name.startswith("run."):
            raise ValueError(
                f"--{name.replace('_', '-')} is what reproduce chooses; train the recipe by itself instead"
            )
    check_measure(changed(SCALES[asked.scale].measure, asked.measure))
    _check_place(asked)
    if asked.testsets and not SCALES[asked.scale].testsets:
        raise ValueError(
            f"--testset is of ImageNet's classes, which --scale {asked.scale} has not; leave it out"
        )


def check_measure(config: MeasureConfig) -> None:
    """Refuse settings of measurements, in the words of the flags that `reproduce` has for them.

    Raises:
        ValueError: names the flag, the value given, what is allowed."""
    try:
        configs.validate_measure(config)
    except ValueError as error:
        raise ValueError(str(error).replace("--", "--measure.", 1)) from None


MARK = "study.json"
"""The file that tells the folder of a study from a run's."""


def _check_place(asked: Asked) -> None:
    """Refuse an output that is a file, or has a run where a study would be written."""
    if asked.output.exists() and not asked.output.is_dir():
        raise ValueError(f"--output {asked.output} is a file; give a folder")
    for folder in (asked.output / name for name in asked.names):
        if (folder / "config.json").is_file() and not (folder / MARK).is_file():
            raise ValueError(
                f"{folder} is a run, and a study would be written there; give another --output"
            )


def rows_of(name: str, asked: Asked) -> list[Row]:
    """The rows of a study that are asked for."""
    rows = STUDIES[name].rows(SCALES[asked.scale])
    return [
        row
        for row in rows
        if not asked.rows or any(fnmatch(row.key, pattern) for pattern in asked.rows)
    ]


def claims_of(name: str, asked: Asked) -> list[Claim]:
    """The claims of a study about rows that are asked for."""
    keys = {row.key for row in rows_of(name, asked)}
    return [
        claim
        for claim in STUDIES[name].claims(SCALES[asked.scale])
        if {row for row, _ in claim.cells} <= keys
    ]


def tasks_of(asked: Asked) -> list[Task]:
    """The runs of all studies, each once with all that any of them measures; those that others
    start from come first.

    Seeds take turns, so that what there is when one stops is of all rows."""
    scale = SCALES[asked.scale]
    wanted: dict[Row, dict[str, None]] = {}
    for name in asked.names:
        for row in rows_of(name, asked):
            if row.transfer:
                wanted.setdefault(row.origin, {})
            wanted.setdefault(row, {}).update(dict.fromkeys(needs(STUDIES[name], scale)))
    tasks = [_task(row, seed, wanted[row], asked) for seed in range(asked.seeds) for row in wanted]
    return sorted(tasks, key=lambda task: bool(task.row.transfer))


def needs(study: Study, scale: Scale) -> list[str]:
    """Measurements that a study takes of every run."""
    found = [COLUMNS[column].measurement for column in study.columns(scale)]
    return [name for name in dict.fromkeys([*found, *study.pictures]) if name]


def _task(row: Row, seed: int, measurements: Iterable[str], asked: Asked) -> Task:
    scale = SCALES[asked.scale]
    config = (
        _transfer(row, scale, seed, asked)
        if row.transfer
        else shorter(config_of(row, scale), asked.changes)
    )
    config = replace(
        config, seed=seed, output=asked.output, name=f"{name_of(row, scale)}-seed{seed}"
    )
    configs.validate(config)
    measured = [found for name in measurements for found in _measured(name, config, asked)]
    return Task(config, tuple(measured), row, seed)


def _transfer(row: Row, scale: Scale, seed: int, asked: Asked) -> Config:
    """Fine-tuning as in Table 11, from the run of the same seed; as many images of the new source
    as of the old."""
    config = recipes.transfer(10_000 if row.transfer.startswith("cifar") else 2_000)
    first = _with(config_of(row.origin, scale), asked.changes)
    origin = asked.output / f"{name_of(row.origin, scale)}-seed{seed}"
    data = replace(config.data, source=row.transfer, image_size=first.data.image_size, fraction=first.data.fraction,
                   root=first.data.root)  # fmt: skip
    if not scale.testsets:
        data = replace(data, batch_size=first.data.batch_size, crop="pad", flip=True)
        config = replace(
            config,
            steps=_TRANSFER_STEPS,
            optim=replace(config.optim, warmup_steps=_TRANSFER_STEPS // 20),
        )
    changes = {
        k: v for k, v in asked.changes.items() if k.split(".")[0] in ("run", "epochs", "steps")
    }
    config = replace(config, recipe="transfer", init=str(origin), model=first.model, data=data)
    return _with(config, changes)


_TRANSFER_STEPS = 1000
"""Of fine-tuning at the small scales."""


def _measured(name: str, config: Config, asked: Asked) -> list[Measured]:
    """The settings of a measurement; one for each test set that is there."""
    base: MeasureConfig = changed(SCALES[asked.scale].measure, asked.measure)
    base = replace(base, device=config.run.device)
    if "data.workers" in asked.changes:
        base = replace(base, workers=config.data.workers)
    if name == "ntk":
        return [
            Measured(
                name, replace(base, checkpoint="init", images=0, ntk_relu=True, ntk_head="random")
            )
        ]
    if name == "testset":
        return [Measured(name, replace(base, testset=testset)) for testset in asked.testsets]
    if name in ("robustness", "attack"):
        return [Measured(name, replace(base, images=0))]
    return [Measured(name, base)]


def shorter(config: Config, changes: Mapping[str, Any]) -> Config:
    """The changed config; where it has fewer epochs, warm-up shrinks with them unless that is
    changed too."""
    short = _with(config, changes)
    share = short.epochs / config.epochs
    if share < 1 and "optim.warmup_steps" not in changes:
        warmup = int(short.optim.warmup_steps * share)
        short = replace(short, optim=replace(short.optim, warmup_steps=warmup))
    return short


def _with(config: Config, changes: Mapping[str, Any]) -> Config:
    found: Config = changed(config, changes)
    return found


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A config with some of its settings replaced, by dotted name."""
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        config = replace(
            config, **{head: changed(getattr(config, head), {rest: value}) if rest else value}
        )
    return config


# --- cost
# ------------------------------------------------------------------------------------------------------------

_LANCZOS = 13
"""Products that an eigenvalue takes, in the middle."""
_PRODUCT = 2.5
"""Gradients that a Hessian product takes, in time."""


def training_gradients(config: Config, num_train: int) -> float:
    """Images times gradients that training takes; evaluation, a few percent, is left out."""
    return configs.image_gradients(config, num_train) * (1 + 0.98 * len(config.grid.lr))


def measuring_gradients(measured: Measured, num_train: int, num_val: int) -> float:
    """Images times gradients that a measurement takes, about; a forward pass is a third of a
    gradient."""
    config = measured.config
    images = min(config.images or num_train, num_train)
    corrupted = min(config.corruption_images or num_val, num_val)
    attacked = min(config.attack_images or num_val, num_val)
    work: dict[str, float] = {
        "hessian": _LANCZOS * _PRODUCT * images * config.k,
        "blocks": 7 * _LANCZOS * _PRODUCT * images,
        "flatness": (config.draws + 1) / 3 * images,
        "ntk": 2.0 * config.ntk_batch * config.ntk_batches,
        "robustness": 19 * len(config.severities) / 3 * corrupted,
        "attack": 6.0 * config.attack_steps * attacked,
        "landscape": config.points**config.dims
        / 3
        * min(config.landscape_images or images, images),
        "testset": 50_000 / 3,
    }
    return work.get(measured.name, images / 3)


def command_of(task: Job) -> Sequence[str]:
    """The words that train a task's run by themselves, where `reproduce` finds it."""
    base = recipes.get(task.config.recipe).config()
    return ["samovar", "train", task.config.recipe, *configs.to_flags(task.config, base)]
