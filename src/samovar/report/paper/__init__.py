"""Draw figures for a two-column paper: one or two columns wide, 8 pt, from the page's records."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from samovar.report.paper.figures import FIGURES
from samovar.report.read import RunData

FORMATS = ("svg", "pdf", "png")

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "font.family": ["STIXGeneral", "DejaVu Sans"],
    "mathtext.fontset": "stix",
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "samovar",
    "savefig.dpi": 300,
}

# Dates would make the files of the same records differ.
_NO_DATE: dict[str, dict[str, None]] = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
    ".png": {},
}


def save(
    runs: Sequence[RunData], folder: Path, formats: Sequence[str] = ("pdf", "png")
) -> list[Path]:
    """Write every figure for which there are records, in each format, and return the paths.

    Raises:
        ValueError: a format is unknown; the folder cannot be written; there is nothing to draw."""
    unknown = [form for form in formats if form not in FORMATS]
    if unknown or not formats:
        given = unknown[0] if unknown else "nothing"
        raise ValueError(f"cannot draw figures as {given}; give svg, pdf or png")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with rc_context(_STYLE), warnings.catch_warnings():
            # The name of a class may be in any script, and the font may lack it.
            warnings.filterwarnings("ignore", message="Glyph")
            for name, figure in drawn(runs):
                for form in dict.fromkeys(formats):
                    path = folder / f"{name}.{form}"
                    figure.savefig(path, metadata=_NO_DATE[path.suffix])
                    written.append(path)
    except OSError as error:
        raise ValueError(
            f"cannot write to --figures {folder}: {error.strerror}; give another folder"
        ) from error
    if not written:
        raise ValueError(
            "these runs have no records to draw figures of; train or measure them first"
        )
    return written


def drawn(runs: Sequence[RunData]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures with their names; those without records are left out."""
    for name, make in FIGURES.items():
        figure = make(runs)
        if figure is not None:
            yield name, figure
