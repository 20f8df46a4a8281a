"""Read the maps over images of each family of networks, and check that they fit their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samovar.report.read import Array, RunData, UnreadableArrays
from samovar.runs.records import Record

_NAMES = ("attention/distance", "attention/token_mixing", "attention/channel_mean")

# Arrays with their number of dimensions: those of a kind, and those of all kinds with images.
_NEEDED = {
    "attention": {"maps": 4, "rollout": 3},
    "token-mixing": {"maps": 4},
    "channel-mean": {"maps0": 3},
}
_WITH_IMAGES = {"images": 4, "labels": 1, "predicted": 1}


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The maps of one run."""

    run: RunData
    record: Record
    kind: str
    """`attention`, `token-mixing` or `channel-mean`."""
    arrays: Mapping[str, Array]
    """Maps [n, L, h, w] and the like; images uint8 [n, H, W, 3]."""

    @property
    def images(self) -> Array:
        """Return the images, uint8 [n, H, W, 3]."""
        return self.arrays["images"]


def attention_maps(runs: Sequence[RunData]) -> tuple[list[AttentionMaps], list[str]]:
    """Return the readable maps, and a note on each run whose maps are not."""
    found, notes = [], []
    for run in runs:
        record = run.latest_with_arrays(*_NAMES)
        if record is None:
            continue
        try:
            found.append(_checked(run, record, _class_names(run) | run.arrays(record)))
        except UnreadableArrays as error:
            notes.append(f"{run.label}: {error}; measure its attention again")
    return found, notes


def _class_names(run: RunData) -> dict[str, Array]:
    """Return the names of the classes, which are stored with the predictions."""
    record = run.latest("predictions/accuracy")
    try:
        return {"classes": run.arrays(record)["classes"]} if record else {}
    except (UnreadableArrays, KeyError):
        return {}


def _checked(run: RunData, record: Record, arrays: Mapping[str, Array]) -> AttentionMaps:
    """Return the maps if their arrays fit each other.

    Raises:
        UnreadableArrays: the kind is unknown, or an array is missing or of another shape."""
    kind = str(arrays.get("kind", "attention"))
    if kind not in _NEEDED:
        raise UnreadableArrays(f"{record.arrays} holds maps of an unknown kind, {kind[:40]!r}")
    # Weights of token mixing belong to no image.
    with_images = kind != "token-mixing"
    shapes = _NEEDED[kind] | (_WITH_IMAGES if with_images else {})
    for name, dims in shapes.items():
        if name not in arrays or arrays[name].ndim != dims or arrays[name].size == 0:
            raise UnreadableArrays(
                f"{record.arrays} lacks {name}, or its shape is not that of a map"
            )
    if with_images:
        _check_images(record, arrays, [name for name in shapes if name != "images"])
    return AttentionMaps(run, record, kind, arrays)


def _check_images(record: Record, arrays: Mapping[str, Array], others: Sequence[str]) -> None:
    """Check that the images are pixels, and that the other arrays have an entry for each."""
    images = arrays["images"]
    if images.dtype != np.uint8 or images.shape[-1] != 3:
        raise UnreadableArrays(
            f"{record.arrays} holds images of type {images.dtype}, shape {images.shape}"
        )
    short = [name for name in others if len(arrays[name]) < len(images)]
    if short:
        raise UnreadableArrays(f"{record.arrays} holds fewer {short[0]} than images")
