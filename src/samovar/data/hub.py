"""Hugging Face data sets as a store of encoded images; needs the extra `hf`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samovar.data.splitnames import best_for_validation
from samovar.data.splits import Encoded, encoded
from samovar.words import read_regular


@dataclass(frozen=True)
class Rows:
    """A store of the images of a table, whose image column stays encoded.

    It pickles by reference to the files that the table is mapped from."""

    table: Any
    column: str
    title: str

    def read(self, row: int) -> bytes:
        """Return the bytes of one image file.

        Raises:
            OSError: the row holds neither bytes nor a path that can be read."""
        cell = self.table[row][self.column]
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        return read_regular(cell["path"])

    def name(self, row: int) -> str:
        """Return `SOURCE/SPLIT[row]`."""
        return f"{self.title}[{row}]"


def load_hub(source: str, name: str) -> tuple[Encoded, Encoded | None, tuple[str, ...]]:
    """Return training split, validation split or None, and class names of a data set.

    `name` is that of a data set of the hub, a saved one or a local one.

    Raises:
        ValueError: the extra is missing, the data set cannot be had, or lacks an image or a label
            column."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"--data.source {source} needs an extra; pip install 'samovar[hf]'"
        ) from error
    # load_dataset refuses folders that save_to_disk wrote
    path = Path(name)
    saved = any((path / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    # the packages below raise a dozen kinds for absent, offline, gated and malformed
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"--data.source {source} cannot be loaded ({reason}); check the name and the "
            "connection, or give the folder of a saved data set"
        ) from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    if "train" not in splits:
        raise ValueError(f"--data.source {source} has no train split, only {', '.join(splits)}")
    val_name = next(iter(best_for_validation(splits)), None)
    train, classes = _split(source, splits["train"], "train")
    val = _split(source, splits[val_name], val_name)[0] if val_name else None
    return train, val, classes


def _split(source: str, table: Any, split: str) -> tuple[Encoded, tuple[str, ...]]:
    import datasets

    image = next(
        (c for c, kind in table.features.items() if isinstance(kind, datasets.Image)), None
    )
    label = next((c for c in ("label", "labels", "fine_label") if c in table.features), None)
    if image is None or label is None:
        raise ValueError(
            f"--data.source {source}: split {split} needs an image column and a column named "
            f"label; it has {', '.join(table.features)}"
        )
    # labels are read at once, images stay encoded until a worker asks for one
    labels = np.asarray(table[label][:], np.int64)
    kind = table.features[label]
    count = int(labels.max(initial=-1)) + 1
    classes = (
        tuple(kind.names)
        if isinstance(kind, datasets.ClassLabel)
        else tuple(map(str, range(count)))
    )
    rows = Rows(table.cast_column(image, datasets.Image(decode=False)), image, f"{source}/{split}")
    return encoded(rows, labels), classes
