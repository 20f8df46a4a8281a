"""Resume a run: which settings may change, which checkpoint fits, and the state it restores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import torch

from samovar.config import Config, differences, from_dict, to_dict
from samovar.runs import checkpoint
from samovar.runs.checkpoint import Checkpoint, CheckpointError
from samovar.runs.records import RunDir
from samovar.train.loop import TrainState
from samovar.train.sharding import gathered, spread, spread_state

HARMLESS = (
    "output", "name", "run.threads", "run.eval_every", "run.log_every", "run.keep", "run.loggers",
    "run.max_nonfinite", "run.watch_every", "run.watch_images", "data.root",
    "run.checkpointing", "data.workers", "data.loader", "data.max_bad_share",
)  # fmt: skip
"""Settings a resumed run may change: they do not alter the result, beyond the rounding that
threads and loader may alter."""


def changes(
    saved: Config, wanted: Config, also_harmless: Iterable[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return the settings that alter the result and differ, with both values."""
    harmless = {*HARMLESS, *also_harmless}
    return {k: pair for k, pair in differences(saved, wanted).items() if k not in harmless}


def check_resume(saved: Config, wanted: Config) -> None:
    """Refuse to resume a run under settings that would alter its result.

    Raises:
        ValueError: names the first such setting with both values."""
    for name, (before, now) in changes(saved, wanted).items():
        flag = "--" + name.replace("_", "-")
        raise ValueError(
            f"{flag} {now} differs from the run's {before}, and a resume continues the same run;"
            " drop the flag, or start a new run with --config RUN/config.json"
        )


def fingerprint(config: Config) -> str:
    """Hash all settings that alter the result and differ from their defaults.

    A setting that a later version adds, at a neutral default, leaves the hash of older runs as it
    is."""
    # through JSON's types: a float given as 300 and one read back as 300.0 are the same setting
    typed: Config = from_dict(to_dict(config))
    given = changes(typed, Config(recipe=config.recipe))
    kept = {name: str(value) for name, (value, _) in given.items()}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def newest(
    run: RunDir, mark: str, use: Callable[[Checkpoint], object]
) -> tuple[Checkpoint | None, list[str]]:
    """Return a run's newest usable checkpoint, and a line for the reader on each newer one.

    Args:
        mark: the run's `fingerprint`; checkpoints that carry another are refused.
        use: brings a state to a checkpoint, as `restore` does; where it fails by a
            `CheckpointError`, the one before is tried.

    Raises:
        CheckpointError: there are checkpoints, and none can be used."""
    found, complaints = checkpoint.load_latest(run.checkpoints, mark, use)
    if complaints and not found:
        raise CheckpointError(
            f"{complaints[0]}; no older checkpoint is whole; start anew with --config "
            f"{run.config_path}"
        )
    return found, [f"{complaint}; using the one before" for complaint in complaints]


def snapshot(state: TrainState, *, keep: bool = True) -> Checkpoint:
    """Return the state as a checkpoint.

    Sharded tensors are gathered, one after the other, so all ranks must call it.

    Args:
        keep: whether this rank keeps the gathered tensors."""
    others: dict[str, Any] = {
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict() if state.scaler else {},
        "tally": {name: value.item() for name, value in state.tally.items()},
        "best": state.best,
        "last": state.last,
    }
    # left out while empty, so that checkpoints of plain SAM stay as they were
    counts = {"stale": state.stale, "micro_batch": state.micro_batch}
    others |= {name: count for name, count in counts.items() if count}
    if state.memory.holds:
        others["sam"] = state.memory.state_dict()
    if state.teacher is not None:
        others["teacher"] = state.teacher.state_dict()
    if state.projection is not None:
        others["projection"] = state.projection.state_dict()
    ema = state.ema.state_dict() if state.ema else {}
    # other programs load the file of averaged weights, so the counter is kept apart from it
    if ema:
        others["ema_updates"] = int(ema.pop("num_updates"))
    model = state.model.body.state_dict()
    if state.sharding:
        model, ema, others = (gathered(each, keep=keep) for each in (model, ema, others))
    return Checkpoint(state.step, model, ema, others)


def restore(state: TrainState, found: Checkpoint) -> None:
    """Bring a state to where a checkpoint was taken, bit for bit.

    Raises:
        CheckpointError: the checkpoint holds no state of this run: tensors or counters are missing,
            of another shape, or foreign. The state may be changed in part."""
    try:
        _restore(state, found)
    except torch.OutOfMemoryError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"the checkpoint of step {found.step} holds no state of this run: {reason}"
        ) from error


def _restore(state: TrainState, found: Checkpoint) -> None:
    model, optimizer = found.model, found.state["optimizer"]
    if state.sharding:
        model = spread(state.model.body, model)
        optimizer = spread_state(state.optimizer, optimizer)
    state.model.body.load_state_dict(model)
    state.optimizer.load_state_dict(optimizer)
    if "sam" in found.state:
        state.memory.load_state_dict(found.state["sam"])
    if state.teacher is not None and "teacher" in found.state:
        state.teacher.load_state_dict(found.state["teacher"])
    if state.projection is not None:
        state.projection.load_state_dict(found.state["projection"])
    if state.scaler:
        state.scaler.load_state_dict(found.state["scaler"])
    if state.ema:
        num_updates = torch.tensor(found.state["ema_updates"])
        state.ema.load_state_dict(found.ema | {"num_updates": num_updates})
    for name, value in found.state["tally"].items():
        state.tally[name].fill_(value)
    state.best, state.last = found.state["best"], found.state["last"]
    state.stale = found.state.get("stale", 0)
    state.micro_batch = found.state.get("micro_batch", 0)
    state.step = found.step
