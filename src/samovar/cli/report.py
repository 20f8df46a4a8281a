"""`samovar report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from samovar.cli.flags import DIR, FILE, NAME, SWITCH, Flag, Kind, flag_lines, names, read, whole
from samovar.cli.named_run import run_path

PORT = Kind("N", "a number", lambda flag, text: whole(flag, text, least=0))

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
    Flag(
        "--serve", SWITCH, "serve the page on this machine and keep it up to date until Ctrl-C"
    ),
    Flag("--port", PORT, "port of the served page; 0 takes a free one", 8040),
    Flag(
        "--host", NAME, "address of the served page; others than this reach other machines",
        "127.0.0.1",
    ),
)  # fmt: skip

HELP = f"""\
usage: samovar report RUN... [-o FILE]
       samovar report RUN... --figures DIR [--format svg,pdf,png]
       samovar report RUN... --serve [--port N]

Write one HTML page about one or several runs, or figures for a paper. The page works without a
network: a verdict in sentences, accuracy, sharpness and cost of the runs side by side, training
curves, loss surfaces, spectra, attention, confusion matrices, predictions, and settings that
differ. For what was not measured it names the command that adds it. A report that is there already
is replaced. With --serve the page grows while runs train.

{flag_lines(FLAGS)}

examples:
  samovar report runs/NAME
  samovar report runs/* -o report.html
  samovar report runs/* --figures figures --format svg
  samovar report runs/* --serve
"""


class ReportCommand(NamedTuple):
    """A `samovar report` command line, read and checked."""

    runs: list[Path]
    page: Path | None
    """File of the page; None writes none."""
    figures: Path | None
    """Folder of the figures; None draws none."""
    formats: list[str]
    served: tuple[str, int] | None = None
    """Address and port of the served page; None serves none."""


def parse(args: Sequence[str]) -> ReportCommand:
    """Return what a command line asks for.

    Raises:
        ValueError: no run, an unknown flag, formats without figures, a port without --serve."""
    line = read(args, FLAGS, "report")
    figures, formats = line["--figures"], [each for given in line["--format"] for each in given]
    if not line.words:
        raise ValueError("report needs a run folder; see `samovar report --help`")
    if line["--format"] and figures is None:
        raise ValueError("--format needs --figures; give --figures DIR with it")
    if line["--serve"] and (line["--output"] or figures):
        raise ValueError("--serve writes no file; give it without --output and --figures")
    runs = [Path(run_path(word)) for word in line.words]
    if line["--serve"]:
        return ReportCommand(runs, None, None, [], (line["--host"], line["--port"]))
    if any(arg.startswith(("--port", "--host")) for arg in args):
        raise ValueError("--port and --host need --serve; give it with them")
    page = line["--output"]
    if page is None and figures is None:
        page = runs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    return ReportCommand(runs, page, figures, formats or ["pdf", "png"])


def run(args: Sequence[str]) -> None:
    """Write a report, figures or both, or serve the report."""
    runs, page, folder, formats, served = parse(args)
    from samovar import report

    if served:
        report.serve(runs, *served)
    if page is not None:
        report.write(runs, page)
        print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if folder is not None:
        print(f"figures: {folder} ({len(report.figures(runs, folder, formats))} files)")
