"""Write reports on runs: one HTML page that works offline, and figures for a paper.

Both are made from the records in run folders alone, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["figures", "serve", "write"]


def write(runs: Sequence[Path], output: Path) -> Path:
    """Write an HTML report on run folders to `output` atomically and return its path.

    Args:
        runs: run folders, each with a config.json.
        output: the HTML file; its folder is created where it is missing.

    Raises:
        ValueError: a folder is not a run, a run is given twice, or `output` cannot be written."""
    # Imported when called: `samovar report --help` must answer without numpy and Plotly.
    from samovar.report.page import render
    from samovar.report.read import read_runs
    from samovar.report.run_names import named
    from samovar.runs.records import replace_text

    if output.is_dir():
        example = output / "report.html"
        raise ValueError(
            f"cannot write to {output}: it is a folder; give a file, such as {example}"
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
    """Write figures of run folders for a two-column paper below `folder` and return their paths.

    Args:
        runs: run folders, each with a config.json.
        folder: where the figures go; it is created where it is missing.
        formats: some of svg, pdf and png.

    Raises:
        ValueError: as for `write`; a format is unknown; the runs have nothing to draw."""
    from samovar.report.paper import save
    from samovar.report.read import read_runs
    from samovar.report.run_names import named

    return save(named(read_runs(runs)), folder, formats)


def serve(runs: Sequence[Path], host: str, port: int) -> None:
    """Serve the page on run folders until Ctrl-C; it keeps itself up to date while they grow.

    Args:
        runs: run folders, each with a config.json.
        host: address to listen on.
        port: 0 takes a free one.

    Raises:
        ValueError: as for `write`; the address cannot be used."""
    from samovar.report.serve import serve as begin

    begin(runs, host, port)
