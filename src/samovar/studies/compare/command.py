"""`samovar compare` from the shell: costs, runs, page."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from samovar import config as configs
from samovar import report
from samovar.data.sources import open_source
from samovar.runs.records import RunDir, replace_text
from samovar.runtime import provenance, started
from samovar.runtime.workers import Stopped
from samovar.studies.compare import timing
from samovar.studies.compare.cost import Cost, counted
from samovar.studies.compare.plan import MARK, YARDSTICKS, Asked, Run, config_of, run_of, runs_of
from samovar.studies.compare.recorded import records_of
from samovar.studies.compare.results import COLUMNS, Results, results
from samovar.studies.compare.view import cost_line, markdown, passes_of, plan_lines, table
from samovar.studies.reproduce.columns import COLUMNS as ALL
from samovar.studies.reproduce.command import seconds_left
from samovar.studies.reproduce.plan import command_of
from samovar.studies.reproduce.runs import is_done, run_all
from samovar.studies.reproduce.runs import records_of as own_records
from samovar.studies.reproduce.view import duration, progress
from samovar.train.dry_run import Data, data_of


def compare(asked: Asked, words: Sequence[str], *, only_plan: bool = False) -> Path | None:
    """Compare the relatives that are asked for; returns the page, None of a plan.

    Args:
        words: the command line, to be said again after an interruption.
        only_plan: print what would be done, with the command of each run, and stop.

    Raises:
        ValueError: data that is not there, a folder of other runs.
        SystemExit: 128 + signal after an interruption, 1 after a full disk or a lost process; all
            say how to go on."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "samovar compare starts processes itself; give --jobs N without torchrun, and N GPUs are used"
        )
    known = _read(asked)
    if only_plan:
        data = data_of(asked.base)
        _tell(
            asked, runs_of(asked, counted(passes_of(asked)) | known, _total(asked, data)), only_plan
        )
        return None
    source = open_source(asked.base.data)
    data = Data(len(source.train), len(source.classes), source.channels)
    costs = _costs(asked, known, data)
    runs = runs_of(asked, costs, _total(asked, data))
    _tell(asked, runs, only_plan)
    try:
        with progress(len(runs)) as show:
            run_all(runs, jobs=asked.jobs, on_done=show)
    except (Stopped, OSError) as error:
        print(
            f"samovar: {error}; the same command goes on from here: {shlex.join(words)}",
            file=sys.stderr,
        )
        raise SystemExit(128 + error.signum if isinstance(error, Stopped) else 1) from None
    return _finish(asked, costs, runs, data)


def _total(asked: Asked, data: Data) -> int:
    return configs.num_steps(asked.base, data.num_train)


def _tell(asked: Asked, runs: Sequence[Run], only_plan: bool) -> None:
    left = [run for run in runs if not is_done(run)]
    commands = [command_of(run) for run in left] if only_plan else []
    print("\n".join(plan_lines(asked, runs, left, commands)), flush=True)
    if left:
        print(
            f"about {duration(seconds_left(left))} of one core or GPU here, {asked.jobs} at a time",
            flush=True,
        )


# --- costs, measured once
# --------------------------------------------------------------------------------------------


def _read(asked: Asked) -> dict[str, Cost]:
    """The costs that an earlier command measured.

    Raises:
        ValueError: the file is damaged."""
    path = asked.output / MARK
    if not path.is_file():
        return {}
    try:
        return {
            name: Cost(**cost)
            for name, cost in json.loads(path.read_text(encoding="utf-8"))["costs"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove it, and costs are measured anew"
        ) from None


def _costs(asked: Asked, known: Mapping[str, Cost], data: Data) -> dict[str, Cost]:
    """The costs of all relatives; what is known stays, so that a restart trains for as many steps
    as before."""
    missing = [name for name in asked.relatives if name not in known]
    costs = dict(known)
    if missing:
        timed = dict.fromkeys([YARDSTICKS[0], *missing])
        print(f"measuring what a step of {', '.join(missing)} costs", flush=True)
        costs |= {
            name: cost
            for name, cost in timing.measure(
                {name: config_of(asked, name) for name in timed}, data
            ).items()
            if name in missing
        }
    _save(asked, costs, data)
    print(cost_line({name: costs[name] for name in asked.relatives}), flush=True)
    return costs


def _save(asked: Asked, costs: Mapping[str, Cost], data: Data) -> None:
    """Make the folder of the comparison, with what it is of and what steps cost."""
    folder = RunDir(asked.output)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write to --output {asked.output}: {error.strerror}; give another"
        ) from error
    base = asked.base
    facts: dict[str, Any] = {
        "recipe": asked.recipe, "relatives": asked.relatives, "seeds": asked.seeds, "budgets": asked.budgets,
        "training_images": data.num_train, "steps": _total(asked, data),
        "timing": {"threads": 1, "images": timing.timed_images(base) if base.data.image_size else None,
                   "repetitions": timing.REPETITIONS},
        "costs": {name: asdict(cost) for name, cost in costs.items()},
    }  # fmt: skip
    folder.write_json(MARK, facts)
    named = replace(
        base, name=asked.output.name, output=asked.output.parent, recipe=f"compare {asked.recipe}"
    )
    folder.write_json(folder.config_path.name, configs.to_dict(named))


# --- what came of it
# -------------------------------------------------------------------------------------------------


def _finish(asked: Asked, costs: Mapping[str, Cost], runs: Sequence[Run], data: Data) -> Path:
    """Write records, tables and page, print the tables."""
    numbers = {run.folder: _numbers(run) for run in runs}
    found = [_results(asked, budget, costs, numbers, data) for budget in asked.budgets]
    console = Console(width=None if sys.stdout.isatty() else 160)
    for each in found:
        console.print(table(each, asked))
        console.print(each.answer, highlight=False, soft_wrap=True)
    folder = RunDir(asked.output)
    with started(asked.base.run) as runtime:
        folder.write_json("provenance.json", provenance(runtime))
    replace_text(folder.records_path, "")
    folder.append(*(record for each in found for record in records_of(each, asked)))
    replace_text(asked.output / "compare.md", markdown(found, asked))
    first = [
        run.folder
        for run in runs
        if run.seed == 0 and (run.budget == asked.budgets[0] or run.relative == "sam")
    ]
    page = report.write([folder.path, *first], asked.output / "compare.html")
    print(f"page: {page}")
    return page


def _numbers(run: Run) -> dict[str, float]:
    records = own_records(run)
    return {column: ALL[column].value(records) for column in COLUMNS}


def _results(
    asked: Asked,
    budget: Any,
    costs: Mapping[str, Cost],
    numbers: Mapping[Path, Mapping[str, float]],
    data: Data,
) -> Results:
    """The results under one budget, of the numbers of every run by its folder."""
    total = _total(asked, data)
    table_of: dict[str, dict[str, list[float]]] = {}
    steps: dict[str, int] = {}
    for name in asked.relatives:
        runs = [run_of(asked, name, seed, budget, costs, total) for seed in range(asked.seeds)]
        steps[name] = configs.num_steps(runs[0].config, data.num_train)
        table_of[name] = {
            c: [numbers.get(run.folder, {}).get(c, math.nan) for run in runs] for c in COLUMNS
        }
    return results(budget, costs, steps, table_of, asked.seeds)
