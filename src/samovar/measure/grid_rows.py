"""Finished rows of a landscape's grid, in a file each, so that an interrupted grid is continued."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from samovar.curvature.inputs import fingerprint
from samovar.measure.grid import GridRow, LandscapeGrid, torch_threads
from samovar.runs.records import replace_text


class GridRows:
    """Finished rows by number; if there is a folder, each is in a file there as well."""

    def __init__(self, folder: Path | None, grid: LandscapeGrid) -> None:
        self.folder, self.grid = folder, grid
        self.found: dict[int, GridRow] = {}
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def open(self) -> GridRows:
        """Read the folder's rows if they belong to this grid, else delete them; return self."""
        if self.folder:
            stamp, stamp_file = _stamp(self.grid), self.folder / "grid.txt"
            if not stamp_file.is_file() or stamp_file.read_text(encoding="utf-8") != stamp:
                for path in self.folder.glob("row-*"):
                    path.unlink()
                replace_text(stamp_file, stamp)
            self.read()
        return self

    def missing(self) -> list[int]:
        """Return the numbers of the rows that are not finished."""
        return [number for number in range(len(self.grid.rows)) if number not in self.found]

    def read(self) -> None:
        """Read rows from files; a file that a crash has damaged counts as missing."""
        for number in self.missing() if self.folder else ():
            try:
                row = np.load(self._path(number), allow_pickle=False)
            except (OSError, ValueError, EOFError):
                continue
            if row.shape == (2, len(self.grid.rows[number][1])):
                self.found[number] = row

    def keep(self, number: int, row: GridRow) -> None:
        """Add a finished row; its file is written whole or not at all."""
        self.found[number] = row
        if self.folder:
            aside = self._path(number).with_suffix(".partial")
            with aside.open("wb") as file:
                np.save(file, row)
            aside.replace(self._path(number))

    def in_order(self) -> list[GridRow]:
        """Return all rows, of which none may be missing."""
        return [self.found[number] for number in range(len(self.grid.rows))]

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"row-{number:04d}.npy"


def _stamp(grid: LandscapeGrid) -> str:
    """Return a digest that changes with the weights, the directions, the images and the points."""
    digest = hashlib.blake2b(digest_size=16)
    steps = [*grid.moves.outer.values(), *grid.moves.inner.values()]
    for tensor in [*grid.model.parameters(), *grid.model.buffers(), *steps]:
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    with torch_threads(1):  # the last bits of a sum depend on the number of threads
        digest.update(
            repr((grid.rows, grid.moving, [fingerprint(batch) for batch in grid.batches])).encode()
        )
    return digest.hexdigest()
