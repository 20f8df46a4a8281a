"""Plan of a comparison: its relatives, their runs and measurements.

Nothing in this file needs torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from samovar import config as configs
from samovar import recipes
from samovar.config import Config, MeasureConfig, SamConfig
from samovar.config.encoded import dashed
from samovar.recipes.relatives import RELATIVES, related, relative
from samovar.studies.columns import COLUMNS
from samovar.studies.compare.cost import Cost, steps_for
from samovar.studies.jobs import Job, Measured, check_measure

Budget = Literal["steps", "time"]

BUDGETS: dict[str, tuple[Budget, ...]] = {
    "steps": ("steps",),
    "time": ("time",),
    "both": ("steps", "time"),
}
"""Budgets by the word that `--budget` takes."""

YARDSTICKS = ("plain", "sam")
"""Relatives that are in every comparison: SAM's gain is the difference between them."""

RELATIVES_COMPARED = (
    "plain", "sam", "quarter", "every5", "looksam", "late", "msam", "sam-on", "gsam", "fsam", "wsam"
)  # fmt: skip
"""Relatives compared without `--sam`."""

COMPARED = ("top1", "lambda_max", "corruption")
"""Names of the columns of `samovar.studies.columns` that are compared."""

# samples of images, so that measuring takes little time beside training
MEASURE = MeasureConfig(
    checkpoint="last", threads=1, workers=0, processes=1, images=1000, corruption_images=300
)

COMPARISON_FILE = "compare.json"
"""File that distinguishes the folder of a comparison from a run's."""

CHOSEN = ("seed", "name", "output")
"""Settings that a comparison chooses itself."""

ASIDE = (
    "recipe", "name", "output", "seed", "run.threads", "run.log_every", "run.keep", "run.loggers",
    "data.root", "data.workers", "data.loader",
)  # fmt: skip
"""Settings that may differ when a comparison goes on."""


@dataclass(frozen=True)
class CompareRequest:
    """A `samovar compare` command line."""

    recipe: str
    base: Config
    """Trains with SAM; the relatives are changes of it."""
    relatives: tuple[str, ...]
    """Names of `RELATIVES`, some joined by + with others or with settings; plain and sam first."""
    seeds: int
    output: Path
    budgets: tuple[Budget, ...] = ("steps",)
    measure: MeasureConfig = MEASURE
    jobs: int = 1


@dataclass(frozen=True)
class CompareJob(Job):
    """A run of a relative and its measurements."""

    relative: str
    seed: int
    budget: Budget

    @property
    def title(self) -> str:
        """Relative, seed, and the budget where it is not the recipe's steps."""
        title = f"{self.relative}, seed {self.seed}"
        return f"{title}, SAM's time" if self.budget == "time" else title


# --- the request


def with_sam(recipe: str, config: Config) -> Config:
    """Return the settings of a recipe, with its twin's SAM where it has none."""
    twin = f"{recipe}-sam"
    if config.sam.rho or twin not in recipes.RECIPES:
        return config
    return replace(config, sam=recipes.get(twin).config().sam)


def relatives_of(text: str | None) -> tuple[str, ...]:
    """Parse a comma-separated list of relatives; the yardsticks come first.

    Raises:
        ValueError: the list is empty."""
    names = RELATIVES_COMPARED if text is None else tuple(filter(None, text.split(",")))
    if not names:
        raise ValueError(
            f"--sam {text!r} names nothing; give some of {', '.join(RELATIVES)}, "
            "with commas between them"
        )
    return tuple(dict.fromkeys((*YARDSTICKS, *names)))


def check(request: CompareRequest) -> None:
    """Check that the relatives can be compared.

    Raises:
        ValueError: a recipe without a radius or with a relative of SAM, relatives that do not fit
            it, a folder of other runs."""
    base = request.base
    if not base.sam.rho:
        raise ValueError(
            f"{request.recipe} with --sam.rho 0 has no SAM to compare; "
            "give a radius, or a recipe with SAM"
        )
    # relatives are defined as changes of SAM, not of each other
    if words := configs.sam_words(base.sam):
        raise ValueError(
            f"{request.recipe} with {words} trains with a relative of SAM already; "
            "give the recipe with SAM, and name relatives by --sam"
        )
    configs.validate(base)
    for name in request.relatives:
        config_of(request, name)
    check_measure(request.measure)
    _check_place(request)


def config_of(request: CompareRequest, name: str) -> Config:
    """Return the settings of a relative.

    Raises:
        ValueError: an unknown name, or one that does not fit the recipe."""
    where = f"--sam {name}"
    try:
        relative(name)
        where += f" with {request.recipe}"  # the name is known, so what fails is the combination
        return related(request.base, name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def passes_of(request: CompareRequest) -> dict[str, float]:
    """Return the gradients of each image that a step of each relative takes."""
    return {name: configs.passes(config_of(request, name)) for name in request.relatives}


def _check_place(request: CompareRequest) -> None:
    """Refuse an output that is a file, a run, or a comparison of other settings."""
    output, saved = request.output, request.output / "config.json"
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; give a folder")
    if not saved.is_file():
        return
    if not (output / COMPARISON_FILE).is_file():
        raise ValueError(f"{output} is a run, not a comparison; give another --output")
    for name, (before, now) in configs.differences(configs.load(saved), request.base).items():
        if name not in ASIDE:
            raise ValueError(
                f"{output} compares runs with --{dashed(name)} {before}, not {now}; "
                "give another --output"
            )


# --- runs


def job_of(
    request: CompareRequest,
    name: str,
    seed: int,
    budget: Budget,
    costs: Mapping[str, Cost],
    total: int,
) -> CompareJob:
    """Return the run of a relative.

    SAM's run is the same under every budget, since the time that the others get is its own.

    Args:
        total: steps of the recipe."""
    budget = "steps" if name == "sam" else budget
    config = config_of(request, name)
    if budget == "time":
        config = replace(config, steps=steps_for(total, costs[name], costs["sam"]))
    timed = "time" if budget == "time" else ""
    parts = [request.recipe.removesuffix("-sam"), name, timed, f"seed{seed}"]
    folder = "-".join(filter(None, parts))  # no suffix: a recipe and its twin share their runs
    config = replace(config, seed=seed, output=request.output, name=folder)
    return CompareJob(config, _measured(request), name, seed, budget)


def _measured(request: CompareRequest) -> tuple[Measured, ...]:
    """Return the measurements of every run, as the compared columns need them."""
    base = replace(request.measure, device=request.base.run.device)
    names = [COLUMNS[column].measurement for column in COMPARED]
    return tuple(
        # corrupted images are drawn from all that are held out
        Measured(name, replace(base, images=0) if name == "robustness" else base)
        for name in names
        if name
    )


def jobs_of(request: CompareRequest, costs: Mapping[str, Cost], total: int) -> list[CompareJob]:
    """Return all runs, each once.

    Seeds take turns, so that a stopped command has done some of every relative."""
    jobs = [
        job_of(request, name, seed, budget, costs, total)
        for seed in range(request.seeds)
        for budget in request.budgets
        for name in request.relatives
    ]
    # SAM's runs are in both budgets
    unique = list({job.folder: job for job in jobs}.values())
    # a tail alone has nobody to share its stable phase with
    users = Counter(_stable(request, job, total) for job in unique)
    return [
        replace(job, trunk=stable.output / stable.name)
        if (stable := _stable(request, job, total)) and users[stable] > 1
        else job
        for job in unique
    ]


def _stable(request: CompareRequest, job: CompareJob, total: int) -> Config | None:
    """Return the run of a job's steps before the decay of `wsd`; None where they are not plain.

    Runs of one seed share it, since they differ in the decay alone.

    Args:
        total: steps of the recipe."""
    config = job.config
    first = configs.decay_start(config.optim, total)
    plain_before = not config.sam.rho or configs.sam_span(config, total)[0] >= first
    # under time each run has a length of its own; patience could end the stable phase early
    shares = job.budget == "steps" and config.optim.schedule == "wsd" and not config.run.patience
    # a grid chooses the rate of each run by itself, and a contrastive run has two stages
    shares = shares and not config.grid.lr and config.loss != "supcon"
    if not (shares and plain_before and first):
        return None
    return replace(
        config,
        steps=first,
        optim=replace(config.optim, schedule="constant"),
        sam=SamConfig(),
        name=f"{request.recipe.removesuffix('-sam')}-stable-seed{job.seed}",
    )


def trunks_of(request: CompareRequest, jobs: Sequence[CompareJob], total: int) -> list[CompareJob]:
    """Return the runs that several of the jobs branch from, each once.

    Args:
        total: steps of the recipe."""
    found = {}
    for job in jobs:
        stable = _stable(request, job, total) if job.trunk else None
        if stable:
            found[job.trunk] = CompareJob(stable, (), "stable phase", job.seed, "steps")
    return list(found.values())
