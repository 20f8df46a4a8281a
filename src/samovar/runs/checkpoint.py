"""Checkpoints: folders that are written whole or not at all.

`checkpoints/step-00000300/` holds:

- `model.safetensors`: the body's weights under timm's own names;
- `ema.safetensors`, if the run keeps an average of the weights;
- `state.pt`: optimizer and counters, read with `weights_only=True`, so nothing in it can execute;
- `meta.json`: the size and SHA-256 of each.

It is written to a folder aside, flushed to disk, and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = "samovar-checkpoint-1"
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
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_meta(path: Path) -> dict[str, Any]:
    """Read a checkpoint's `meta.json`.

    Raises:
        CheckpointError: there is none, or it is not samovar's."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint: meta.json cannot be read ({error})"
        ) from error
    found = meta.get("format") if isinstance(meta, dict) else None
    if (
        found != FORMAT
        or not isinstance(meta.get("files"), dict)
        or not isinstance(meta.get("step"), int)
    ):
        raise CheckpointError(
            f"{path} is no samovar checkpoint: its format is {found!r}, expected {FORMAT!r}"
        )
    return dict(meta)


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
        return path_of(folder, int(json.loads(best.read_text(encoding="utf-8"))["step"]))
    if which.isdigit() and int(which) in steps:
        return path_of(folder, int(which))
    known = ", ".join(map(str, steps))
    raise ValueError(f"--checkpoint {which} is not there; give best, last, init or one of {known}")


def load_latest(folder: Path, fingerprint: str) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest intact checkpoint, and the error of each newer one."""
    complaints: list[str] = []
    for step in reversed(steps_saved(folder)):
        try:
            return load(path_of(folder, step), fingerprint), complaints
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
