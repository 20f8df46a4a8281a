"""`samovar reproduce` from the shell: plan, runs, page."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from samovar import config as configs
from samovar import report
from samovar.config import Config, DataConfig
from samovar.data.sources import open_source
from samovar.runs import checkpoint
from samovar.runs.records import RunDir, replace_text
from samovar.runtime import provenance, started
from samovar.runtime.workers import Stopped
from samovar.studies.reproduce import plan as plans
from samovar.studies.reproduce.markdown import markdown
from samovar.studies.reproduce.plan import MARK, Asked, Job, Task
from samovar.studies.reproduce.results import Results, records_of, results
from samovar.studies.reproduce.runs import is_done, run_all
from samovar.studies.reproduce.scales import SCALES
from samovar.studies.reproduce.studies import STUDIES
from samovar.studies.reproduce.view import (
    claims_table,
    duration,
    numbers_table,
    plan_lines,
    progress,
)
from samovar.train.dry_run import Data, data_of, rehearse


def reproduce(asked: Asked, words: Sequence[str], *, only_plan: bool = False) -> list[Path]:
    """Do the studies that are asked for; returns their pages.

    Args:
        words: the command line, to be said again after an interruption.
        only_plan: print what would be done, with the command of each run, and stop.

    Raises:
        ValueError: a study without rows at this scale, data that is not there, a folder of other
            runs.
        SystemExit: 128 + signal after an interruption, 1 after a full disk or a lost process; all
            say how to go on."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "samovar reproduce starts processes itself; give --jobs N without torchrun, or train its runs by torchrun "
            "with the commands that --plan prints"
        )
    plans.check(asked)
    tasks = plans.tasks_of(asked)
    left = [task for task in tasks if not is_done(task)]
    if left and not only_plan:
        check_data(left)
    print("\n".join(plan_lines(asked, tasks, left, only_plan)), flush=True)
    if left:
        print(
            f"about {duration(seconds_left(left))} of one core or GPU here, {asked.jobs} at a time",
            flush=True,
        )
    if only_plan:
        return []
    try:
        with progress(len(tasks)) as show:
            run_all(tasks, jobs=asked.jobs, on_done=show)
    except (Stopped, OSError) as error:
        print(
            f"samovar: {error}; the same command goes on from here: {shlex.join(words)}",
            file=sys.stderr,
        )
        raise SystemExit(128 + error.signum if isinstance(error, Stopped) else 1) from None
    return [_finish(name, asked, tasks) for name in asked.names]


def check_data(tasks: Sequence[Job]) -> None:
    """Open every source once, so that what is not there is told before the first run.

    Raises:
        ValueError: names the path, or the download that failed."""
    opened: set[DataConfig] = set()
    for task in tasks:
        data = replace(DataConfig(), source=task.config.data.source, root=task.config.data.root)
        data = replace(data, val_share=task.config.data.val_share)
        if data not in opened:
            open_source(data)
            opened.add(data)


def seconds_left(tasks: Sequence[Job]) -> float:
    """About how long tasks take here on one core or GPU, by a few steps of each network on made
    images."""
    speeds: dict[tuple[str, int], float] = {}
    total = 0.0
    for task in tasks:
        config, data = task.config, data_of(task.config)
        key = config.model.name, config.data.image_size
        if key not in speeds:
            plain = replace(
                config,
                sam=replace(config.sam, rho=0.0),
                loss="softmax",
                steps=0,
                grid=configs.GridConfig(),
            )
            plain = replace(
                plain, data=replace(plain.data, views=1), adversarial=configs.AdversarialConfig()
            )
            with started(config.run) as runtime:
                images = min(2 if config.data.image_size > 64 else 32, config.data.batch_size)
                found = rehearse(plain, runtime, data, images=images)
            speeds[key] = found.seconds / found.images
        work = plans.training_gradients(config, data.num_train) * _left(task, data)
        num_val = 10_000 if data.num_train < 1_000_000 else 50_000
        work += sum(
            plans.measuring_gradients(each, data.num_train, num_val) for each in task.measurements
        )
        total += speeds[key] * work
    return total


def _left(task: Job, data: Data) -> float:
    """The share of a run's training that its last checkpoint leaves."""
    total = sum(configs.num_steps(stage, data.num_train) for stage in configs.stages(task.config))
    saved = checkpoint.steps_saved(RunDir(task.folder).checkpoints)
    return max(0.0, 1 - saved[-1] / total) if saved else 1.0


def _finish(name: str, asked: Asked, tasks: Sequence[Task]) -> Path:
    """Write a study's records and page, print its tables."""
    found = results(name, asked, tasks)
    folder = _record(found, asked, tasks)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(numbers_table(found, asked.seeds))
    if found.outcomes:
        console.print(claims_table(found.outcomes))
    rows = plans.rows_of(name, asked)
    first = [task.folder for task in tasks if task.seed == 0 and task.row in rows]
    replace_text(asked.output / f"{name}.md", markdown(found))
    page = report.write([folder.path, *first], asked.output / f"{name}.html")
    print(f"page: {page}")
    return page


def _record(found: Results, asked: Asked, tasks: Sequence[Task]) -> RunDir:
    """The study's folder with its numbers and verdicts, written anew: they follow from the runs."""
    folder = RunDir(asked.output / found.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    study = STUDIES[found.name]
    facts: dict[str, Any] = {
        "study": found.name,
        "title": study.title,
        "where": study.where,
        "scale": asked.scale,
    }
    facts |= {"seeds": asked.seeds, "summary": SCALES[asked.scale].summary}
    facts |= {
        "changed": {key: str(value) for key, value in {**asked.changes, **asked.measure}.items()}
    }
    folder.write_json(MARK, facts)
    config = next(task.config for task in tasks if task.row in plans.rows_of(found.name, asked))
    named: Config = replace(
        config, name=found.name, output=asked.output, recipe=f"reproduce {found.name}"
    )
    folder.write_json(folder.config_path.name, configs.to_dict(named))
    with started(config.run) as runtime:
        folder.write_json("provenance.json", provenance(runtime))
    replace_text(folder.records_path, "")
    folder.append(*records_of(found, asked))
    return folder
