"""Show losses, accuracy and gradient norm over the steps of training."""

from __future__ import annotations

from collections.abc import Sequence

from samovar.report.chapters.curves import curve_figure
from samovar.report.parts import Chapter, Group, Missing, labels_of
from samovar.report.read import RunData
from samovar.report.run_names import MANY
from samovar.report.text import clean, setting

# The main curves, in order. Other records of training follow, folded away.
_MAIN = {
    "train/loss": "Training loss, nats",
    "val/loss": "Held-out loss, nats",
    "val/accuracy": "Held-out accuracy",
    "train/contrastive_loss": "Contrastive training loss, nats",
    "val/knn_accuracy": "k-NN accuracy of the features",
    "train/grad_norm": "Gradient norm",
}
_FOLDED = {
    "train/lr": "Learning rate",
    "train/images_per_second": "Images per second",
    "train/mfu": "Share of the GPU’s peak (MFU)",
}
_UNDRAWN = ("train/skipped",)

_OBJECTIVE = ("loss", "label_smoothing", "data.mixup", "data.cutmix")


def training(runs: Sequence[RunData]) -> Chapter:
    """Build the chapter with the curves of training."""
    # Records that a later version may add are drawn too, under their own names.
    names = dict.fromkeys(
        name for run in runs for name in run.records if name.startswith(("train/", "val/"))
    )
    main = [curve_figure(runs, name, title) for name, title in _MAIN.items() if name in names]
    rest = [name for name in names if name not in (*_MAIN, *_UNDRAWN)]
    folded = [curve_figure(runs, name, _FOLDED.get(name, clean(name))) for name in rest]
    more = [Group("more-curves", "Learning rate and speed", folded, folded=True)] if folded else []
    return Chapter(
        "training",
        "Training",
        _lead(runs) if main else "",
        [*main, *more],
        _missing(runs),
        _objectives(runs),
    )


def _lead(runs: Sequence[RunData]) -> str:
    if len(runs) <= MANY:
        return "Each figure shows the recorded values; means are drawn over noisy ones."
    return (
        "Lines are means over the runs of a recipe; bands reach from the lowest to the highest run."
    )


def _missing(runs: Sequence[RunData]) -> list[Missing]:
    untrained = labels_of(run for run in runs if not run.trained)
    hint = "The folder was only measured, or training has not written a record yet."
    return [Missing("training records", untrained, (), hint)] if untrained else []


def _objectives(runs: Sequence[RunData]) -> list[str]:
    """Return a warning for each setting of the training loss in which the runs differ."""
    notes = []
    for name in _OBJECTIVE:
        found: dict[str, list[str]] = {}
        for run in runs:
            if run.trained:
                found.setdefault(setting(run.config.get(name, "not stated")), []).append(run.label)
        if len(found) > 1:
            groups = "; ".join(
                f"{value} ({', '.join(labels[:4])})" for value, labels in found.items()
            )
            notes.append(
                "The runs minimize different training losses, which cannot be compared: "
                f"{name} {groups}."
            )
    return notes
