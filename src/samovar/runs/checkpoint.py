"""Checkpoints: folders that are written whole or not at all.

`checkpoints/step-00000300/` holds:

- `model.safetensors`: the body's weights under timm's own names;
- `ema.safetensors`, if the run keeps an average of the weights;
- `state.pt`: optimizer and counters, read with `weights_only=True`, so nothing in it can execute;
- `meta.json`: the size and SHA-256 of each, and a SHA-256 of all that it says itself.

It is written to a folder aside, flushed to disk, and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from samovar.runs.json_files import Damaged, read_object

FORMAT = "samovar-checkpoint-2"
OLDER = "samovar-checkpoint-1"
"""Format whose description has no hash of its own; it is still read. Two bits of the name differ
from `FORMAT`, so that no flip of one bit makes a checkpoint pass for an older one."""
FILES = ("model.safetensors", "state.pt")
"""Files that every checkpoint has."""
_ASIDE = ".partial-"


class CheckpointError(ValueError):
    """A checkpoint is damaged, absent, or belongs to another run."""


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint."""

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    state: dict[str, Any]


def path_of(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint in `folder`, a run's `checkpoints/`."""
    return folder / f"step-{step:08d}"


def save(folder: Path, checkpoint: Checkpoint, fingerprint: str) -> Path:
    """Write a checkpoint below `folder` and return its path.

    After a failure nothing of it is left behind, and older ones are untouched.

    Raises:
        OSError: the disk is full or not writable."""
    final = path_of(folder, checkpoint.step)
    aside = folder / f"{_ASIDE}{final.name}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        _save_tensors(checkpoint.model, aside / "model.safetensors")
        if checkpoint.ema:
            _save_tensors(checkpoint.ema, aside / "ema.safetensors")
        with (aside / "state.pt").open("wb") as file:
            torch.save(checkpoint.state, file)
        files = {
            p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)}
            for p in sorted(aside.iterdir())
        }
        meta = {
            "format": FORMAT,
            "step": checkpoint.step,
            "fingerprint": fingerprint,
            "files": files,
        }
        meta["sha256"] = _hash_of(meta)
        (aside / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        # flushed before the rename: after a power cut the new name must not point at empty files
        for path in [*aside.iterdir(), aside]:
            _flush(path)
        # a resumed run reaches the same step again, with the same bits
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        _flush(folder)
    # torch and safetensors report a full disk by errors of their own
    except (RuntimeError, SafetensorError) as error:
        raise OSError(f"cannot write {final}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def load(path: Path, fingerprint: str | None = None) -> Checkpoint:
    """Check every file against its recorded size and hash, then read the checkpoint.

    Args:
        fingerprint: that of the run it has to belong to; None accepts any.

    Raises:
        CheckpointError: names the damaged file, or says that it belongs to another run."""
    meta = read_meta(path)
    if fingerprint not in (None, meta["fingerprint"]):
        raise CheckpointError(f"{path} belongs to another run; its settings are not this run's")
    for name, facts in meta["files"].items():
        _check_file(path / name, facts)
    try:
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        ema = load_file(path / "ema.safetensors") if "ema.safetensors" in meta["files"] else {}
        return Checkpoint(meta["step"], load_file(path / "model.safetensors"), ema, state)
    # the hashes are right, so these are files that something else has written
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, LookupError,
            ValueError, TypeError, AttributeError, EOFError) as error:  # fmt: skip
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_meta(path: Path) -> dict[str, Any]:
    """Read a checkpoint's `meta.json`: format, step, fingerprint, size and SHA-256 of each file.

    Raises:
        CheckpointError: there is none, it is not samovar's, or it is not what was written."""
    try:
        meta = read_object(path / "meta.json")
    except Damaged as error:
        raise CheckpointError(f"{path} is no whole checkpoint: {error}") from error
    form = meta.get("format")
    if form not in (FORMAT, OLDER):
        raise CheckpointError(
            f"{path} is no samovar checkpoint: its format is {form!r}, expected {FORMAT!r}"
        )
    if form == FORMAT and meta.get("sha256") != _hash_of(meta):
        raise CheckpointError(f"{path} is damaged: the contents of meta.json have changed")
    if fault := _fault(meta, path.name):
        raise CheckpointError(f"{path} is damaged: {fault}")
    return meta


def _hash_of(meta: dict[str, Any]) -> str:
    """Return the SHA-256 of a description without its own."""
    rest = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _fault(meta: dict[str, Any], name: str) -> str:
    """Return what is wrong with the form of a description, or ""."""
    step, files = meta.get("step"), meta.get("files")
    number = name.removeprefix("step-")
    if type(step) is not int or not isinstance(meta.get("fingerprint"), str):
        return "meta.json names no step or no run"
    # a folder that was renamed would go on from another step than its state's
    if name.startswith("step-") and number.isdecimal() and int(number) != step:
        return f"meta.json says step {step}"
    if not isinstance(files, dict) or not set(FILES) <= set(files):
        return f"meta.json does not name {' and '.join(FILES)}"
    for file, facts in files.items():
        if not isinstance(facts, dict) or (
            type(facts.get("bytes")) is not int or not isinstance(facts.get("sha256"), str)
        ):
            return f"meta.json has no size and hash of {file}"
        if Path(file).name != file:
            return f"meta.json names {file}, which is not in its folder"
    return ""


def steps_saved(folder: Path) -> list[int]:
    """Return the steps of the checkpoints below `folder`, oldest first."""
    names = (p.name for p in folder.glob("step-*") if p.is_dir())
    return sorted(
        int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit()
    )


def choose(folder: Path, which: str) -> Path:
    """Return the path of the checkpoint that `best`, `last` or a step names.

    `best` of a run without an evaluation is the last.

    Raises:
        ValueError: there is no checkpoint, or not this one."""
    steps = steps_saved(folder)
    if not steps:
        raise ValueError(
            f"{folder.parent} has no checkpoint yet; train it, or measure --checkpoint init"
        )
    best = folder / "best.json"
    if which == "last" or (which == "best" and not best.is_file()):
        return path_of(folder, steps[-1])
    if which == "best":
        return path_of(folder, _best_step(best))
    if which.isdigit() and int(which) in steps:
        return path_of(folder, int(which))
    known = ", ".join(map(str, steps))
    raise ValueError(f"--checkpoint {which} is not there; give best, last, init or one of {known}")


def _best_step(path: Path) -> int:
    step = read_object(path).get("step")
    if not isinstance(step, int | float):
        raise Damaged(f"{path} is damaged: it names no step; give --checkpoint last or a step")
    return int(step)


def load_latest(
    folder: Path, fingerprint: str, use: Callable[[Checkpoint], object] = lambda found: None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest intact checkpoint, and the error of each newer one.

    Args:
        use: called with a checkpoint whose files are whole; its `CheckpointError` says that what
            they hold cannot be used either, and the one before is tried."""
    complaints: list[str] = []
    for step in reversed(steps_saved(folder)):
        try:
            found = load(path_of(folder, step), fingerprint)
            use(found)
            return found, complaints
        except CheckpointError as error:
            complaints.append(str(error))
    return None, complaints


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete all checkpoints but the newest `keep` and the best, and any left half written."""
    for step in steps_saved(folder)[:-keep]:
        if step != best_step:
            shutil.rmtree(path_of(folder, step))
    for aside in folder.glob(f"{_ASIDE}*"):
        shutil.rmtree(aside)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    # clones, because safetensors refuses two names for one storage (tied weights)
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


def _check_file(path: Path, facts: dict[str, Any]) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size != facts["bytes"]:
        raise CheckpointError(
            f"{path.parent} is damaged: {path.name} has {size} of {facts['bytes']} bytes"
        )
    if _sha256(path) != facts["sha256"]:
        raise CheckpointError(f"{path.parent} is damaged: the contents of {path.name} have changed")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
