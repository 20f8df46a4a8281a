"""Records of measured numbers, and the run folder that holds them; without torch.

A run folder is all that passes between training, measuring and reporting: `config.json`,
`records.jsonl`, `arrays/`, `checkpoints/`, `provenance.json`."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from samovar.runs.json_files import Damaged, parsed, read_json

Sink = Callable[["Record"], None]

BAD_RECORDS = "records.bad.jsonl"
"""File of the run folder with damaged lines of `records.jsonl`, set aside when a run goes on."""

RENAMED = {
    "sharpness/average_flatness": "flatness/average_flatness",
    "sharpness/clean_loss": "flatness/clean_loss",
}
"""Present names of records by those of earlier versions, which are read under the present one."""


@dataclass(frozen=True)
class Record:
    """One measured number, with the evidence behind it."""

    name: str
    """`group/metric`, for instance `train/loss` or `hessian/lambda_max`."""
    value: float
    """NaN and infinities are allowed: failure is part of the result."""
    unit: str = ""
    """`1` for shares, `nats`, `images/s`, `s`; empty where the value has none."""
    stderr: float | None = None
    """Standard error of `value`."""
    n: int | None = None
    """Examples, draws or repetitions behind `value`."""
    where: dict[str, Any] = field(default_factory=dict)
    """Subject of the number: step, split, block."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Protocol of the measurement: all settings that the number depends on."""
    cost: dict[str, float] = field(default_factory=dict)
    """Cost of the measurement: seconds, forwards, matvecs."""
    source: str = ""
    """Paper or definition that the number follows."""
    arrays: str = ""
    """Path of an .npz below the run folder with the data behind the number."""
    converged: bool = True
    """False where an iteration stopped before its tolerance."""
    residual: float | None = None
    """Error bound of an eigenvalue: a true one lies at most so far away."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval of `value`, where `stderr` would not do: shares near 0 and 1."""


def to_json(record: Record) -> str:
    """Encode a record as one line of strict JSON.

    Fields at their defaults are left out; values that are not finite are written as strings."""
    values = {}
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        default = item.default if item.default is not dataclasses.MISSING else None
        if item.name in ("name", "value") or value not in (default, {}):
            values[item.name] = _strict(value)
    return json.dumps(values, allow_nan=False)


def from_json(line: str) -> Record:
    """Decode a line written by `to_json`; fields that later versions add are ignored.

    Raises:
        ValueError: the line is not a record."""
    values = parsed(line)
    if not isinstance(values, dict) or "name" not in values or "value" not in values:
        raise ValueError(f"not a record: {line[:80]!r}")
    sections = [values.get(name, {}) for name in ("where", "settings", "cost")]
    if not isinstance(values["name"], str) or not all(isinstance(each, dict) for each in sections):
        raise ValueError(f"not a record: {line[:80]!r}")
    known = {item.name for item in dataclasses.fields(Record)}
    values["name"] = RENAMED.get(str(values["name"]), values["name"])
    try:
        values["value"] = float(values["value"])
    except (OverflowError, TypeError) as error:
        raise ValueError(f"not a record: {line[:80]!r}") from error
    # strict JSON has no NaN and no infinity, so `to_json` writes them as strings
    for name in ("stderr", "residual"):
        if isinstance(values.get(name), str):
            values[name] = float(values[name])
    if values.get("interval"):
        low, high = values["interval"]
        values["interval"] = float(low), float(high)
    return Record(**{k: v for k, v in values.items() if k in known})


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class RunDir:
    """Folder of one run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.json"
        self.records_path = path / "records.jsonl"
        self.checkpoints = path / "checkpoints"
        self.arrays = path / "arrays"
        self.bad_files = path / "bad_files.txt"
        self.classes_path = path / "classes.json"

    @classmethod
    def create(cls, output: Path, name: str) -> RunDir:
        """Make a new run folder; append a number to a name that is taken.

        Raises:
            ValueError: the folder cannot be made."""
        for attempt in range(1, 1000):
            path = output / (name if attempt == 1 else f"{name}-{attempt}")
            # made, not looked for: two runs that start together must not take the same folder
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if output.exists() and not output.is_dir():
                    raise ValueError(f"--output {output} is a file; give a folder") from None
                continue
            except OSError as error:
                raise ValueError(
                    f"cannot write to --output {output}: {error.strerror}; give another"
                ) from error
            run = cls(path)
            run.checkpoints.mkdir()
            run.arrays.mkdir()
            return run
        raise ValueError(f"{output} already holds 999 runs named {name}; give --name another")

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open an existing run folder.

        Raises:
            ValueError: the folder is not a run."""
        run = cls(path)
        if not run.config_path.is_file():
            raise ValueError(f"{path} is not a run: it has no config.json")
        return run

    def append(self, *records: Record) -> None:
        """Append records to `records.jsonl` in one write; drop a line that a crash cut short."""
        text = "".join(to_json(record) + "\n" for record in records)
        self._refuse_odd()
        with self.records_path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            # without its newline the last line is half a record, which would swallow the next one
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(text.encode())

    def records(self, name: str | None = None) -> Iterator[Record]:
        """Yield the records in order, all or those of one name, which may be an earlier one.

        Left out are a last line that a crash cut short, lines that are damaged, each of which the
        log names once, and lines that repeat an earlier one but for the cost: two processes may
        have written into the folder."""
        name = RENAMED.get(name, name) if name else None
        for record in self._read():
            if isinstance(record, Record) and name in (None, record.name):
                yield record

    def _read(self) -> Iterator[Record | bytes]:
        """Yield the records, and damaged lines as they are."""
        if not self.records_path.exists():
            return
        self._refuse_odd()
        seen: set[int] = set()
        with self.records_path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = from_json(line.decode())
                except (ValueError, TypeError, OverflowError):
                    _say_once(f"{self.records_path}, line {number} is damaged and left out")
                    yield line
                    continue
                same = line if not record.cost else to_json(replace(record, cost={}))
                if hash(same) not in seen:
                    seen.add(hash(same))
                    yield record

    def _refuse_odd(self) -> None:
        """Refuse a pipe or a folder in the place of the records; a pipe would block its reader."""
        if self.records_path.exists() and not self.records_path.is_file():
            raise Damaged(f"{self.records_path} is no regular file; remove it")

    def rewind(self, step: int) -> None:
        """Drop records of steps after `step`, which a resumed run writes again.

        Records without a step stay. Damaged lines move to `records.bad.jsonl`."""
        found = list(self._read())
        kept = [r for r in found if isinstance(r, Record) and _step_of(r) <= step]
        if bad := [line for line in found if isinstance(line, bytes)]:
            with (self.path / BAD_RECORDS).open("ab") as file:
                file.writelines(bad)
        replace_text(self.records_path, "".join(to_json(r) + "\n" for r in kept))

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes in the order of the logits; none for a run without them.

        Raises:
            ValueError: the file of names is damaged."""
        if not self.classes_path.exists():
            return ()
        found = read_json(self.classes_path)
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return tuple(found)
        raise Damaged(f"{self.classes_path} is damaged: it holds no list of names")

    def keep_classes(self, names: Sequence[str]) -> None:
        """Write the names of the classes, unless the run has them already."""
        if not self.classes_path.exists():
            replace_text(self.classes_path, json.dumps(list(names)) + "\n")

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file of the run folder, whole or not at all."""
        replace_text(self.path / name, json.dumps(values, indent=2) + "\n")


def _step_of(record: Record) -> float:
    step = record.where.get("step", 0)
    return step if isinstance(step, int | float) else 0


@cache
def _say_once(note: str) -> None:
    logging.getLogger("samovar").warning(note)


def replace_text(path: Path, text: str) -> None:
    """Replace a file's text, whole or not at all.

    It is written to a second file, flushed to disk, and renamed into place. A pipe or a device,
    such as /dev/stdout, is written to and stays what it is."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    aside = path.with_name(path.name + ".partial")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def timestamp() -> str:
    """Format the present time in UTC as 20260131-235959."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
