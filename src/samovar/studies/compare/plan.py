"""Runs of a comparison and their measurements.

Nothing in this file needs torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from samovar import config as configs
from samovar.config import Config, SamConfig
from samovar.studies.columns import COLUMNS
from samovar.studies.compare.cost import Cost, steps_for
from samovar.studies.compare.request import COMPARED, Budget, CompareRequest, config_of
from samovar.studies.jobs import Job, Measured


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
    # without `-sam`, since a recipe and its twin share their runs; RUN@STEP names a step of a run
    folder = "-".join(filter(None, parts)).replace("@", "-")
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
