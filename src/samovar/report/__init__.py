"""Reports on runs: one HTML page that works offline, and figures for a paper, from the records of
run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["figures", "write"]


def write(runs: Sequence[Path], output: Path) -> Path:
    """Write a report on run folders to `output`, in one piece or not at all; returns its path.

    Raises:
        ValueError: a folder that is no run, a run given twice, an output that cannot be written."""
    from samovar.report.page import render
    from samovar.report.read import read_runs
    from samovar.report.run_names import named
    from samovar.runs.records import replace_text

    if output.is_dir():
        raise ValueError(
            f"cannot write to {output}: it is a folder; give a file, such as {output / 'report.html'}"
        )
    html = render(named(read_runs(runs)))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_text(output, html)
    except OSError as error:
        raise ValueError(
            f"cannot write to {output}: {error.strerror}; give another file"
        ) from error
    return output


def figures(
    runs: Sequence[Path], folder: Path, formats: Sequence[str] = ("pdf", "png")
) -> list[Path]:
    """Write the figures of run folders for a two-column paper below `folder`; returns their paths.

    Raises:
        ValueError: as `write`; a format that is none of svg, pdf and png; runs without anything to
            draw."""
    from samovar.report.paper import save
    from samovar.report.read import read_runs
    from samovar.report.run_names import named

    return save(named(read_runs(runs)), folder, formats)
