"""`samovar reproduce`: plan, runs, page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samovar import report
from samovar.config import DataConfig
from samovar.data.sources import open_source
from samovar.runs.records import RunDir, replace_text
from samovar.runtime.terminal import console
from samovar.studies.jobs import Job, refuse_torchrun
from samovar.studies.own_folder import write_records, write_study
from samovar.studies.reproduce import plan
from samovar.studies.reproduce.plan import STUDY_FILE, ReproduceJob, ReproduceRequest
from samovar.studies.reproduce.results import ReproduceResults, records_of, results
from samovar.studies.reproduce.scales import SCALES
from samovar.studies.reproduce.studies import STUDIES
from samovar.studies.reproduce.view import claims_table, markdown, numbers_table, plan_head
from samovar.studies.running import is_done, run_all
from samovar.studies.terminal import job_line, print_plan, progress, resumable


def reproduce(
    request: ReproduceRequest, words: Sequence[str], *, only_plan: bool = False
) -> list[Path]:
    """Do the studies that are asked for, and return their pages.

    Args:
        words: the command line, repeated after an interruption.
        only_plan: print the plan with the command of each run, and stop.

    Raises:
        ValueError: a study without rows at this scale, missing data, a folder of other runs.
        SystemExit: 128 + signal after an interruption, 1 after a full disk or a lost process; a
            line says how to go on."""
    refuse_torchrun(
        "reproduce",
        "give --jobs N without torchrun, or train its runs by torchrun with the commands that "
        "--plan prints",
    )
    # all checks come first: a mistake should not show after hours of training
    plan.check(request)
    jobs = plan.jobs_of(request)
    left = [job for job in jobs if not is_done(job)]
    if left and not only_plan:
        check_data(left)
    print_plan(
        plan_head(request),
        jobs,
        left,
        of_each=f"{request.seeds} of each setting",
        at_a_time=request.jobs,
        commands=only_plan,
    )
    if only_plan:
        return []
    with resumable(words), progress(len(jobs), job_line) as show:
        run_all(jobs, at_a_time=request.jobs, on_done=show)
    return [_finish(name, request, jobs) for name in request.names]


def check_data(jobs: Sequence[Job]) -> None:
    """Open every source once, so that missing data is found before the first run.

    Raises:
        ValueError: the path that is missing, or the download that failed."""
    # sources are cheap to open, and the settings that only prepare images are left out
    opened: set[DataConfig] = set()
    for job in jobs:
        given = job.config.data
        data = DataConfig(
            source=given.source,
            root=given.root,
            val_share=given.val_share,
            fraction=given.fraction,
        )
        if data not in opened:
            open_source(data)
            opened.add(data)


def _finish(name: str, request: ReproduceRequest, jobs: Sequence[ReproduceJob]) -> Path:
    """Write a study's records and page, and print its tables."""
    own = [job for job in jobs if job.row in plan.rows_of(name, request)]
    found = results(name, request, jobs)
    folder = _write(found, request, own)
    shown = console(columns=140)
    shown.print(numbers_table(found, request.seeds))
    if found.outcomes:
        shown.print(claims_table(found.outcomes))
    replace_text(request.output / f"{name}.md", markdown(found))
    # the report draws curves and landscapes of one seed; the means are in the study's records
    first = [job.folder for job in own if job.seed == 0]
    page = report.write([folder.path, *first], request.output / f"{name}.html")
    print(f"page: {page}")
    return page


def _write(
    found: ReproduceResults, request: ReproduceRequest, own: Sequence[ReproduceJob]
) -> RunDir:
    """Write the study's folder anew, with its numbers and verdicts: they follow from the runs."""
    folder = RunDir(request.output / found.name)
    study = STUDIES[found.name]
    changes = {**request.changes, **request.measure}
    facts = {
        "study": found.name,
        "title": study.title,
        "where": study.where,
        "scale": request.scale,
        "seeds": request.seeds,
        "summary": SCALES[request.scale].summary,
        "changed": {key: str(value) for key, value in changes.items()},
    }
    config = own[0].config
    write_study(folder, STUDY_FILE, facts, config, recipe=f"reproduce {found.name}")
    write_records(folder, records_of(found, request), config.run)
    return folder
