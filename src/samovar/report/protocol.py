"""Describe how a number was measured, and find runs that were measured differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samovar.report.read import RunData, number
from samovar.report.text import setting
from samovar.runs.records import Record

Measured = Mapping[str, tuple[Record, RunData]]
"""A record and its run, by the label of the run."""

# Settings that name the measured network or repeat other settings: not part of the protocol.
_SUBJECT = (
    "model", "weights", "measurement", "request", "records", "curvature", "residuals", "other",
    "other_weights", "mean", "std", "normalization_from",
)  # fmt: skip
_FIRST = ("split", "images", "source", "augmentation", "mode", "loss", "dtype")


def protocol(record: Record, run: RunData) -> dict[str, str]:
    """Return all settings that determine the number, the main ones first."""
    found: dict[str, Any] = {"checkpoint": checkpoint(record, run)}
    found |= {"split": record.where["split"]} if "split" in record.where else {}
    found |= {key: record.settings[key] for key in _FIRST if key in record.settings}
    found |= {
        key: value for key, value in record.settings.items() if key not in (*found, *_SUBJECT)
    }
    return {key: setting(value) for key, value in found.items() if value != ""}


def checkpoint(record: Record, run: RunData) -> str:
    """Return `best`, `last` or the step of the measured weights; empty without a step."""
    step = number(record.where.get("step"))
    if record.settings.get("weights") == "initialisation":
        return "initialisation"
    if step is None:
        return ""
    known = {"best": number(run.best.get("step")), "last": run.last_step}
    return " and ".join(kind for kind, at in known.items() if at == step) or f"step {step:.0f}"


def disagreements(records: Measured, but: Sequence[str] = ()) -> list[str]:
    """Return a sentence for each setting in which the records of several runs differ.

    Args:
        records: the records to compare.
        but: settings that may differ."""
    protocols = {label: protocol(*pair) for label, pair in records.items()}
    names = dict.fromkeys(name for found in protocols.values() for name in found if name not in but)
    return [text for name in names if (text := _disagreement(name, protocols))]


def _disagreement(name: str, protocols: Mapping[str, dict[str, str]]) -> str:
    """Return each value of a setting with its runs; empty where all runs agree."""
    groups: dict[str, list[str]] = {}
    for label, found in protocols.items():
        groups.setdefault(found.get(name, "not stated"), []).append(label)
    if len(groups) == 1:
        return ""
    # The best checkpoint of one run may also be its last: "best" agrees with "best and last".
    if name == "checkpoint" and set.intersection(*({*value.split(" and ")} for value in groups)):
        return ""
    return f"{name}: " + "; ".join(f"{value} ({_some(labels)})" for value, labels in groups.items())


def _some(labels: Sequence[str], most: int = 3) -> str:
    """Join the first labels and count the rest."""
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more


def sentence(found: Mapping[str, str]) -> str:
    """Join settings and their values into one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items())


def mismatch(what: str, records: Measured, but: Sequence[str] = ()) -> list[str]:
    """Return a warning if the runs were measured under different protocols, else nothing."""
    texts = disagreements(records, but)
    return [f"{what} are measured under different protocols: {'; '.join(texts)}."] if texts else []
