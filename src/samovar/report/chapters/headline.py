"""Show the main numbers first: accuracy, sharpness and cost, with error, n and protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from samovar.report.chapters.metrics import METRICS, Metric
from samovar.report.chapters.record_table import record_table
from samovar.report.chapters.saddles import saddle_details, saddle_notes
from samovar.report.chapters.seed_table import seed_table
from samovar.report.parts import Cell, Chapter, Column, Data, Missing, Part, Row, Table, lacking
from samovar.report.protocol import Measured, disagreements, protocol, sentence
from samovar.report.read import RunData, number
from samovar.report.run_names import MANY, command
from samovar.report.text import count, setting

_LEAD = (
    "λ_max is the largest curvature of the loss around the trained weights, an eigenvalue of its "
    "Hessian; lower is flatter. Its ± is the Ritz residual: a true eigenvalue lies at most so far "
    "away. Losses are in nats, natural logarithms of probabilities: guessing among K classes costs "
    "ln K. n counts what is behind a number: images, draws of noise, or log lines. For accuracy "
    "higher is better; for λ_max, flatness and losses lower is."
)


@dataclass(frozen=True)
class MetricColumn:
    """A metric with its records."""

    metric: Metric
    records: Measured

    @cached_property
    def flags(self) -> list[str]:
        """Return a sentence for each setting in which the records differ.

        Numbers that training recorded may be of different checkpoints."""
        return disagreements(self.records, () if self.metric.measurement else ("checkpoint",))

    @cached_property
    def agreed(self) -> dict[str, str]:
        """Return the part of the protocol in which the records do not differ."""
        if not self.records:
            return {}
        first = protocol(*next(iter(self.records.values())))
        return {
            name: value
            for name, value in first.items()
            if not any(flag.startswith(f"{name}: ") for flag in self.flags)
        }

    @property
    def measured(self) -> bool:
        """Return whether it was measured on training images, under settings that others share."""
        return bool(self.metric.measurement and self.records and not self.metric.share)


def headline(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter: a row for each run, means over seeds, and every measurement."""
    columns = [
        MetricColumn(metric, records)
        for metric in METRICS
        if (records := _records(metric, runs)) or metric.always
    ]
    columns = _once(columns)
    metrics = [column.metric for column in columns]
    numbers, means = _table(columns, runs), seed_table(runs, metrics)
    # Readers of many runs look at the means first.
    tables = [*means, numbers] if len(runs) > MANY else [numbers, *means]
    missing = [note for name in ("hessian", "flatness") for note in _missing(runs, metrics, name)]
    notes = saddle_notes(
        (run, record) for column in columns for record, run in column.records.values()
    )
    parts: list[Part] = [*tables, *record_table(runs)]
    return Chapter("headline", "Main numbers", _LEAD, parts, missing, notes)


def _once(columns: Sequence[MetricColumn]) -> list[MetricColumn]:
    """Return the columns without a measured accuracy that only repeats that of training.

    It does where each run has it, with the same images behind it, at the same step."""
    best = next((c for c in columns if c.metric.title == "Accuracy, best"), None)

    def repeats(column: MetricColumn) -> bool:
        if column.metric.title != "Accuracy, measured" or not best or column.flags:
            return False
        pairs = [(r, best.records.get(label, (None, None))[0]) for label, (r, _) in
                 column.records.items()]  # fmt: skip
        return all(
            b is not None
            and (a.n, a.where.get("step")) == (b.n, b.where.get("step"))
            and abs(a.value - b.value) < 1e-9
            for a, b in pairs
        )

    return [column for column in columns if not repeats(column)]


def _records(metric: Metric, runs: Sequence[RunData]) -> Measured:
    return {run.label: (record, run) for run in runs if (record := metric.find(run))}


def _table(columns: Sequence[MetricColumn], runs: Sequence[RunData]) -> Table:
    shared = _shared_protocol(columns)
    numbers = ", ".join(str(k) for k, column in enumerate(columns, 1) if column.measured)
    return Table(
        "headline-table",
        "Runs",
        "run",
        [_column(column, shared if column.measured else {}) for column in columns],
        [Row(run.label, [_cell(c, run) for c in columns], run, _subtitle(run)) for run in runs],
        _data(columns),
        footnote=f"Columns {numbers} are measured with: {sentence(shared)}." if shared else "",
    )


def _shared_protocol(columns: Sequence[MetricColumn]) -> dict[str, str]:
    """Return the settings that several measured columns share, to be stated once."""
    # One column states its protocol itself.
    protocols = [column.agreed for column in columns if column.measured]
    if len(protocols) < 2:
        return {}
    shared = set.intersection(*(set(found.items()) for found in protocols))
    return {name: value for name, value in protocols[0].items() if (name, value) in shared}


def _column(column: MetricColumn, shared: dict[str, str]) -> Column:
    """Return the column with a note on what it is and the rest of its protocol."""
    own = {name: value for name, value in column.agreed.items() if name not in shared}
    note = "; ".join(filter(None, (column.metric.about, sentence(own))))
    return Column(column.metric.title, note, tuple(column.flags))


def _cell(column: MetricColumn, run: RunData) -> Cell:
    metric = column.metric
    if run.label not in column.records:
        return Cell("–", missing=command(run, metric.measurement) if metric.measurement else "")
    record, _ = column.records[run.label]
    value, error = metric.show(record)
    details = saddle_details(run, record)
    if record.n is not None:
        details.append(f"n {record.n:,}".replace(",", "\u202f"))
    if metric.title.startswith("Accuracy"):
        details.append(f"step {setting(record.where.get('step'))}")
    # Only the newest record counts, but readers should know that there are others.
    older = len(run.records.get(record.name, [])) - 1 if metric.measurement else 0
    if older:
        details.append(count(older, "older record"))
    return Cell(value, error, details, hollow=not record.converged)


def _subtitle(run: RunData) -> str:
    """Return the network, optimizer, rho and seed of a run."""
    parts = [setting(run.config.get("model.name", ""))]
    if run.trained:
        rho = number(run.config.get("sam.rho"))
        sam = f" + SAM, rho {rho:g}" if rho else ""
        parts.append(setting(run.config.get("optim.name", "")) + sam)
        parts.append(f"seed {setting(run.config.get('seed', '?'))}")
    return ", ".join(filter(None, parts))


def _data(columns: Sequence[MetricColumn]) -> Data:
    return Data(
        ("run", "folder", "column", "name", "value", "unit", "stderr", "residual", "n",
         "converged", "protocol"),
        [
            (label, str(run.path), column.metric.title, r.name, r.value, r.unit, r.stderr,
             r.residual, r.n, r.converged, sentence(protocol(r, run)))
            for column in columns
            for label, (r, run) in column.records.items()
        ],
    )  # fmt: skip


def _missing(runs: Sequence[RunData], metrics: Sequence[Metric], measurement: str) -> list[Missing]:
    """Return a note for the runs that lack a metric of a measurement."""
    lacked = [metric for metric in metrics if metric.measurement == measurement]
    without = [run for run in runs if not all(metric.find(run) for metric in lacked)]
    return lacking(without, " and ".join(metric.title.lower() for metric in lacked), measurement)
