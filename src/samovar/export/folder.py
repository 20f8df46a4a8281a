"""Write a copy as a folder that is complete and checked, or absent."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from samovar.export import UNKNOWN
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
"""By format: the function that writes and checks a copy, and the names of its files.

The function returns the largest difference of a logit."""


def write(original: Original, kind: str, output: Path, license: str = UNKNOWN) -> Path:
    """Write a copy with its model card and return the folder.

    After a failure nothing is left, and an earlier copy stays as it was.

    Raises:
        ValueError: a folder that holds something else or cannot be written, or a copy that
            cannot be made."""
    writer, names = WRITERS[kind]
    place = output.resolve()
    _check_place(output, {CARD, *names})
    aside = place.with_name(f".partial-{place.name}")
    shutil.rmtree(aside, ignore_errors=True)
    # written aside and renamed at the end: the place never holds half a copy
    try:
        aside.mkdir(parents=True)
        difference = writer(original, aside)
        (aside / CARD).write_text(card(original, kind, difference, license), encoding="utf-8")
        _share(aside)
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


def _share(folder: Path) -> None:
    """Give all files the mode that the umask gives new ones; some writers make theirs private."""
    mode = (folder / CARD).stat().st_mode
    for path in folder.iterdir():
        path.chmod(stat.S_IMODE(mode))


def _check_place(output: Path, names: set[str]) -> None:
    """Refuse to overwrite anything but an earlier copy."""
    if output.is_dir():
        strange = sorted({path.name for path in output.iterdir()} - names)
        if strange:
            raise ValueError(
                f"--output {output} holds {strange[0]}, which no earlier export wrote; "
                "give another folder"
            )
    elif output.exists():
        raise ValueError(f"--output {output} is a file; give a folder")
