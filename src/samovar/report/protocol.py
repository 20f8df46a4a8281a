"""How a number was measured, in words, and whether runs were measured alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samovar.report.read import RunData, number
from samovar.report.text import setting
from samovar.runs.records import Record

# Settings that name the subject, or say again what others say.
_SUBJECT = (
    "model",
    "weights",
    "measurement",
    "request",
    "records",
    "curvature",
    "residuals",
    "other",
    "other_weights",
)
_FIRST = ("split", "images", "source", "augmentation", "mode", "loss", "dtype")


def protocol(record: Record, run: RunData) -> dict[str, str]:
    """What, changed, would change the number: which checkpoint, which images, how; in order of
    interest."""
    found: dict[str, Any] = {"checkpoint": checkpoint(record, run)}
    found |= {"split": record.where["split"]} if "split" in record.where else {}
    found |= {key: record.settings[key] for key in _FIRST if key in record.settings}
    found |= {
        key: value for key, value in record.settings.items() if key not in (*found, *_SUBJECT)
    }
    return {key: setting(value) for key, value in found.items() if value != ""}


def checkpoint(record: Record, run: RunData) -> str:
    """Which weights a record is about; empty where it does not say."""
    step = number(record.where.get("step"))
    if record.settings.get("weights") == "initialisation":
        return "initialisation"
    if step is None:
        return ""
    kinds = [
        kind
        for kind, at in (("best", number(run.best.get("step"))), ("last", run.last_step))
        if at == step
    ]
    return " and ".join(kinds) or f"step {step:.0f}"


def disagreements(
    records: Mapping[str, tuple[Record, RunData]], but: Sequence[str] = ()
) -> list[str]:
    """Settings in which the records of several runs differ, each as one sentence; keys are the
    runs' labels."""
    protocols = {label: protocol(*pair) for label, pair in records.items()}
    names = dict.fromkeys(name for found in protocols.values() for name in found if name not in but)
    return [text for name in names if (text := _disagreement(name, protocols))]


def _disagreement(name: str, protocols: Mapping[str, dict[str, str]]) -> str:
    groups: dict[str, list[str]] = {}
    for label, found in protocols.items():
        groups.setdefault(found.get(name, "not stated"), []).append(label)
    if len(groups) == 1:
        return ""
    if name == "checkpoint" and set.intersection(*({*value.split(" and ")} for value in groups)):
        return ""  # the best checkpoint of one run may also be its last
    return f"{name}: " + "; ".join(f"{value} ({_some(labels)})" for value, labels in groups.items())


def _some(labels: Sequence[str], most: int = 3) -> str:
    return ", ".join(labels[:most]) + (
        f" and {len(labels) - most} more" if len(labels) > most else ""
    )


def sentence(found: Mapping[str, str]) -> str:
    """A protocol as one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items())


def mismatch(
    what: str, records: Mapping[str, tuple[Record, RunData]], but: Sequence[str] = ()
) -> list[str]:
    """A warning if runs were measured differently."""
    texts = disagreements(records, but) if len(records) > 1 else []
    return [f"{what} are measured under different protocols: {'; '.join(texts)}."] if texts else []
