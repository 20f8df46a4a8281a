"""`samovar tune` from the shell: the runs of a search, a table, a report, and the best recipe as a
command."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from samovar import config as configs
from samovar import report
from samovar.config import Config, DataConfig
from samovar.data.sources import open_source
from samovar.models.load import resolve
from samovar.runs.records import Record, RunDir, replace_text, timestamp
from samovar.runtime import provenance, started
from samovar.runtime.workers import Stopped
from samovar.studies.tune import search
from samovar.studies.tune.search import Outcome, Search, Setting
from samovar.studies.tune.view import (
    Asked,
    Plan,
    best_command,
    doubts,
    plan_lines,
    table_of,
    trial_line,
)
from samovar.train.fit import prepare
from samovar.train.resume import HARMLESS
from samovar.train.trials import Trial, run_trials

SHARE = 0.1
"""Of the training images, to compare on where the source has a validation split of its own."""

MARK = "search.json"
"""The file that tells the folder of a search from a run's."""


def tune(
    config: Config, wanted: Search, asked: Asked, *, share: float | None = None, jobs: int = 1
) -> RunDir:
    """Search below `config.output`, printing how it goes; returns the folder of the search.

    Args:
        share: of each training class, to compare on; None leaves it to the source, see
            `compared_on`.

    Raises:
        ValueError: settings that do not fit each other, another search's folder, no setting with a
            finite result.
        SystemExit: 128 + signal after an interruption, 1 after a full disk or a lost process; all
            say how to go on."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "samovar tune starts processes itself; give --jobs N without torchrun, and N GPUs are used"
        )
    if ":" in config.model.name:  # module:function may lie in the working folder, as with python -m
        sys.path.insert(0, str(Path.cwd()))
    given, config = config, resolve(compared_on(config, share))
    with started(config.run) as runtime:
        source, _ = prepare(config, runtime)
        facts = provenance(runtime)
    plan = _plan(config, wanted, len(source.train), len(source.val))
    run = _open(plan)
    run.write_json("provenance.json", facts)
    print("\n".join(plan_lines(plan)), flush=True)
    try:
        outcomes = _climb(plan, run, jobs)
    except (Stopped, OSError) as error:
        again = shlex.join([*asked.words, "--name", run.path.name])
        print(f"samovar: {error}; the same command goes on from here: {again}", file=sys.stderr)
        raise SystemExit(128 + error.signum if isinstance(error, Stopped) else 1) from None
    _show_result(plan, outcomes, partial(best_command, given, asked))
    print(f"report: {report.write([run.path], run.path / 'report.html')}\nsearch: {run.path}")
    return run


# --- before the first run
# --------------------------------------------------------------------------------------------


def compared_on(config: Config, share: float | None) -> Config:
    """The config with images held out to compare on.

    A validation split of the source's own is often its test set, and is never looked at: a share of
    each training class is held out instead, a tenth unless `share` says otherwise. Where validation
    images are held out of one set of images by `data.val_share`, those are what settings are chosen
    on, unless `share` is given.

    Raises:
        ValueError: a share of 0 of a source with a validation split of its own."""
    own = _has_validation(config.data)
    wanted = config.data.tune_share or None if share is None else share
    if own and wanted == 0:
        raise ValueError(
            f"--share 0 would compare on the validation split of {config.data.source}, which is for the end; give a "
            f"share of the training images, such as {SHARE}"
        )
    held = (SHARE if own else 0.0) if wanted is None else wanted
    return replace(config, data=replace(config.data, tune_share=held))


def _has_validation(data: DataConfig) -> bool:
    """Whether the source comes with a validation split; asked by holding out nothing, which is
    refused without one."""
    try:
        open_source(replace(data, val_share=0.0, tune_share=0.0))
    except ValueError:  # of a source that cannot be opened at all, what follows says the same again
        return False
    return True


def _plan(config: Config, wanted: Search, num_train: int, num_compared: int) -> Plan:
    data = config.data
    held = (
        f"{data.tune_share:g} of each training class"
        if data.tune_share
        else f"--data.val-share {data.val_share:g}"
    )
    images = {
        "source": data.source,
        "images": num_compared,
        "held_out": held,
        "training_images": num_train,
    }
    lengths = search.stage_lengths(config, num_train)
    return Plan(config, wanted, lengths, search.plan(wanted, sum(lengths), config), images)


def _open(plan: Plan) -> RunDir:
    """A new folder for the search, or the one that has its name already."""
    config = plan.config
    run = RunDir(config.output / (config.name or f"tune-{config.recipe}-{timestamp()}"))
    if config.name and run.config_path.is_file():
        _check_same(run, config)
    else:
        run = RunDir.create(config.output, run.path.name)
        run.checkpoints.rmdir()
        run.arrays.rmdir()
    values = {
        "values": dict(plan.search.values),
        "seeds": plan.search.seeds,
        "full": plan.search.full,
    }
    run.write_json(MARK, values)
    run.write_json(run.config_path.name, configs.to_dict(replace(config, name=run.path.name)))
    replace_text(run.records_path, "")  # they follow from the trials, which are kept
    return run


def _check_same(run: RunDir, config: Config) -> None:
    if not (run.path / MARK).is_file():
        raise ValueError(f"{run.path} is a run, not a search; give another --name")
    for name, (before, now) in configs.differences(configs.load(run.config_path), config).items():
        if name not in HARMLESS:
            flag = "--share" if name == "data.tune_share" else "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} {now} differs from the {before} of the search {run.path}; give another --name"
            )


# --- the runs
# --------------------------------------------------------------------------------------------------------


def _climb(plan: Plan, run: RunDir, jobs: int) -> list[Outcome]:
    """Every setting on every rung it came to; the records are written rung by rung."""
    outcomes: list[Outcome] = []
    left = plan.search.settings
    with _progress(plan) as show:
        for number, rung in enumerate(plan.rungs, start=1):
            found = _rung(plan, run, left[: rung.settings], number, jobs, show)
            run.append(*(record for outcome in found for record in records_of(outcome, plan)))
            outcomes += found
            left = [outcome.setting for outcome in search.ranked(found) if outcome.finite]
            if not left:
                flag = "--lr" if "lr" in plan.search.values else "--optim.lr"
                tried = "; ".join(search.label(outcome.setting) for outcome in found[:6])
                more = f" and {len(found) - 6} more" if len(found) > 6 else ""
                raise ValueError(
                    f"no setting gave a finite result: {tried}{more}; lower {flag} or raise --optim.warmup-steps"
                )
    return outcomes


def _rung(
    plan: Plan,
    run: RunDir,
    settings: Sequence[Setting],
    number: int,
    jobs: int,
    show: Callable[[Trial], None],
) -> list[Outcome]:
    seeds, steps = plan.search.seeds, plan.rungs[number - 1].steps
    wanted = [
        trial_config(plan, setting, steps, seed, run)
        for setting in settings
        for seed in range(seeds)
    ]
    trials = run_trials(
        {config.output / config.name: config for config in wanted}, jobs=jobs, on_done=show
    )
    return [
        _outcome(setting, number, steps, trials[k * seeds : (k + 1) * seeds])
        for k, setting in enumerate(settings)
    ]


def trial_config(plan: Plan, setting: Setting, steps: int, seed: int, run: RunDir) -> Config:
    """The config of one run; `seed` counts from the recipe's."""
    config = search.shortened(search.apply(plan.config, setting), steps, plan.lengths)
    folder = run.path / "trials" / search.folder_name(setting)
    seed += config.seed
    return replace(config, seed=seed, output=folder, name=f"steps-{steps}-seed-{seed}")


def _outcome(setting: Setting, number: int, steps: int, trials: Sequence[Trial]) -> Outcome:
    return Outcome(
        setting,
        number,
        steps,
        tuple(trial.accuracy for trial in trials),
        tuple(trial.loss for trial in trials),
        math.fsum(trial.seconds for trial in trials),
        all(trial.finite for trial in trials),
    )


def records_of(outcome: Outcome, plan: Plan) -> list[Record]:
    """A setting's accuracy and loss on a rung: means over seeds with their standard errors."""
    where = {**outcome.setting, "rung": outcome.rung, "steps": outcome.steps}
    settings = {**plan.images, "recipe": plan.config.recipe, "first_seed": plan.config.seed}
    gradients = plan.search.seeds * outcome.steps * search.passes(plan.config, outcome.setting)
    cost = {"seconds": outcome.seconds, "gradients": float(gradients)}
    columns = {"accuracy": ("1", outcome.accuracies), "loss": ("nats", outcome.losses)}
    return [
        Record(
            f"tune/{name}",
            math.fsum(values) / len(values),
            unit,
            search.stderr(values),
            len(values),
            where,
            settings,
            cost,
            converged=outcome.finite,
        )
        for name, (unit, values) in columns.items()
    ]


@contextmanager
def _progress(plan: Plan) -> Iterator[Callable[[Trial], None]]:
    """A line per run as it ends, and on a terminal a bar below them."""
    console = Console()
    total = plan.search.seeds * sum(rung.settings for rung in plan.rungs)
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("runs", total=total)

        def show(trial: Trial) -> None:
            console.print(trial_line(trial, plan.search), highlight=False, soft_wrap=True)
            progress.advance(task)

        yield show


def _show_result(
    plan: Plan, outcomes: Sequence[Outcome], command: Callable[[Setting], str]
) -> None:
    last = search.ranked([outcome for outcome in outcomes if outcome.rung == len(plan.rungs)])
    Console(width=None if sys.stdout.isatty() else 120).print(table_of(outcomes, plan))
    print(f"best: {search.label(last[0].setting)}")
    for line in [*search.edges(last[0].setting, plan.search), *doubts(last, plan)]:
        print(f"note: {line}")
    print(f"to train it at full length, on all training images:\n  {command(last[0].setting)}")
