"""The numbers one looks at first: accuracy, sharpness and cost, each with its error, its n and its
protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from samovar.report.parts import Cell, Column, Data, Group, Missing, Row, Section, Table, lacking
from samovar.report.protocol import disagreements, protocol, sentence
from samovar.report.read import RunData, number, place
from samovar.report.run_names import MANY, command, recipes
from samovar.report.text import count, duration, setting, with_error
from samovar.report.text import number as shown
from samovar.runs.records import Record

Found = Mapping[str, tuple[Record, RunData]]

MOST_ROWS = 300


@dataclass(frozen=True)
class Metric:
    """A column of the headline table."""

    title: str
    find: Callable[[RunData], Record | None]
    about: str
    measurement: str = ""
    """What `samovar measure` calls it; empty for what training records."""
    always: bool = True
    """Whether the column is there though no run has the number."""
    share: bool = False
    """Whether it is a share of images that are right."""
    show: Callable[[Record], tuple[str, str]] = lambda r: with_error(r.value, _error(r))


def headline(runs: Sequence[RunData]) -> Section:
    """A row a run, a column a number; then means over seeds, then every measurement there is."""
    metrics = [
        metric for metric in METRICS if metric.always or any(metric.find(run) for run in runs)
    ]
    found = [
        {run.label: (record, run) for run in runs if (record := metric.find(run))}
        for metric in metrics
    ]
    shared, columns = _columns(metrics, found)
    rows = [
        Row(run.label, [_cell(m, of.get(run.label), run) for m, of in zip(metrics, found, strict=True)], run,
            _subtitle(run))
        for run in runs
    ]  # fmt: skip
    note = f"Columns {shared[0]} are measured with: {sentence(shared[1])}." if shared[1] else ""
    table = Table(
        "headline-table", "Runs", "run", columns, rows, _data(metrics, found), footnote=note
    )
    seeds = _seeds(runs, metrics)
    tables = [*seeds, table] if len(runs) > MANY else [table, *seeds]
    missing = [note for words in ("hessian", "flatness") for note in _lacking(runs, metrics, words)]
    return Section("headline", "Headline", "", [*tables, *_all_records(runs)], missing)


def _error(record: Record) -> float | None:
    return record.stderr if record.stderr is not None else record.residual


def _accuracy(record: Record) -> tuple[str, str]:
    error = None if record.stderr is None else 100 * record.stderr
    value, error_text = with_error(100 * record.value, error)
    return f"{value if error_text else shown(100 * record.value, 4)} %", error_text


def _latest(name: str) -> Callable[[RunData], Record | None]:
    return lambda run: run.latest(name)


def _best_accuracy(run: RunData) -> Record | None:
    found = [r for r in run.series("val/accuracy") if math.isfinite(r.value)]
    return _as_measured(max(found, key=lambda r: r.value), run) if found else None


def _last_accuracy(run: RunData) -> Record | None:
    found = run.series("val/accuracy")
    return _as_measured(found[-1], run) if found else None


def _as_measured(record: Record, run: RunData) -> Record:
    """A training record with the protocol that measurements state themselves."""
    return replace(
        record, settings={"images": record.n or "", "source": run.task} | record.settings
    )


def training_time(run: RunData) -> Record | None:
    """Seconds of the training loop, evaluation left out: images per log line over images per
    second."""
    speeds = run.series("train/images_per_second")
    batch = number(run.config.get("data.batch_size"))
    steps = [0.0, *(place(r, "step") for r in speeds)]
    spent = [
        (b - a, r.value) for a, b, r in zip(steps, steps[1:], speeds, strict=False) if r.value > 0
    ]
    if not spent or not batch:
        return None
    seconds = math.fsum(done * batch / speed for done, speed in spent)
    return Record(
        "training time",
        seconds,
        "s",
        n=len(spent),
        settings=_hardware(run),
        where={"step": int(steps[-1])},
    )


def _speed(run: RunData) -> Record | None:
    values = [r.value for r in run.series("train/images_per_second") if math.isfinite(r.value)]
    if not values:
        return None
    where = {"step": run.series("train/images_per_second")[-1].where["step"]}
    return Record("median of train/images_per_second", float(np.median(values)), "images/s", n=len(values),
                  where=where, settings=_hardware(run))  # fmt: skip


def _hardware(run: RunData) -> dict[str, str]:
    names = ("device", "gpu", "cpu", "dtype", "threads", "world_size")
    return {
        name: setting(run.provenance[name])
        for name in names
        if run.provenance.get(name) not in (None, "")
    }


METRICS = (
    Metric("Accuracy, best", _best_accuracy, "held-out images; the best of all evaluations, ± standard error",
           show=_accuracy),
    Metric("Accuracy, last", _last_accuracy, "held-out images; the last evaluation, ± standard error", show=_accuracy),
    Metric("λ_max", _latest("hessian/lambda_max"), "largest Hessian eigenvalue by magnitude, ± Ritz residual",
           "hessian"),
    Metric("Average flatness", _latest("sharpness/average_flatness"),
           "loss under Gaussian weight noise, nats, ± standard error over draws", "flatness"),
    Metric("Clean loss", _latest("sharpness/clean_loss"), "the same loss without noise, nats", "flatness"),
    Metric("Training time", training_time, "training loop alone, from images per second",
           show=lambda r: (duration(r.value), "")),
    Metric("Images/s", _speed, "median over log lines", show=lambda r: (shown(r.value, 3), "")),
    Metric("Accuracy, measured", _latest("accuracy/top1"), "of the checkpoint, top 1", "accuracy", always=False,
           share=True, show=_accuracy),
    Metric("Trace", _latest("hessian/trace"), "of the Hessian, ± standard error", "trace", always=False),
    Metric("SAM sharpness", _latest("sharpness/sam"), "rise of the loss at SAM’s point, nats", "sharpness",
           always=False),
    Metric("NTK κ", _latest("ntk/condition_number"), "condition number of the neural tangent kernel", "ntk",
           always=False),
    Metric("Corrupted images", _latest("robustness/mean_corruption_accuracy"),
           "accuracy, mean over corruptions and severities", "robustness", always=False, share=True, show=_accuracy),
    Metric("PGD attack", _latest("robustness/pgd_accuracy"), "accuracy on attacked images", "attack", always=False,
           share=True, show=_accuracy),
)  # fmt: skip


def _subtitle(run: RunData) -> str:
    rho = number(run.config.get("sam.rho"))
    parts = [setting(run.config.get("model.name", ""))]
    if run.trained:
        parts += [
            setting(run.config.get("optim.name", "")) + (f" + SAM, rho {rho:g}" if rho else "")
        ]
        parts += [f"seed {setting(run.config.get('seed', '?'))}"]
    return ", ".join(filter(None, parts))


def _columns(
    metrics: Sequence[Metric], found: Sequence[Found]
) -> tuple[tuple[str, dict[str, str]], list[Column]]:
    """The columns; first their numbers and the part of the protocol that all measured ones share,
    to be said once."""
    flags = [disagreements(of, () if metric.measurement else ("checkpoint",)) if of else [] for metric, of in
             zip(metrics, found, strict=True)]  # fmt: skip
    agreed = [_agreed(of, flags[k]) for k, of in enumerate(found)]
    measured = [
        k
        for k, metric in enumerate(metrics)
        if metric.measurement and found[k] and not metric.share
    ]
    shared = (
        dict(set.intersection(*(set(agreed[k].items()) for k in measured)))
        if len(measured) > 1
        else {}
    )
    shared = (
        {name: value for name, value in agreed[measured[0]].items() if name in shared}
        if shared
        else {}
    )
    columns = []
    for k, metric in enumerate(metrics):
        own = {
            name: value
            for name, value in agreed[k].items()
            if k not in measured or name not in shared
        }
        columns.append(
            Column(metric.title, f"{metric.about}. {sentence(own)}".rstrip(" ."), tuple(flags[k]))
        )
    return (", ".join(str(k + 1) for k in measured), shared), columns


def _agreed(found: Found, flags: Sequence[str]) -> dict[str, str]:
    if not found:
        return {}
    said = protocol(*next(iter(found.values())))
    return {
        name: value
        for name, value in said.items()
        if not any(flag.startswith(f"{name}: ") for flag in flags)
    }


def _cell(metric: Metric, found: tuple[Record, RunData] | None, run: RunData) -> Cell:
    if found is None:
        return Cell("–", missing=command(run, metric.measurement) if metric.measurement else "")
    record, _ = found
    value, error = metric.show(record)
    others = len(run.records.get(record.name, [])) - 1 if metric.measurement else 0
    details = [f"n {record.n:,}".replace(",", "\u202f")] if record.n is not None else []
    if metric.title.startswith("Accuracy"):
        details.append(f"step {setting(record.where.get('step'))}")
    details += [count(others, "older record")] if others else []
    return Cell(value, error, details, hollow=not record.converged)


def _data(metrics: Sequence[Metric], found: Sequence[Found]) -> Data:
    columns = (
        "run",
        "folder",
        "column",
        "name",
        "value",
        "unit",
        "stderr",
        "residual",
        "n",
        "converged",
        "protocol",
    )
    rows = [
        (label, str(run.path), metric.title, r.name, r.value, r.unit, r.stderr, r.residual, r.n, r.converged,
         sentence(protocol(r, run)))
        for metric, of in zip(metrics, found, strict=True)
        for label, (r, run) in of.items()
    ]  # fmt: skip
    return Data(columns, rows)


def _lacking(runs: Sequence[RunData], metrics: Sequence[Metric], measurement: str) -> list[Missing]:
    of = [metric for metric in metrics if metric.measurement == measurement]
    without = [run for run in runs if not all(metric.find(run) for metric in of)]
    return lacking(without, " and ".join(metric.title.lower() for metric in of), measurement)


def _seeds(runs: Sequence[RunData], metrics: Sequence[Metric]) -> list[Table]:
    several = [recipe for recipe in recipes(runs) if len(recipe.runs) > 1]
    if not several:
        return []
    rows, data = [], []
    for recipe in several:
        cells = []
        for metric in metrics:
            values = [record.value for run in recipe.runs if (record := metric.find(run))]
            cell, numbers = _mean(metric, values)
            cells.append(cell)
            data.append((recipe.label, metric.title, *numbers))
        rows.append(Row(recipe.label, cells, recipe.runs[0], count(len(recipe.runs), "seed")))
    columns = [Column(metric.title) for metric in metrics]
    table = Data(("recipe", "column", "mean", "stderr", "seeds"), data)
    caption = "Mean over runs that differ in their seed alone, ± standard error of that mean."
    return [Table("seeds-table", "Means over seeds", "recipe", columns, rows, table, caption)]


def _mean(
    metric: Metric, values: Sequence[float]
) -> tuple[Cell, tuple[float | None, float | None, int]]:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Cell("–"), (None, None, 0)
    mean = float(np.mean(finite))
    stderr = float(np.std(finite, ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else None
    value, error = metric.show(Record(metric.title, mean, stderr=stderr))
    left = f", {len(values) - len(finite)} not finite" if len(finite) < len(values) else ""
    return Cell(value, error, [f"n {len(finite)}{left}"]), (mean, stderr, len(finite))


def _all_records(runs: Sequence[RunData]) -> list[Group]:
    found = [
        (run, record)
        for run in runs
        for name, records in run.records.items()
        if not name.startswith(("train/", "val/", "watch/"))
        for record in records
    ]
    if not found:
        return []
    rows = []
    for run, r in found[:MOST_ROWS]:
        value, error = with_error(r.value, _error(r))
        where = ", ".join(
            f"{key} {setting(v)}"
            for key, v in r.where.items()
            if key not in ("split", "step", "index")
        )
        cost = ", ".join(f"{setting(v)} {key}" for key, v in r.cost.items())
        cells = [Cell(r.name + (f", {where}" if where else "")), Cell(value, error, hollow=not r.converged),
                 Cell(r.unit), Cell("" if r.n is None else str(r.n)), Cell("", details=[sentence(protocol(r, run))]),
                 Cell("", details=[cost]), Cell("", details=[r.source])]  # fmt: skip
        rows.append(Row(run.label, cells, run))
    columns = [
        Column(name) for name in ("record", "value", "unit", "n", "protocol", "cost", "after")
    ]
    names = (
        "run",
        "name",
        "value",
        "unit",
        "stderr",
        "residual",
        "n",
        "converged",
        "where",
        "protocol",
        "cost",
    )
    data = [
        (run.label, r.name, r.value, r.unit, r.stderr, r.residual, r.n, r.converged, sentence(_texts(r.where)),
         sentence(protocol(r, run)), sentence(_texts(r.cost)))
        for run, r in found
    ]  # fmt: skip
    caption = f"The first {MOST_ROWS}; the CSV has all." if len(found) > MOST_ROWS else ""
    table = Table(
        "records-table",
        "Every measurement",
        "run",
        columns,
        rows,
        Data(names, data),
        caption,
        numeric=False,
    )
    return [
        Group(
            "all-records", f"Every measurement, {count(len(found), 'record')}", [table], folded=True
        )
    ]


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {key: setting(value) for key, value in values.items()}
