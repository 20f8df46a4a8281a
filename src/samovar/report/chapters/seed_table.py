"""Average the numbers of the headline over runs that differ only in their seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from samovar.report.chapters.metrics import Metric
from samovar.report.parts import Cell, Column, Data, Row, Table
from samovar.report.read import RunData
from samovar.report.run_names import recipes
from samovar.report.text import count
from samovar.runs.records import Record


def seed_table(runs: Sequence[RunData], metrics: Sequence[Metric]) -> list[Table]:
    """Return a table with a row for each recipe of several runs; nothing if there is none."""
    several = [recipe for recipe in recipes(runs) if len(recipe.runs) > 1]
    if not several:
        return []
    rows: list[Row] = []
    data: list[tuple[Any, ...]] = []
    for recipe in several:
        cells = []
        for metric in metrics:
            found = (metric.find(run) for run in recipe.runs)
            values = [record.value for record in found if record]
            cell, numbers = _seed_mean(metric, values)
            cells.append(cell)
            data.append((recipe.label, metric.title, *numbers))
        rows.append(Row(recipe.label, cells, recipe.runs[0], count(len(recipe.runs), "seed")))
    return [
        Table(
            "seeds-table",
            "Means over seeds",
            "recipe",
            [Column(metric.title) for metric in metrics],
            rows,
            Data(("recipe", "column", "mean", "stderr", "seeds"), data),
            "Mean over runs that differ only in their seed, ± standard error of the mean.",
        )
    ]


def _seed_mean(
    metric: Metric, values: Sequence[float]
) -> tuple[Cell, tuple[float | None, float | None, int]]:
    """Return the cell of a metric, and its mean, standard error and number of finite values."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Cell("–"), (None, None, 0)
    mean = float(np.mean(finite))
    # Of one seed there is no spread.
    stderr = float(np.std(finite, ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else None
    value, error = metric.show(Record(metric.title, mean, stderr=stderr))
    lost = len(values) - len(finite)
    detail = f"n {len(finite)}" + (f", {lost} not finite" if lost else "")
    return Cell(value, error, [detail]), (mean, stderr, len(finite))
