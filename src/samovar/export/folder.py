"""A copy as a folder that is there whole, checked, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from samovar.export.card import card
from samovar.export.onnx_file import write_onnx
from samovar.export.original import Original
from samovar.export.program import write_program
from samovar.export.timm_copy import write_timm

CARD = "README.md"

WRITERS: dict[str, tuple[Callable[[Original, Path], float], tuple[str, ...]]] = {
    "timm": (write_timm, ("config.json", "model.safetensors")),
    "onnx": (write_onnx, ("model.onnx",)),
    "torch": (write_program, ("model.pt2", "model.json")),
}
"""What writes and checks a copy, giving the largest difference of a logit; the names of its
files."""


def write(original: Original, kind: str, output: Path) -> Path:
    """Write a copy with its model card; on any failure nothing is left, and what was there stays as
    it was.

    Raises:
        ValueError: a folder that holds something else or cannot be written, a copy that cannot be
            made."""
    writer, names = WRITERS[kind]
    place = output.resolve()
    _check_place(output, {CARD, *names})
    aside = place.with_name(f".partial-{place.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        difference = writer(original, aside)
        (aside / CARD).write_text(card(original, kind, difference), encoding="utf-8")
        if place.exists():
            shutil.rmtree(place)
        aside.rename(place)
    except OSError as error:
        raise ValueError(
            f"cannot write to --output {output}: {error.strerror or error}; give another"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return output


def _check_place(output: Path, names: set[str]) -> None:
    """Refuse to put a copy in the place of anything but an earlier one."""
    if output.is_dir():
        strange = sorted({path.name for path in output.iterdir()} - names)
        if strange:
            raise ValueError(
                f"--output {output} holds {strange[0]}, which is of no earlier export; give another folder"
            )
    elif output.exists():
        raise ValueError(f"--output {output} is a file; give a folder")
