"""Read run folders: settings and records by name, arrays when a figure needs them."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samovar.runs.json_files import parsed
from samovar.runs.records import Record, RunDir, from_json
from samovar.words import read_regular

MAX_ARRAY_BYTES = 256 * 2**20

Array = NDArray[Any]

STEPPED = ("train/contrastive_loss", "train/loss", "val/accuracy")
"""Records whose steps show how far training has come."""

_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "unit", "source", "arrays"), (str,)), "stderr": (float, NoneType),
    "residual": (float, NoneType), "n": (int, NoneType), "converged": (bool,),
}  # fmt: skip

# Settings that two records share if one command measured them on one checkpoint.
_COMMAND = (
    "measurement", "request", "weights", "source", "split", "images", "loss", "dtype", "seed",
)  # fmt: skip


# What numpy and zipfile raise on files that are cut, changed, or in another format.
_DAMAGE = (
    OSError, EOFError, MemoryError, KeyError, ValueError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class UnreadableArrays(ValueError):
    """An array file that cannot be used; the message gives the reason to the report's reader."""


@dataclass(frozen=True, eq=False)
class RunData:
    """The contents of one run folder."""

    path: Path
    """The path as it was given, so that commands in the report can be pasted."""
    config: dict[str, Any]
    """Settings by dotted name, as in flags."""
    records: dict[str, list[Record]]
    """Records by name, in the order in which they were written."""
    provenance: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    class_counts: dict[str, Any] = field(default_factory=dict)
    bad_lines: int = 0
    """Number of lines in records.jsonl that are not records."""
    label: str = ""
    """A short name that no other run has."""
    group: str = ""
    """Label of its recipe, if runs are so many that legends name recipes."""
    index: int = 0
    color: int = 0
    """Index of its colour in every figure."""

    @property
    def trained(self) -> bool:
        """Return whether it was trained; a folder of `samovar measure MODEL` was not."""
        return any(name.startswith(("train/", "val/")) for name in self.records)

    @property
    def task(self) -> str:
        """Return the source of its training images, or of the images it was measured on."""
        if self.trained or not self.records:
            return str(self.config.get("data.source", ""))
        sources = [
            r.settings["source"]
            for found in self.records.values()
            for r in found
            if "source" in r.settings
        ]
        return str(sources[-1]) if sources else str(self.config.get("data.source", ""))

    @cached_property
    def last_step(self) -> float | None:
        """Return the last recorded step of training; None for a folder without training."""
        steps = [_step(r) for name in STEPPED for r in self.records.get(name, [])]
        return max(filter(math.isfinite, steps), default=None)

    def latest(self, name: str) -> Record | None:
        """Return the newest record of a name."""
        found = self.records.get(name)
        return found[-1] if found else None

    def latest_with_arrays(self, *names: str) -> Record | None:
        """Return the newest record that has arrays, of the first name that has one."""
        found = (r for name in names for r in reversed(self.records.get(name, [])) if r.arrays)
        return next(found, None)

    def batch(self, name: str) -> list[Record]:
        """Return the newest record of a name and the others of its command, such as all blocks.

        Of several records of one place, the newest counts."""
        # Records of one command are written one by one: equal settings show which belong together.
        found = self.records.get(name, [])
        if not found:
            return []
        last = found[-1]
        same = [
            r
            for r in found
            if _command(r) == _command(last) and r.where.get("step") == last.where.get("step")
        ]
        return list({json.dumps(r.where, sort_keys=True, default=str): r for r in same}.values())

    def series(self, name: str) -> list[Record]:
        """Return the records of a name in the order of their steps, the newest of each step."""
        steps = {_step(r): r for r in self.records.get(name, []) if "step" in r.where}
        return [steps[step] for step in sorted(steps) if math.isfinite(step)]

    def arrays(self, record: Record) -> dict[str, Array]:
        """Read the arrays of a record, by name.

        Raises:
            UnreadableArrays: they are missing, damaged, too large, or outside the run folder."""
        # A record of somebody else must not make the report read files outside the run.
        path = (self.path / record.arrays).resolve()
        if not record.arrays or not path.is_relative_to(self.path.resolve()):
            raise UnreadableArrays("the record names no array file of this run")
        try:
            # A small file can unpack to more than the memory: the sizes are checked first.
            with zipfile.ZipFile(path) as archive:
                size = sum(item.file_size for item in archive.infolist())
            if size > MAX_ARRAY_BYTES:
                limit = MAX_ARRAY_BYTES // 2**20
                raise UnreadableArrays(
                    f"{record.arrays} holds {size / 2**20:.0f} MiB, more than the {limit} read here"
                )
            with np.load(path, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except FileNotFoundError:
            raise UnreadableArrays(f"{record.arrays} is missing") from None
        except UnreadableArrays:
            raise
        except _DAMAGE as error:
            raise UnreadableArrays(
                f"{record.arrays} cannot be read ({type(error).__name__})"
            ) from None


def _command(record: Record) -> tuple[str, ...]:
    return tuple(str(record.settings.get(key)) for key in _COMMAND)


def _step(record: Record) -> float:
    # A record without a step sorts last and counts as not finite.
    step = number(record.where.get("step"))
    return math.inf if step is None or math.isnan(step) else step


def number(value: Any) -> float | None:
    """Convert a number as records write it, non-finite ones as strings; else return None."""
    # In Python a bool is an int.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def place(record: Record, key: str) -> float:
    """Return a number of `where` to sort by; 0 if it is missing, not a number, or not finite."""
    found = number(record.where.get(key))
    return found if found is not None and math.isfinite(found) else 0.0


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """Read run folders in the order given, without labels and colours.

    Raises:
        ValueError: a folder is not a run or is given twice, or its config cannot be read."""
    if not paths:
        raise ValueError("no run is given; give one or more run folders, such as runs/NAME")
    # The same run under two names would be compared with itself.
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise ValueError(f"{path} is given twice; give each run once")
        seen.add(path.resolve())
    return [_read(path) for path in paths]


def _read(path: Path) -> RunData:
    if not path.is_dir():
        raise ValueError(
            f"{path} is not a run folder; give a folder with config.json, such as runs/NAME"
        )
    run = RunDir.open(path)
    records, bad_lines = _read_records(run)
    return RunData(
        path=path,
        config=_flatten(_read_config(run.config_path)),
        records=records,
        provenance=_read_object(path / "provenance.json"),
        best=_read_object(run.checkpoints / "best.json"),
        class_counts=_read_object(path / "class_counts.json"),
        bad_lines=bad_lines,
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = _json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(
            f"{path} holds no settings: expected an object, found {type(config).__name__}"
        )
    return config


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; return {} if it is missing or damaged, which the report then states."""
    try:
        values = _json(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _json(path: Path) -> Any:
    """Return the value in a JSON file of somebody else, which may be a pipe or very large."""
    return parsed(read_regular(path, MAX_ARRAY_BYTES).decode())


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_records(run: RunDir) -> tuple[dict[str, list[Record]], int]:
    """Return the records by name, and the number of lines that are not records."""
    records: dict[str, list[Record]] = {}
    bad = 0
    try:
        lines = read_regular(run.records_path, 2**32).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return {}, 0
    except OSError as error:
        raise ValueError(f"cannot read {run.records_path}: {error.strerror or error}") from None
    # Text after the last newline was cut short by a crash.
    for line in filter(str.strip, lines[:-1]):
        try:
            record = _checked(from_json(line))
        except (ValueError, TypeError, RecursionError):
            bad += 1
        else:
            records.setdefault(record.name, []).append(record)
    return records, bad


def _checked(record: Record) -> Record:
    """Return the record with the types that `Record` declares.

    A later version or another program may have written others."""
    if not all(isinstance(part, dict) for part in (record.where, record.settings, record.cost)):
        raise TypeError("where, settings and cost are objects")
    if all(type(getattr(record, name)) in types for name, types in _TYPES.items()):
        return record
    n = number(record.n)
    return replace(
        record,
        name=str(record.name),
        unit=str(record.unit),
        source=str(record.source),
        arrays=str(record.arrays),
        stderr=number(record.stderr),
        residual=number(record.residual),
        n=int(n) if n is not None and math.isfinite(n) else None,
        converged=record.converged is not False,
    )
