"""`samovar compare`: costs, runs, page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from samovar import config as configs
from samovar import report
from samovar.data.sources import open_source
from samovar.runs.json_files import Damaged, read_object
from samovar.runs.records import RunDir, replace_text
from samovar.runtime.lock import locked
from samovar.runtime.terminal import console
from samovar.studies.columns import COLUMNS
from samovar.studies.compare import timing
from samovar.studies.compare.cost import Cost, counted
from samovar.studies.compare.plan import CompareJob, job_of, jobs_of, trunks_of
from samovar.studies.compare.recorded import records_of
from samovar.studies.compare.request import (
    COMPARED,
    COMPARISON_FILE,
    YARDSTICKS,
    Budget,
    CompareRequest,
    config_of,
    passes_of,
)
from samovar.studies.compare.results import CompareResults, results
from samovar.studies.compare.view import cost_line, markdown, plan_head, table
from samovar.studies.jobs import refuse_torchrun
from samovar.studies.own_folder import make_folder, write_records, write_study
from samovar.studies.running import is_done, run_all
from samovar.studies.running import records_of as own_records
from samovar.studies.terminal import job_line, print_plan, progress, resumable
from samovar.train.rehearse import Data, data_of


def compare(
    request: CompareRequest, words: Sequence[str], *, only_plan: bool = False
) -> Path | None:
    """Compare the relatives that are asked for, and return the page; None for a plan.

    Args:
        words: the command line, repeated after an interruption.
        only_plan: print the plan with the command of each run, and stop.

    Raises:
        ValueError: missing data, a folder of other runs.
        SystemExit: 128 + signal after an interruption, 1 after a full disk or a lost process; a
            line says how to go on."""
    refuse_torchrun("compare")
    known = _read(request)  # also to refuse a damaged file before any work
    if only_plan:
        # costs that are not measured yet are counted, so a plan takes no time
        costs = counted(passes_of(request)) | known
        total = configs.num_steps(request.base, data_of(request.base).num_train)
        _print(request, jobs_of(request, costs, total), total, only_plan)
        return None
    source = open_source(request.base.data)
    data = Data(len(source.train), len(source.classes), source.channels)
    make_folder(request.output, request.output)
    # of two commands one measures the costs, and the other reads them
    with locked(request.output, "study", wait=True):
        costs = _costs(request, _read(request), data)
    total = configs.num_steps(request.base, data.num_train)
    jobs = jobs_of(request, costs, total)
    trunks = _print(request, jobs, total, only_plan)
    with resumable(words), progress(len(trunks) + len(jobs), job_line) as show:
        run_all([*trunks, *jobs], at_a_time=request.jobs, on_done=show)
    return _finish(request, costs, jobs, data)


def _print(
    request: CompareRequest, jobs: Sequence[CompareJob], total: int, only_plan: bool
) -> list[CompareJob]:
    """Print the plan, and return the stable phases that runs still to do branch from."""
    left = [job for job in jobs if not is_done(job)]
    trunks = trunks_of(request, left, total)
    print_plan(
        plan_head(request),
        jobs,
        left,
        of_each=f"{request.seeds} of each relative",
        at_a_time=request.jobs,
        commands=only_plan,
    )
    if trunks:
        tails = sum(job.trunk is not None for job in left)
        print(
            f"{tails} of them are tails: the {trunks[0].config.steps:,} steps before the decay are "
            f"trained once for each seed",
            flush=True,
        )
    return trunks


# --- costs, measured once


def _read(request: CompareRequest) -> dict[str, Cost]:
    """Return the costs that an earlier command measured.

    Raises:
        ValueError: the file is damaged."""
    path = request.output / COMPARISON_FILE
    if not path.is_file():
        return {}
    try:
        saved = read_object(path)["costs"]
        return {name: Cost(**cost) for name, cost in saved.items()}
    except Damaged as error:
        raise ValueError(f"{error}; remove it, and costs are measured anew") from None
    # no costs in it, or costs with other fields
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove it, and costs are measured anew"
        ) from None


def _costs(request: CompareRequest, known: Mapping[str, Cost], data: Data) -> dict[str, Cost]:
    """Measure the costs that are missing, and save all of them.

    Known costs stay, so that a restart trains for as many steps as before."""
    missing = [name for name in request.relatives if name not in known]
    costs = dict(known)
    if missing:
        # costs are ratios to plain, which is timed again beside those that are missing
        timed = dict.fromkeys([YARDSTICKS[0], *missing])
        print(f"measuring the cost of a step: {', '.join(missing)}", flush=True)
        found = timing.measure({name: config_of(request, name) for name in timed}, data)
        costs |= {name: cost for name, cost in found.items() if name in missing}
    _save(request, costs, data)  # before the first run, so that a restart finds the same costs
    print(cost_line({name: costs[name] for name in request.relatives}), flush=True)
    return costs


def _save(request: CompareRequest, costs: Mapping[str, Cost], data: Data) -> None:
    """Write the folder of the comparison: its request and the costs of steps."""
    base = request.base
    facts: dict[str, Any] = {
        "recipe": request.recipe,
        "relatives": request.relatives,
        "seeds": request.seeds,
        "budgets": request.budgets,
        "training_images": data.num_train,
        "steps": configs.num_steps(base, data.num_train),
        "timing": {
            "threads": 1,
            "images": timing.timed_images(base) if base.data.image_size else None,
            "repetitions": timing.REPETITIONS,
        },
        "costs": {name: asdict(cost) for name, cost in costs.items()},
    }
    folder = RunDir(request.output)
    write_study(folder, COMPARISON_FILE, facts, base, recipe=f"compare {request.recipe}")


# --- results


def _finish(
    request: CompareRequest, costs: Mapping[str, Cost], jobs: Sequence[CompareJob], data: Data
) -> Path:
    """Write records, tables and page, and print the tables."""
    numbers: dict[Path, dict[str, float]] = {}
    for job in jobs:
        records = own_records(job)
        numbers[job.folder] = {column: COLUMNS[column].value(records) for column in COMPARED}
    found = [_results(request, budget, costs, numbers, data) for budget in request.budgets]
    shown = console(columns=160)
    for each in found:
        shown.print(table(each, request))
        shown.print(each.answer, highlight=False, soft_wrap=True)
    folder = RunDir(request.output)
    records = [record for each in found for record in records_of(each, request)]
    write_records(folder, records, request.base.run)
    replace_text(request.output / "compare.md", markdown(found, request))
    # one seed of each relative is enough for the curves; SAM's run serves both budgets
    first = [
        job.folder
        for job in jobs
        if job.seed == 0 and (job.budget == request.budgets[0] or job.relative == "sam")
    ]
    page = report.write([folder.path, *first], request.output / "compare.html")
    print(f"page: {page}")
    return page


def _results(
    request: CompareRequest,
    budget: Budget,
    costs: Mapping[str, Cost],
    numbers: Mapping[Path, Mapping[str, float]],
    data: Data,
) -> CompareResults:
    """Judge the relatives under one budget.

    Args:
        numbers: by run folder, then column."""
    total = configs.num_steps(request.base, data.num_train)
    values: dict[str, dict[str, list[float]]] = {}
    steps: dict[str, int] = {}
    for name in request.relatives:
        # SAM has one run under both budgets, and `job_of` finds it for both
        jobs = [job_of(request, name, seed, budget, costs, total) for seed in range(request.seeds)]
        steps[name] = configs.num_steps(jobs[0].config, data.num_train)
        values[name] = {c: [numbers[job.folder][c] for job in jobs] for c in COMPARED}
    return results(budget, costs, steps, values, request.seeds)
