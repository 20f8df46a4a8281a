"""Columns of a study's tables, looked up in a run's records. Nothing in this file needs torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from samovar.runs.records import Record

Pick = Callable[[Sequence[Record]], Record | None]
"""Chooses one of a run's records of one name."""


@dataclass(frozen=True)
class Column:
    """A number of a run."""

    title: str
    record: str
    """Name of the records that the number is one of."""
    measurement: str = ""
    """Name that `samovar measure` takes; empty for a number that training records."""
    percent: bool = False
    """True if the number is a share, which is shown in percent."""
    pick: Pick = lambda found: found[-1] if found else None

    def value(self, records: Sequence[Record]) -> float:
        """Return the number of a run; NaN where it is missing or did not converge."""
        found = self.pick([record for record in records if record.name == self.record])
        if found is None or not found.converged:
            return math.nan
        return found.value * (100 if self.percent else 1)


# --- picks: blocks have names in `block`, or a place in `index`; networks differ in depth, so a
# position is a share of the depth from 0 (first block) to 1 (last)


def _named(*names: str) -> Pick:
    """Pick the last record of a block with one of these names."""
    return lambda found: next((r for r in reversed(found) if r.where.get("block") in names), None)


def _numbered(position: float) -> Pick:
    """Pick by position among the blocks whose name ends in a number."""

    def pick(found: Sequence[Record]) -> Record | None:
        numbered = {
            int(n[1]): r
            for r in found
            if (n := re.fullmatch(r"\D*(\d+)", str(r.where.get("block"))))
        }
        return _placed(numbered, position)

    return pick


def _indexed(position: float) -> Pick:
    """Pick by position among the records that have an `index`."""
    return lambda found: _placed(
        {int(r.where["index"]): r for r in found if "index" in r.where}, position
    )


def _placed(by_number: dict[int, Record], position: float) -> Record | None:
    order = sorted(by_number)
    return by_number[order[round(position * (len(order) - 1))]] if order else None


def _units(position: float) -> Pick:
    """Pick the share of active units of the block at a position, averaged over its layers."""

    def pick(found: Sequence[Record]) -> Record | None:
        # a run may be measured again, and the last record of a layer holds
        newest = {(str(r.where.get("block")), r.where.get("layer")): r for r in found}
        blocks = list(dict.fromkeys(block for block, _ in newest))
        if not blocks:
            return None
        chosen = blocks[round(position * (len(blocks) - 1))]
        layers = [record for (block, _), record in newest.items() if block == chosen]
        return replace(layers[0], value=fmean(r.value for r in layers))

    return pick


def _benchmark(split: str, scoring: str = "") -> Pick:
    """Pick the last record of a published test set."""

    def matches(record: Record) -> bool:
        scored = str(record.where.get("scoring", ""))
        return record.where.get("split") == split and scored.startswith(scoring)

    return lambda found: next((r for r in reversed(found) if matches(r)), None)


# --- columns


def _curvature(title: str, pick: Pick) -> Column:
    return Column(f"λ_max, {title}", "hessian/block_lambda_max", "blocks", pick=pick)


def _norm(place: str, position: float) -> Column:
    return Column(
        f"activation norm, {place}",
        "inside/activation_norm",
        "activations",
        pick=_indexed(position),
    )


def _active(place: str, position: float) -> Column:
    return Column(
        f"active units, {place} block, %",
        "inside/active_fraction",
        "activations",
        percent=True,
        pick=_units(position),
    )


def _accuracy(title: str, split: str, scoring: str = "") -> Column:
    return Column(
        title, "testset/accuracy", "testset", percent=True, pick=_benchmark(split, scoring)
    )


COLUMNS: dict[str, Column] = {
    "top1": Column("accuracy, %", "val/accuracy", percent=True),
    "train_loss": Column("training loss, last logged", "train/loss"),
    "kappa": Column("NTK κ at initialisation", "ntk/condition_number", "ntk"),
    "lambda_max": Column("λ_max", "hessian/lambda_max", "hessian"),
    "training_loss": Column("loss on training images", "flatness/clean_loss", "flatness"),
    "flatness": Column("loss under weight noise", "flatness/average_flatness", "flatness"),
    "corruption": Column(
        "accuracy, corrupted, %", "robustness/mean_corruption_accuracy", "robustness", percent=True
    ),
    "pgd": Column("accuracy under PGD-10, %", "robustness/pgd_accuracy", "attack", percent=True),
    "embedding": _curvature("embedding", _named("embedding", "stem")),
    "token_mixing": _curvature("MSA or token MLP", _named("msa", "token_mlp")),
    "channel_mixing": _curvature("MLP or channel MLP", _named("mlp", "channel_mlp")),
    "block1": _curvature("first block", _numbered(0)),
    "block6": _curvature("middle block", _numbered(0.5)),
    "block12": _curvature("last block", _numbered(1)),
    "whole": _curvature("whole", _named("whole")),
    "weight_norm": Column("weight norm", "inside/total_weight_norm", "activations"),
    "activation1": _norm("first", 0),
    "activation6": _norm("middle", 0.5),
    "activation12": _norm("last", 1),
    "distance": Column(
        "attention distance, last block, px", "attention/distance", "attention", pick=_indexed(1)
    ),
    "height": Column("rise of the loss on the plane", "landscape/height", "landscape"),
    "active1": _active("first", 0),
    "active6": _active("middle", 0.5),
    "active12": _active("last", 1),
    "real": _accuracy("ReaL, %", "ImageNet ReaL"),
    "v2": _accuracy("V2, %", "ImageNet-V2"),
    "r": _accuracy("R, 1000 classes, %", "ImageNet-R", "1000"),
}
"""Columns by the name that studies use; 1, 6 and 12 are the paper's blocks of twelve."""
