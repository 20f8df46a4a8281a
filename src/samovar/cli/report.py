"""`samovar report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from samovar.cli.flags import DIR, FILE, Flag, flag_lines, names, read
from samovar.cli.named_run import run_path

FLAGS = (
    Flag(
        "--output", FILE, "file of the page", short="-o",
        shown="RUN/report.html for one run, report.html for several",
    ),
    Flag("--figures", DIR, "write figures for a two-column paper below DIR; no page without -o"),
    Flag(
        "--format", names("svg,pdf"), "formats of the figures: svg, pdf, png", collects=True,
        shown="pdf,png",
    ),
)  # fmt: skip

HELP = f"""\
usage: samovar report RUN... [-o FILE]
       samovar report RUN... --figures DIR [--format svg,pdf,png]

Write one HTML page about one or several runs, or figures for a paper. The page works without a
network: accuracy, sharpness and cost of the runs side by side, training curves, loss surfaces,
spectra, attention, predictions, and settings that differ. For what was not measured it names the
command that adds it. A report that is there already is replaced.

{flag_lines(FLAGS)}

examples:
  samovar report runs/NAME
  samovar report runs/* -o report.html
  samovar report runs/* --figures figures --format svg
"""


class ReportCommand(NamedTuple):
    """A `samovar report` command line, read and checked."""

    runs: list[Path]
    page: Path | None
    """File of the page; None writes none."""
    figures: Path | None
    """Folder of the figures; None draws none."""
    formats: list[str]


def parse(args: Sequence[str]) -> ReportCommand:
    """Return what a command line asks for.

    Raises:
        ValueError: no run, an unknown flag, formats without figures."""
    line = read(args, FLAGS, "report")
    figures, formats = line["--figures"], [each for given in line["--format"] for each in given]
    if not line.words:
        raise ValueError("report needs a run folder; see `samovar report --help`")
    if line["--format"] and figures is None:
        raise ValueError("--format needs --figures; give --figures DIR with it")
    runs = [Path(run_path(word)) for word in line.words]
    page = line["--output"]
    if page is None and figures is None:
        page = runs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    return ReportCommand(runs, page, figures, formats or ["pdf", "png"])


def run(args: Sequence[str]) -> None:
    """Write a report, figures or both."""
    runs, page, folder, formats = parse(args)
    from samovar import report

    if page is not None:
        report.write(runs, page)
        print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if folder is not None:
        print(f"figures: {folder} ({len(report.figures(runs, folder, formats))} files)")
