"""Open the source of `--data.source`: check it, split it, and take the fraction asked for."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
from dataclasses import replace

import numpy as np

from samovar.config import DataConfig
from samovar.data import catalog
from samovar.data.draws import Purpose
from samovar.data.folders import readable
from samovar.data.layout import refuse_one_class
from samovar.data.splits import Arrays, Source, hold_out, keep_fraction
from samovar.runtime.heartbeat import doing

FEW_IMAGES = 10
"""Training images of a class below which a warning is given."""
UNBALANCED = 50
"""Ratio of the largest to the smallest class above which a warning is given."""


def open_source(config: DataConfig) -> Source:
    """Open `config.source`: its splits, its classes, the fraction of its training images.

    The held-out share and the fraction are drawn per class by `split_seed` alone, so runs of every
    seed share them. Under `tune_share` part of the training images takes the place of the
    validation split. Nothing is decoded or augmented here.

    Raises:
        ValueError: an unknown source, files that are missing or damaged, classes or labels that
            cannot be trained on."""
    open_it = catalog.find(config.source)
    with readable(config.source), doing(f"opening {config.source}"):
        source = open_it(config)
    _check(source, config)
    for note in source.notes:
        _say_once(note)
    source = _with_val(source, config)
    # after the held-out share, so that a fraction of any size validates on the same images
    kept = keep_fraction(source.train.labels, config.fraction, config.split_seed)
    if len(kept) < len(source.train):
        source = replace(source, train=source.train.take(kept))
    return _tuned(source, config) if config.tune_share else source


@functools.cache
def _say_once(note: str) -> None:
    """Write a line to the log, which is stderr by default; ranks and workers but one are silent."""
    if os.environ.get("RANK", "0") == "0" and multiprocessing.parent_process() is None:
        logging.getLogger("samovar").warning(note)


def class_notes(source: Source) -> tuple[str, ...]:
    """Return a line on the numbers of training images of the classes, and one for each problem."""
    counts = np.bincount(source.train.labels, minlength=len(source.classes))
    small, large = int(counts.argmin()), int(counts.argmax())
    least, most = int(counts[small]), int(counts[large])
    sizes = f"{least:,} ({source.classes[small]}) to {most:,} ({source.classes[large]})"
    sizes = f"{least:,}" if least == most else sizes
    notes = [f"{len(source.classes)} classes of {sizes} training images"]
    few = int((counts < FEW_IMAGES).sum())
    if few:
        notes.append(
            f"warning: {few} of {len(source.classes)} classes have fewer than {FEW_IMAGES} "
            f"training images, {source.classes[small]} has {least}; accuracy on them means little"
        )
    if most > UNBALANCED * least:
        notes.append(
            f"warning: {source.classes[large]} has {most / least:.0f} times as many training images"
            f" as {source.classes[small]}; accuracy mostly measures the large classes"
        )
    return tuple(notes)


def has_one_size(config: DataConfig) -> bool:
    """Return whether evaluation scales the source's images whole, as they all have one size.

    A source of another package is opened to find out."""
    entry = catalog.SOURCES.get(config.source.partition(":")[0])
    if entry:
        return entry.one_size
    return isinstance(catalog.find(config.source)(config).train, Arrays)


def _with_val(source: Source, config: DataConfig) -> Source:
    """Hold out a share of the training images if the source has no validation split."""
    if len(source.val):
        return source
    train, val = hold_out(source.train.labels, config.val_share, config.split_seed)
    if not len(val):
        raise ValueError(
            f"--data.val-share {config.val_share} holds out no image of --data.source "
            f"{config.source}, which has no validation split of its own; give a larger share or "
            "more images"
        )
    return replace(source, train=source.train.take(train), val=source.train.take(val))


def _tuned(source: Source, config: DataConfig) -> Source:
    """Replace the validation split by a share of each training class.

    The share is drawn after `fraction` and independently of it."""
    labels = source.train.labels
    single = np.flatnonzero(np.bincount(labels) == 1)
    if len(single):
        raise ValueError(
            f"--data.tune-share {config.tune_share} holds out images of each class, and class "
            f"{source.classes[single[0]]!r} of --data.source {config.source} has one training "
            "image; add images to it or remove it"
        )
    train, val = hold_out(labels, config.tune_share, config.split_seed, Purpose.TUNE)
    return replace(source, train=source.train.take(train), val=source.train.take(val))


def _check(source: Source, config: DataConfig) -> None:
    """Refuse a source whose classes or labels cannot be trained on."""
    if not isinstance(source, Source):  # another package may return anything
        raise ValueError(
            f"--data.source {config.source} opens as {type(source).__name__}, not as a "
            "samovar.data.splits.Source; correct the package that adds it"
        )
    num_classes = len(source.classes)
    refuse_one_class(config.source, source.classes)
    for split, where in ((source.train, "training"), (source.val, "validation")):
        bad = split.labels[(split.labels < 0) | (split.labels >= num_classes)]
        if len(bad):
            raise ValueError(
                f"--data.source {config.source}: {where} label {bad[0]} is outside 0 to "
                f"{num_classes - 1}; images without a label cannot be used"
            )
    present = np.bincount(source.train.labels, minlength=num_classes)
    if not present.all():
        absent = source.classes[int(np.flatnonzero(present == 0)[0])]
        raise ValueError(
            f"--data.source {config.source}: class {absent!r} has no training images; add some"
        )
