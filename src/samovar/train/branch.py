"""Branch off a run: a new run that starts from a checkpoint of another, with a tail of its own.

A branch is the run that its own config describes: what its settings change lies after the
checkpoint, so training that config from the first step ends in the same bits."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch.distributed as dist

from samovar import config as configs
from samovar.config import Config, GridConfig, decay_start, num_steps
from samovar.config.encoded import dashed
from samovar.config.settings import Decay
from samovar.runs import checkpoint
from samovar.runs.checkpoint import Checkpoint
from samovar.runs.records import Record, RunDir, replace_text, to_json
from samovar.runtime import Runtime
from samovar.train import resume
from samovar.train.schedules import lr_at, rho_at

FREE = ("epochs", "steps", "optim.schedule", "optim.decay_share", "optim.decay_shape")
"""Settings beside those of SAM that a branch may change."""

ORIGIN = "train/branch"
"""Record of a run that began as a branch: the step, and in its settings the run it left."""


@dataclass(frozen=True)
class Branch:
    """A checkpoint of a run, from which another run starts."""

    run: RunDir
    step: int
    config: Config
    """Settings of the run, with the learning rate that its grid has chosen."""


def find(folder: Path, which: str) -> Branch:
    """Return the checkpoint of a run that a step or `last` names.

    Raises:
        ValueError: the folder is no run, or has no such checkpoint; lists those there are."""
    run = RunDir(folder)
    if not run.config_path.is_file():
        raise ValueError(
            f"--branch {folder}@{which}: {folder} is not a run, it has no config.json; give the "
            "folder of a run"
        )
    saved = checkpoint.steps_saved(run.checkpoints)
    if not saved:
        raise ValueError(f"--branch {folder}@{which}: the run has no checkpoint; train it first")
    config = replace(configs.load(run.config_path), grid=GridConfig())
    if which == "last":
        return Branch(run, saved[-1], config)
    if not which.isdigit() or int(which) not in saved:
        raise ValueError(
            f"--branch {folder}@{which} is not there; there are {', '.join(map(str, saved))} and "
            "last; --run.keep of that run says how many are kept"
        )
    return Branch(run, int(which), config)


def settings(origin: Branch, wanted: Config, num_train: int) -> Config:
    """Return the settings of a branch; SAM that is new in it starts where it starts.

    A branch without a name is named after run and step.

    Args:
        wanted: the run's settings, changed by flags.
        num_train: training images.

    Raises:
        ValueError: names a setting that may not change, or that would have changed a step before
            the branch."""
    saved, step = origin.config, origin.step
    place = f"--branch {origin.run.path}@{step}"
    for name, (before, now) in resume.changes(saved, wanted).items():
        if name not in FREE and not name.startswith("sam."):
            free = ", ".join(f"--{dashed(each)}" for each in FREE)
            raise ValueError(
                f"{place}: --{dashed(name)} {now} differs from the run's {before}, and a branch "
                f"may change --sam.*, {free} only; drop the flag, or start a new run with --config"
            )
    if saved.loss == "supcon":
        raise ValueError(
            f"{place}: a contrastive run has two stages and takes no branch; start a new run "
            f"with --config {origin.run.config_path}"
        )
    total = num_steps(wanted, num_train)
    if total <= step:
        raise ValueError(
            f"{place}: a run of {total} steps ends before the branch begins; give more --steps, "
            "or an earlier checkpoint"
        )
    # the config says where SAM came in, so that it describes all steps of the branch
    climbed = any(rho_at(each, saved, num_steps(saved, num_train)) for each in range(step))
    if wanted.sam.rho and not wanted.sam.start and not climbed:
        at_decay = wanted.optim.schedule == "wsd" and decay_start(wanted.optim, total) == step
        start: float | Decay = "decay" if at_decay else step / total
        wanted = replace(wanted, sam=replace(wanted.sam, start=start))
        configs.validate(wanted)
    _check_past(origin, wanted, num_train, place, climbed=climbed)
    return replace(wanted, name=wanted.name or f"{origin.run.path.resolve().name}-step{step}")


def _check_past(
    origin: Branch, wanted: Config, num_train: int, place: str, *, climbed: bool
) -> None:
    """Refuse settings under which a step before the branch would have been another."""
    saved, step = origin.config, origin.step
    before, after = num_steps(saved, num_train), num_steps(wanted, num_train)
    for each in range(step):
        was, now = lr_at(each, saved.optim, before), lr_at(each, wanted.optim, after)
        if was != now:
            raise ValueError(
                f"{place}: step {each} had learning rate {was:.6g}, and has {now:.6g} under these "
                "settings; branch before the decay of --optim.schedule wsd, or leave the length "
                "and the decay as they are"
            )
        was, now = rho_at(each, saved, before), rho_at(each, wanted, after)
        if was != now:
            raise ValueError(
                f"{place}: step {each} had rho {was:g}, and has {now:g} under these settings; "
                "choose --sam.start or --sam.end so that SAM changes after the branch only, "
                f"{step / after:.4g} of the run"
            )
    for name, (old, new) in configs.differences(saved, wanted).items():
        # the teacher of SAF and MESA has a start of its own, in epochs
        past = climbed or name.startswith("sam.teacher")
        if past and name.startswith("sam.") and name not in ("sam.start", "sam.end"):
            raise ValueError(
                f"{place}: steps before it had --{dashed(name)} {old}, not {new}; drop the flag"
            )


def load(origin: Branch) -> Checkpoint:
    """Read the checkpoint that a branch starts from.

    Raises:
        CheckpointError: it is damaged, or belongs to another run."""
    saved = configs.load(origin.run.config_path)
    path = checkpoint.path_of(origin.run.checkpoints, origin.step)
    return checkpoint.load(path, resume.fingerprint(saved))


def place(origin: Branch, found: Checkpoint, run: RunDir, config: Config, runtime: Runtime) -> None:
    """Write what a new run takes over; ranks return once the main one has written it.

    Args:
        found: the checkpoint, from `load`.
        config: the new run's settings."""
    if runtime.is_main:
        _write(origin, found, run, config)
    if runtime.world_size > 1:
        dist.barrier()


def _write(origin: Branch, found: Checkpoint, run: RunDir, config: Config) -> None:
    """Write checkpoint, best checkpoint and records of training into a new run's folder.

    A best checkpoint that was deleted since counts no more: the best of the branch is then sought
    from its first checkpoint on."""
    mark, state = resume.fingerprint(config), dict(found.state)
    best, last = state["best"], state["last"]
    if best and int(best["step"]) != origin.step:
        path = checkpoint.path_of(origin.run.checkpoints, int(best["step"]))
        if path.is_dir():
            checkpoint.save(run.checkpoints, checkpoint.load(path), mark)
        else:
            best = last if last and int(last["step"]) == origin.step else {}
            state |= {"best": best, "stale": 0}
    changed = configs.differences(origin.config, config)
    left = {
        "run": str(origin.run.path),
        "step": origin.step,
        "changed": {
            name: str(now) for name, (_, now) in changed.items() if name not in resume.HARMLESS
        },
    }
    records = [
        *(record for record in origin.run.records() if _is_training(record, origin.step)),
        Record(ORIGIN, origin.step, where={"step": origin.step}, settings=left),
    ]
    replace_text(run.records_path, "".join(to_json(record) + "\n" for record in records))
    if best:
        replace_text(run.checkpoints / "best.json", json.dumps(best) + "\n")
    # last, since a run with a checkpoint counts as begun
    checkpoint.save(run.checkpoints, replace(found, state=state), mark)


def _is_training(record: Record, step: int) -> bool:
    """Return whether a record was written by training, up to a step."""
    named = record.name.startswith(("train/", "val/", "watch/"))
    trained = named and "measurement" not in record.settings
    return trained and record.where.get("step", step + 1) <= step


def origin_line(run: RunDir, step: int) -> str:
    """Return one line on how a run comes to stand at a step: by a branch, or resumed."""
    left = [r for r in run.records(ORIGIN) if r.where.get("step") == step]
    if not left:
        return f"resumed at step {step}"
    return f"branched from {left[-1].settings['run']} at step {step}"
