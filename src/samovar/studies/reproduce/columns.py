"""What is looked up in a run's records for a column of a table. Nothing in this file needs
torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from samovar.runs.records import Record

Pick = Callable[[Sequence[Record]], Record | None]


@dataclass(frozen=True)
class Column:
    """A number of a run."""

    title: str
    record: str
    """Name of the records it is among."""
    measurement: str = ""
    """What `samovar measure` calls it; empty for what training records."""
    percent: bool = False
    pick: Pick = lambda found: found[-1] if found else None
    """Chooses the record."""

    def value(self, records: Sequence[Record]) -> float:
        """The number of a run, in percent where it is a share; NaN where it is not there or not
        converged."""
        found = self.pick([record for record in records if record.name == self.record])
        if found is None or not found.converged:
            return math.nan
        return found.value * (100 if self.percent else 1)


def _named(*names: str) -> Pick:
    """The last record of a block of one of these names."""
    return lambda found: next((r for r in reversed(found) if r.where.get("block") in names), None)


def _numbered(position: float) -> Pick:
    """The record of a block that is so far down the network, among those whose name ends in a
    number: 0 to 1."""

    def pick(found: Sequence[Record]) -> Record | None:
        numbered = {
            int(n[1]): r
            for r in found
            if (n := re.fullmatch(r"\D*(\d+)", str(r.where.get("block"))))
        }
        order = sorted(numbered)
        return numbered[order[round(position * (len(order) - 1))]] if order else None

    return pick


def _at(position: float) -> Pick:
    """The record at a place among those that have an `index`: 0 is the first block, 1 the last."""

    def pick(found: Sequence[Record]) -> Record | None:
        placed = {int(r.where["index"]): r for r in found if "index" in r.where}
        order = sorted(placed)
        return placed[order[round(position * (len(order) - 1))]] if order else None

    return pick


def _units(position: float) -> Pick:
    """The share of active units of a block that is so far down, the mean over its layers."""

    def pick(found: Sequence[Record]) -> Record | None:
        newest = {(str(r.where.get("block")), r.where.get("layer")): r for r in found}
        blocks = list(dict.fromkeys(block for block, _ in newest))
        if not blocks:
            return None
        chosen = blocks[round(position * (len(blocks) - 1))]
        layers = [record for (block, _), record in newest.items() if block == chosen]
        return replace(layers[0], value=math.fsum(r.value for r in layers) / len(layers))

    return pick


def _benchmark(split: str, scoring: str = "") -> Pick:
    return lambda found: next(
        (
            r
            for r in reversed(found)
            if r.where.get("split") == split and str(r.where.get("scoring", "")).startswith(scoring)
        ),
        None,
    )


def _block(title: str, pick: Pick) -> Column:
    return Column(f"λ_max, {title}", "hessian/block_lambda_max", "blocks", pick=pick)


COLUMNS: dict[str, Column] = {
    "top1": Column("accuracy, %", "val/accuracy", percent=True),
    "train_loss": Column("training loss, last logged", "train/loss"),
    "kappa": Column("NTK κ at initialisation", "ntk/condition_number", "ntk"),
    "lambda_max": Column("λ_max", "hessian/lambda_max", "hessian"),
    "training_loss": Column("loss on training images", "sharpness/clean_loss", "flatness"),
    "flatness": Column("loss under weight noise", "sharpness/average_flatness", "flatness"),
    "corruption": Column(
        "accuracy, corrupted, %", "robustness/mean_corruption_accuracy", "robustness", percent=True
    ),
    "pgd": Column("accuracy under PGD-10, %", "robustness/pgd_accuracy", "attack", percent=True),
    "embedding": _block("embedding", _named("embedding", "stem")),
    "token_mixing": _block("MSA or token MLP", _named("msa", "token_mlp")),
    "channel_mixing": _block("MLP or channel MLP", _named("mlp", "channel_mlp")),
    "block1": _block("first block", _numbered(0)),
    "block6": _block("middle block", _numbered(0.5)),
    "block12": _block("last block", _numbered(1)),
    "whole": _block("whole", _named("whole")),
    "weight_norm": Column("weight norm", "inside/total_weight_norm", "activations"),
    "activation1": Column(
        "activation norm, first", "inside/activation_norm", "activations", pick=_at(0)
    ),
    "activation6": Column(
        "activation norm, middle", "inside/activation_norm", "activations", pick=_at(0.5)
    ),
    "activation12": Column(
        "activation norm, last", "inside/activation_norm", "activations", pick=_at(1)
    ),
    "distance": Column(
        "attention distance, last block, px", "attention/distance", "attention", pick=_at(1)
    ),
    "height": Column("rise of the loss on the plane", "landscape/height", "landscape"),
    **{
        f"active{k}": Column(
            f"active units, {title}, %",
            "inside/active_fraction",
            "activations",
            True,
            _units(position),
        )
        for k, title, position in (
            (1, "first block", 0.0),
            (6, "middle block", 0.5),
            (12, "last block", 1.0),
        )
    },
    **{
        name: Column(title, "testset/accuracy", "testset", True, _benchmark(*split))
        for name, title, split in (
            ("real", "ReaL, %", ("ImageNet ReaL",)),
            ("v2", "V2, %", ("ImageNet-V2",)),
            ("r", "R, 1000 classes, %", ("ImageNet-R", "1000")),
        )
    },
}
