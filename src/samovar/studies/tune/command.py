"""`samovar tune`: the runs of a search, a table, a report, and the best setting as a command."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from samovar import config as configs
from samovar import report
from samovar.config import Config, DataConfig
from samovar.config.encoded import dashed
from samovar.data.sources import open_source
from samovar.models.load import resolve
from samovar.runs.records import Record, RunDir, replace_text, timestamp
from samovar.runtime import provenance, started
from samovar.runtime.lock import locked
from samovar.runtime.terminal import console
from samovar.studies.intervals import stderr
from samovar.studies.jobs import refuse_torchrun
from samovar.studies.terminal import progress, resumable
from samovar.studies.tune import search
from samovar.studies.tune.search import Search, Setting, TuneOutcome
from samovar.studies.tune.view import (
    TunePlan,
    TuneRequest,
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
"""Share of the training images to compare on, where the source has a validation split of its own.
"""

SEARCH_FILE = "search.json"
"""File that distinguishes the folder of a search from a run's."""


def tune(
    config: Config,
    wanted: Search,
    request: TuneRequest,
    *,
    share: float | None = None,
    jobs: int = 1,
) -> RunDir:
    """Search below `config.output`, print the progress, and return the folder of the search.

    Args:
        share: share of each training class to compare on; None leaves it to the source, see
            `compared_on`.
        jobs: runs at a time.

    Raises:
        ValueError: settings that do not fit each other, another search's folder, no setting with a
            finite result.
        SystemExit: 128 + signal after an interruption, 1 after a full disk or a lost process; a
            line says how to go on."""
    refuse_torchrun("tune")
    if ":" in config.model.name:  # module:function may lie in the working folder, as with python -m
        sys.path.insert(0, str(Path.cwd()))
    # the command for the best is made of the config as given: it trains on all images
    given, config = config, resolve(compared_on(config, share))
    # before the folder is made, so that settings that are refused leave none behind
    with started(config.run) as runtime:
        source, _ = prepare(config, runtime)
        facts = provenance(runtime)
    plan = _plan(config, wanted, len(source.train), len(source.val))
    run = _open(plan)
    with locked(run.path, "study"):
        _begin(plan, run)
        run.write_json("provenance.json", facts)
        print("\n".join(plan_lines(plan)), flush=True)
        with resumable([*request.words, "--name", run.path.name]):
            outcomes = _climb(plan, run, jobs)
        _print_result(plan, outcomes, partial(best_command, given, request))
        print(f"report: {report.write([run.path], run.path / 'report.html')}\nsearch: {run.path}")
    return run


# --- before the first run


def compared_on(config: Config, share: float | None) -> Config:
    """Return the config with images held out to compare on.

    A validation split of the source's own is often its test set, and is never looked at: a share of
    each training class is held out instead, a tenth without `share`. Where `data.val_share` holds
    validation images out of one set of images, settings are chosen on those, unless `share` is
    given.

    Raises:
        ValueError: a share of 0 of a source with a validation split of its own."""
    # no share in the config means that none was asked for; --share 0 is a choice
    own = _has_validation(config.data)
    wanted = config.data.tune_share or None if share is None else share
    if own and wanted == 0:
        raise ValueError(
            f"--share 0 would compare on the validation split of {config.data.source}, "
            f"which is for the end; give a share of the training images, such as {SHARE}"
        )
    held = (SHARE if own else 0.0) if wanted is None else wanted
    return replace(config, data=replace(config.data, tune_share=held))


def _has_validation(data: DataConfig) -> bool:
    """Return whether the source comes with a validation split of its own."""
    # a source without one refuses to hold out nothing
    try:
        open_source(replace(data, val_share=0.0, tune_share=0.0))
    except ValueError:  # also where it cannot be opened at all, which `prepare` then reports
        return False
    return True


def _plan(config: Config, wanted: Search, num_train: int, num_compared: int) -> TunePlan:
    data = config.data
    held = f"--data.val-share {data.val_share:g}"
    if data.tune_share:
        held = f"{data.tune_share:g} of each training class"
    images = {
        "source": data.source,
        "images": num_compared,
        "held_out": held,
        "training_images": num_train,
    }
    lengths = search.stage_lengths(config, num_train)
    return TunePlan(config, wanted, lengths, search.plan(wanted, sum(lengths), config), images)


def _open(plan: TunePlan) -> RunDir:
    """Return a new folder for the search, or the one that already has its name."""
    config = plan.config
    run = RunDir(config.output / (config.name or f"tune-{config.recipe}-{timestamp()}"))
    if config.name and run.config_path.is_file():
        _check_same(run, config)
    else:
        run = RunDir.create(config.output, run.path.name)
        # a search has no weights of its own; its trials do
        run.checkpoints.rmdir()
        run.arrays.rmdir()
    return run


def _begin(plan: TunePlan, run: RunDir) -> None:
    """Write what is searched, and begin the records anew: they follow from the trials."""
    values = {
        "values": dict(plan.search.values),
        "seeds": plan.search.seeds,
        "full": plan.search.full,
    }
    run.write_json(SEARCH_FILE, values)
    run.write_json(run.config_path.name, configs.to_dict(replace(plan.config, name=run.path.name)))
    replace_text(run.records_path, "")


def _check_same(run: RunDir, config: Config) -> None:
    if not (run.path / SEARCH_FILE).is_file():
        raise ValueError(f"{run.path} is a run, not a search; give another --name")
    for name, (before, now) in configs.differences(configs.load(run.config_path), config).items():
        if name not in HARMLESS:
            flag = "--share" if name == "data.tune_share" else f"--{dashed(name)}"
            raise ValueError(
                f"{flag} {now} differs from the {before} of the search {run.path}; "
                "give another --name"
            )


# --- the runs


def _climb(plan: TunePlan, run: RunDir, jobs: int) -> list[TuneOutcome]:
    """Run every rung, and return the outcomes of every setting on each rung it reached.

    Records are written rung by rung."""
    outcomes: list[TuneOutcome] = []
    left = plan.search.settings
    total = plan.search.seeds * sum(rung.settings for rung in plan.rungs)
    with progress(total, partial(trial_line, wanted=plan.search)) as show:
        for number, rung in enumerate(plan.rungs, start=1):
            found = _rung(plan, run, left[: rung.settings], number, jobs, show)
            run.append(*(record for outcome in found for record in records_of(outcome, plan)))
            outcomes += found
            # the best first, of which the next rung takes as many as it has room for
            left = [outcome.setting for outcome in search.ranked(found) if outcome.finite]
            if not left:
                raise ValueError(_nothing_finite(found, plan))
    return outcomes


def _nothing_finite(found: Sequence[TuneOutcome], plan: TunePlan) -> str:
    flag = "--lr" if "lr" in plan.search.values else "--optim.lr"
    tried = "; ".join(search.label(outcome.setting) for outcome in found[:6])
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return (
        f"no setting gave a finite result: {tried}{more}; "
        f"lower {flag} or raise --optim.warmup-steps"
    )


def _rung(
    plan: TunePlan,
    run: RunDir,
    settings: Sequence[Setting],
    number: int,
    jobs: int,
    show: Callable[[Trial], None],
) -> list[TuneOutcome]:
    seeds, steps = plan.search.seeds, plan.rungs[number - 1].steps
    wanted = [
        trial_config(plan, setting, steps, seed, run)
        for setting in settings
        for seed in range(seeds)
    ]
    trials = run_trials(
        {config.output / config.name: config for config in wanted}, jobs=jobs, on_done=show
    )
    # trials come back in the order of `wanted`: all seeds of a setting, then the next
    return [
        _outcome(setting, number, steps, trials[k * seeds : (k + 1) * seeds])
        for k, setting in enumerate(settings)
    ]


def trial_config(plan: TunePlan, setting: Setting, steps: int, seed: int, run: RunDir) -> Config:
    """Return the config of one run; `seed` counts from the recipe's."""
    config = search.shortened(search.apply(plan.config, setting), steps, plan.lengths)
    folder = run.path / "trials" / search.folder_name(setting)
    seed += config.seed
    return replace(config, seed=seed, output=folder, name=f"steps-{steps}-seed-{seed}")


def _outcome(setting: Setting, number: int, steps: int, trials: Sequence[Trial]) -> TuneOutcome:
    return TuneOutcome(
        setting,
        number,
        steps,
        accuracies=tuple(trial.accuracy for trial in trials),
        losses=tuple(trial.loss for trial in trials),
        seconds=math.fsum(trial.seconds for trial in trials),
        finite=all(trial.finite for trial in trials),
    )


def records_of(outcome: TuneOutcome, plan: TunePlan) -> list[Record]:
    """Return a setting's accuracy and loss on a rung as records: means with standard errors."""
    where = {**outcome.setting, "rung": outcome.rung, "steps": outcome.steps}
    settings = {**plan.images, "recipe": plan.config.recipe, "first_seed": plan.config.seed}
    # counted, because seconds depend on the machine and its load
    gradients = plan.search.seeds * outcome.steps * search.passes(plan.config, outcome.setting)
    cost = {"seconds": outcome.seconds, "gradients": float(gradients)}
    columns = {"accuracy": ("1", outcome.accuracies), "loss": ("nats", outcome.losses)}
    return [
        Record(
            f"tune/{name}",
            fmean(values),
            unit,
            stderr(values),
            len(values),
            where,
            settings,
            cost,
            converged=outcome.finite,
        )
        for name, (unit, values) in columns.items()
    ]


# --- the result


def _print_result(
    plan: TunePlan, outcomes: Sequence[TuneOutcome], command: Callable[[Setting], str]
) -> None:
    last = search.ranked([outcome for outcome in outcomes if outcome.rung == len(plan.rungs)])
    best = last[0].setting
    console(columns=120).print(table_of(outcomes, plan))
    print(f"best: {search.label(best)}")
    for line in [*search.edges(best, plan.search), *doubts(last, plan)]:
        print(f"note: {line}")
    print(f"to train it at full length, on all training images:\n  {command(best)}")
