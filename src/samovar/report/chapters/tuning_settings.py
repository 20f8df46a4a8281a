"""Read the settings that a search tried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from samovar.report.read import RunData, number, place
from samovar.runs.records import Record

ACCURACY, LOSS = "tune/accuracy", "tune/loss"

TITLES = {"rho": "rho", "lr": "learning rate", "weight_decay": "weight decay"}
"""Axes of a search; the first one with several values becomes the x axis of the figures."""

Setting = tuple[tuple[str, float], ...]
"""Names and values, in the order of `TITLES`."""


@dataclass(frozen=True)
class Tried:
    """The result of a setting in runs of one length."""

    setting: Setting
    rung: float
    """Round of the search; later rounds have longer runs."""
    steps: float
    accuracy: Record
    loss: Record | None

    @property
    def values(self) -> dict[str, float]:
        """Return the setting by name."""
        return dict(self.setting)

    @property
    def rank(self) -> tuple[float, float, float]:
        """Return a sort key: the best of the longest runs has the lowest.

        Accuracy decides, then loss; values that are not finite come last."""
        accuracy = self.accuracy.value
        loss = self.loss.value if self.loss and math.isfinite(self.loss.value) else math.inf
        return (-self.rung, -accuracy if math.isfinite(accuracy) else math.inf, loss)

    def said(self, axes: Sequence[str]) -> str:
        """Format the values on some axes."""
        return ", ".join(
            f"{TITLES[name]} {value:g}" for name, value in self.setting if name in axes
        )


def tried(run: RunData) -> list[Tried]:
    """Return the settings of a search, each once per length of run; the best first."""
    # A search that was continued has several records of a setting: the newest counts.
    losses = {_key(record): record for record in run.records.get(LOSS, [])}
    newest = {_key(record): record for record in run.records.get(ACCURACY, [])}
    found = [
        Tried(key[0], place(record, "rung"), place(record, "steps"), record, losses.get(key))
        for key, record in newest.items()
    ]
    return sorted(found, key=lambda each: each.rank)


def _key(record: Record) -> tuple[Setting, float]:
    values = ((name, number(record.where.get(name))) for name in TITLES)
    known = tuple((name, v) for name, v in values if v is not None and math.isfinite(v))
    return known, place(record, "rung")
