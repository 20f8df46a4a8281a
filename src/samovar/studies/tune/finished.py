"""Read what finished runs wrote, and pair runs with SAM with plain ones."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from samovar import config as configs
from samovar.config import Config
from samovar.runs import progress
from samovar.runs.json_files import read_object
from samovar.runs.records import RunDir
from samovar.train.resume import changes
from samovar.train.trials import RESULT


@dataclass(frozen=True)
class RunFacts:
    """What a finished run wrote, as far as the rules read it."""

    folder: Path
    config: Config
    steps: int
    accuracy: float
    """Held-out accuracy at the last step; NaN after a divergence."""
    train_loss: float
    """Last logged training loss, in nats, under augmentation and dropout; NaN without one."""
    clean_loss: float
    """Loss on training images as they are, in nats; NaN where it is not measured."""
    lambda_max: float
    """Largest eigenvalue of the Hessian; NaN where it is not measured."""
    epochs: float
    """Passes over the training images; NaN where their number is not recorded."""

    @property
    def rho(self) -> float:
        """Radius of the run; 0 for plain training."""
        return self.config.sam.rho

    @property
    def climbs(self) -> float:
        """Share of the steps with a climb, from the settings."""
        if not self.rho:
            return 0.0
        first, end = configs.sam_span(self.config, self.steps)
        return math.ceil(max(0, end - first) / self.config.sam.every) / max(1, self.steps)

    @property
    def group(self) -> int:
        """Images that share a climb on one rank."""
        return self.config.sam.m or self.config.data.batch_size

    @property
    def loss_compares(self) -> bool:
        """True if the training loss can reach 0: labels are neither mixed nor smoothed."""
        data = self.config.data
        return not (data.mixup or data.cutmix or self.config.label_smoothing)


@dataclass(frozen=True)
class Pair:
    """SAM beside plain training of the same length, over the same seeds."""

    plain: tuple[RunFacts, ...]
    sam: tuple[RunFacts, ...]

    @property
    def gains(self) -> tuple[float, ...]:
        """SAM's gain in accuracy of each seed, in points."""
        return tuple(
            100 * (b.accuracy - a.accuracy) for a, b in zip(self.plain, self.sam, strict=True)
        )

    @property
    def losses(self) -> tuple[float, float]:
        """Mean training losses without and with SAM; NaN where the runs' losses say nothing.

        The measured loss without augmentation counts, else the logged one."""
        runs = (*self.plain, *self.sam)
        name = "clean_loss"
        if not all(math.isfinite(facts.clean_loss) for facts in runs):
            # mixed and smoothed labels keep the logged loss above 0
            if not all(facts.loss_compares for facts in runs):
                return math.nan, math.nan
            name = "train_loss"
        plain, sam = (fmean(getattr(r, name) for r in each) for each in (self.plain, self.sam))
        return plain, sam


# --- what runs wrote


def read_runs(folders: Sequence[Path]) -> list[RunFacts]:
    """Return the finished runs in some folders; a search stands for all of its trials.

    Raises:
        ValueError: a folder is no run, no run has finished, or runs train other networks or data.
    """
    found: list[RunFacts] = []
    for folder in folders:
        trials = sorted(folder.glob("trials/*/*/config.json"))
        images = _training_images(RunDir(folder)) if trials else None
        paths = [path.parent for path in trials] or [folder]
        found += [facts for path in paths if (facts := _facts(RunDir.open(path), images))]
    if not found:
        names = ", ".join(map(str, folders))
        raise ValueError(f"no run of {names} has finished; train it to its end first")
    _check_alike(found)
    return found


def _training_images(search: RunDir) -> float | None:
    values = [r.settings.get("training_images") for r in search.records("tune/accuracy")]
    return next((float(value) for value in values if value), None)


def _facts(run: RunDir, images: float | None) -> RunFacts | None:
    """Return the facts of a run; None if it has not finished."""
    config = configs.load(run.config_path)
    # records come in order, so the last of a name is the newest
    last = {record.name: record.value for record in run.records()}
    accuracy = last.get("val/accuracy", math.nan)
    result, reached = run.path / RESULT, progress.read(run)
    if result.is_file():
        ended = read_object(result)
        if "finite" not in ended:
            return None
        steps = int(ended["steps"])
        accuracy = float(ended["accuracy"]) if ended["finite"] else math.nan
    elif reached and reached.status == "done":
        steps = reached.step
    else:
        return None
    epochs = steps * config.data.batch_size / images if images else math.nan
    if not images and not config.steps:
        epochs = config.epochs
    return RunFacts(
        run.path,
        config,
        steps,
        accuracy,
        last.get("train/loss", math.nan),
        last.get("flatness/clean_loss", math.nan),
        last.get("hessian/lambda_max", math.nan),
        epochs,
    )


def _check_alike(found: Sequence[RunFacts]) -> None:
    first = found[0]
    for other in found[1:]:
        for name, (a, b) in changes(first.config, other.config).items():
            if name.startswith(("model.", "data.")):
                raise ValueError(
                    f"{first.folder} has {name} {a}, {other.folder} has {b}; "
                    "give runs of one network on the same data"
                )


# --- pairs


def pair_of(found: Sequence[RunFacts]) -> Pair | None:
    """Return the best SAM setting and the best plain one of the greatest length both have.

    Seeds are those that both have; runs that are not finite take no part."""
    for steps in sorted({facts.steps for facts in found}, reverse=True):
        groups: dict[str, list[RunFacts]] = {}
        for facts in found:
            if facts.steps == steps and math.isfinite(facts.accuracy):
                groups.setdefault(_setting(facts), []).append(facts)
        ranked = sorted(groups.values(), key=lambda runs: -fmean(r.accuracy for r in runs))
        plain = next((runs for runs in ranked if not runs[0].rho), None)
        sam = next((runs for runs in ranked if runs[0].rho), None)
        if plain and sam and (pair := paired(plain, sam)).plain:
            return pair
    return None


def _setting(facts: RunFacts) -> str:
    values = configs.flatten(facts.config)
    kept = {k: v for k, v in values.items() if k.startswith(("sam.", "optim."))}
    return json.dumps(kept, default=str, sort_keys=True)


def paired(plain: Sequence[RunFacts], sam: Sequence[RunFacts]) -> Pair:
    """Return the runs of the seeds that both have, in the order of the seeds."""
    a, b = ({facts.config.seed: facts for facts in runs} for runs in (plain, sam))
    seeds = sorted(a.keys() & b.keys())
    return Pair(tuple(a[s] for s in seeds), tuple(b[s] for s in seeds))
