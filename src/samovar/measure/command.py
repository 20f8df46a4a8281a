"""`samovar measure`: measure what is not recorded yet, record it at once, print a table."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from rich.progress import Progress
from rich.table import Table

from samovar import config as configs
from samovar.config import MeasureConfig, RunConfig
from samovar.measure import catalog
from samovar.measure.subject import Subject, open_subject
from samovar.models import timm_folder, trust
from samovar.runs.records import Record, RunDir, timestamp
from samovar.runs.refused import holds_records, removed_if_refused
from samovar.runs.saddle import saddles
from samovar.runtime import Runtime, started
from samovar.runtime.heartbeat import doing
from samovar.runtime.lock import locked
from samovar.runtime.precision import check_precision, computing
from samovar.runtime.terminal import console
from samovar.words import visible

ROWS = 20
"""Most records of one name that a table shows one by one; more become one row."""


def run(
    name: str, measurements: Sequence[str], config: MeasureConfig, *, wait: bool = False
) -> RunDir:
    """Measure a run or a model, record the numbers and print a table.

    One process at a time measures into a folder.

    Under torchrun the ranks share the products of `hessian`, `blocks`, `trace` and `density`; the
    main rank records.

    Args:
        wait: for another process that measures into the same folder.

    Returns:
        The run folder that has the records.

    Raises:
        ValueError: an unknown subject, or settings that do not fit it; another process measures
            into the folder.
        SystemExit: 130 after an interruption; finished measurements are kept."""
    _import_from_working_folder(name, config.model)
    # float32 and not `auto`: bf16 rounding would look like sharpness; --precision changes some
    with started(
        RunConfig(device=config.device, threads=config.threads, precision="fp32"), "--device"
    ) as runtime:
        for each in measurements:
            check_precision(catalog.precision(each, config), runtime.device)
        subjects = open_subjects(name, measurements, config, runtime)
        subject = next(iter(subjects.values()))
        if runtime.is_main:
            for note in subject.notes:
                print(f"samovar: {visible(note)}", file=sys.stderr)
        # a folder that --name continues is left as it is
        goes_on = bool(config.name) and (config.output / config.name).is_dir()
        is_new = runtime.is_main and not (subject.run or goes_on)
        folder = subject.run or _folder_for(subject, config)
        lock = locked(folder.path, "measure", wait=wait) if runtime.is_main else nullcontext()
        refusable = removed_if_refused(folder, keep=holds_records) if is_new else nullcontext()
        try:
            with refusable, lock:
                found = _measure_all(subjects, config, folder)
        except KeyboardInterrupt:
            print("samovar: interrupted; the same command goes on from here", file=sys.stderr)
            raise SystemExit(130) from None
    if runtime.is_main:
        console(columns=120).print(table_of(found, subject))
        for text in saddles(found):
            print(f"{text}.")
        print(f"records: {folder.records_path}")
    return folder


def _import_from_working_folder(name: str, network: str) -> None:
    """Add the working folder to the import path if a model is given as `module:function`.

    Args:
        name: of the run or model.
        network: value of `--model`."""
    # not always: a file timm.py in the working folder would hide the package
    path = Path(name) / "config.json"
    of_run = path.is_file() and not timm_folder.is_one(path.parent)
    if of_run:
        name = configs.load(path).model.name
        trust.refuse(name, path)
    if ":" in network or ":" in name:
        sys.path.insert(0, str(Path.cwd()))


def open_subjects(
    name: str, measurements: Sequence[str], config: MeasureConfig, runtime: Runtime
) -> dict[str, Subject]:
    """Open the subject of each measurement, once per split.

    Raises:
        ValueError: as `open_subject`."""
    # reading images and weights takes longer than many measurements do
    splits = {each: config.split or catalog.default_split(each) for each in measurements}
    opened = {
        split: open_subject(name, replace(config, split=split), runtime)
        for split in dict.fromkeys(splits.values())
    }
    return {each: opened[split] for each, split in splits.items()}


def _measure_all(
    subjects: dict[str, Subject], config: MeasureConfig, folder: RunDir
) -> list[Record]:
    """Return the records of all measurements, with a progress bar on a terminal."""
    found: list[Record] = []
    # a bar of each rank, or in a log file, would only be noise
    quiet = not sys.stderr.isatty() or any(
        not subject.runtime.is_main for subject in subjects.values()
    )
    with Progress(console=console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("measuring", total=len(subjects))
        for name, subject in subjects.items():
            progress.update(task, description=name)
            place = f"measurement {list(subjects).index(name) + 1} of {len(subjects)}"
            with doing(place):
                found += measure_once(name, subject, config, folder)
            progress.advance(task)
    return found


def measure_once(
    name: str, subject: Subject, config: MeasureConfig, folder: RunDir
) -> list[Record]:
    """Return the records of one measurement; measure only what the folder does not have.

    Records count as those of this measurement if the subject and all settings that it uses are the
    same. New records are appended to the folder.

    Raises:
        ValueError: as `measure`."""
    request = {"measurement": name, "request": catalog.request(name, config)}
    kept = [record for record in folder.records() if _is_of(record, request, subject)]
    if subject.runtime.world_size > 1:
        dist.barrier()  # until all ranks have read, before the main rank writes
    if kept and len(kept) == kept[0].settings.get("records"):
        return kept
    with doing(f"measuring {name}"):
        found = list(measure(name, subject, config, folder.arrays))
    found = [
        replace(record, settings=record.settings | request | {"records": len(found)})
        for record in found
    ]
    if subject.runtime.is_main:
        # together, and with their number, so that an incomplete measurement is recognized
        folder.append(*found)
    return found


def measure(name: str, subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Yield the records of one measurement, each with the subject's protocol and its own cost.

    Args:
        name: of the catalog.
        arrays: folder for the files of arrays.

    Raises:
        ValueError: no such measurement, or settings that do not fit the subject."""
    # what a record itself states goes before what the catalog declares
    protocol = subject.settings | catalog.protocol(name, config)
    start = begun = time.perf_counter()
    for record in _computed(name, subject, config, arrays):
        seconds = round(time.perf_counter() - start, 3)
        # of several numbers that one computation gives, the first has its cost, the others none
        shared = start != begun and seconds < 1e-2 and record.cost.get("seconds") is None
        yield replace(
            record,
            where=subject.where | record.where,
            settings=protocol | record.settings,
            cost=({} if shared else {"seconds": seconds}) | record.cost,
        )
        start = time.perf_counter()


def _computed(name: str, subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Yield what the function of a measurement does, computed in the precision of its entry."""
    found = catalog.load(name)(subject, config, arrays)
    while True:
        # closed before each record goes out, as the precision is a setting of the whole process
        with computing(catalog.precision(name, config), subject.runtime.device):
            record = next(found, None)
        if record is None:
            return
        yield record


def _is_of(record: Record, request: dict[str, str], subject: Subject) -> bool:
    # the precision is part of the request where it can be chosen
    wanted = subject.settings | request
    same = all(record.settings.get(key) == value for key, value in wanted.items())
    return same and record.where.get("step") == subject.where.get("step")


def _folder_for(subject: Subject, config: MeasureConfig) -> RunDir:
    """Create a run folder for a model that belongs to no run, the same one on every rank."""
    # the name has the time in it, which differs between ranks
    paths: list[Path | None] = [None]
    if subject.runtime.is_main:
        paths[0] = _make_folder(subject, config).path
    if subject.runtime.world_size > 1:
        dist.broadcast_object_list(paths, src=0)
    assert paths[0] is not None
    return RunDir(paths[0])


def _make_folder(subject: Subject, config: MeasureConfig) -> RunDir:
    name = config.name or f"measure-{Path(subject.name.replace(':', '-')).name}-{timestamp()}"
    existing = RunDir(config.output / name)
    # the same --name continues that folder
    if config.name and existing.config_path.is_file():
        return existing
    folder = RunDir.create(config.output, name)
    configs.save(subject.config, folder.config_path)
    return folder


def table_of(records: Sequence[Record], subject: Subject) -> Table:
    """Return a table of records: value, error, where, images, cost."""
    s = subject.settings
    title = f"{subject.name}: {s['weights']}, images of {s['source']}, {s['loss']} loss"
    table = Table(title=title)
    for header in ("measurement", "value", "error", "of", "on", "cost"):
        # a narrow terminal breaks what is long; it cuts nothing
        table.add_column(header, overflow="fold")
    # robustness alone has 95 records; a table is for reading
    many = {
        name for name, count in Counter(record.name for record in records).items() if count > ROWS
    }
    for record in records:
        if record.name not in many:
            table.add_row(*_row(record))
    for name in sorted(many):
        same = [record for record in records if record.name == name]
        low, high = (pick(same, key=lambda record: record.value) for pick in (min, max))
        number = _number(low.value, low.unit, 4).removesuffix(_unit(low.unit))
        value = f"{number} to {_number(high.value, high.unit, 4)}"
        table.add_row(name, value, "", f"{len(same)} records", "", "")
    return table


def _unit(unit: str) -> str:
    """Return a unit as it stands behind a number; shares are printed in per cent."""
    return " %" if unit == "1" else f" {unit}".rstrip()


def _number(value: float, unit: str, digits: int) -> str:
    return f"{100 * value if unit == '1' else value:.{digits}g}{_unit(unit)}"


def _row(record: Record) -> tuple[str, ...]:
    """Return the cells of a record."""
    error = f"± {_number(record.stderr, record.unit, 2)}" if record.stderr is not None else ""
    if record.residual is not None:
        error = f"residual {_number(record.residual, record.unit, 2)}"
    where = ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in record.where.items()
        if key not in ("step", "split")
    )
    cost = ", ".join(f"{value:g} {key}" for key, value in record.cost.items())
    value = _number(record.value, record.unit, 5) + ("" if record.converged else " (not converged)")
    images = record.settings.get("landscape_images") or record.settings["images"]
    # shares count the images behind them; all other numbers are taken over the subject's images
    of = "" if record.name.startswith("ntk/") else f"{record.n if record.unit == '1' else images} "
    on = of + record.where["split"]
    return record.name, value, error, where, on, cost
