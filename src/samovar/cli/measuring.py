"""`measure`, `corrupt` and `report`."""

from __future__ import annotations

import sys
from pathlib import Path

from samovar import config as configs
from samovar.cli.flags import nearest, parse_flags, take
from samovar.cli.texts import CORRUPT_HELP, MEASURE_HELP, REPORT_HELP
from samovar.config import CorruptConfig, MeasureConfig
from samovar.measure import catalog


def parse_measure(args: list[str]) -> tuple[str, list[str], MeasureConfig]:
    """The subject, measurements and settings a `measure` command line asks for.

    Raises:
        ValueError: no subject, an unknown measurement or flag, a value that does not fit."""
    if not args or args[0].startswith("-"):
        raise ValueError("measure needs a run folder or a model; see `samovar measure --help`")
    count = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
    subject, names = args[0], args[1:count]
    for name in names:
        catalog.get(name)
    config = parse_flags(MeasureConfig(), args[count:], f"samovar measure {subject}")
    configs.validate_measure(config)
    return subject, names or ["hessian", "flatness"], config


def measure(args: list[str]) -> None:
    """Measure a run or a model."""
    if args in (["-h"], ["--help"]):
        print(MEASURE_HELP, end="")
        return
    subject, names, config = parse_measure(args)
    from samovar.measure import command

    command.run(subject, names, config)


def corrupt(args: list[str]) -> None:
    """Write corrupted copies of images."""
    if args in ([], ["-h"], ["--help"]):
        print(CORRUPT_HELP, end="")
        raise SystemExit(0 if args else 2)
    if len(args) < 2 or args[0].startswith("-") or args[1].startswith("-"):
        raise ValueError(
            "corrupt needs a folder of images and one to write to; see `samovar corrupt --help`"
        )
    data, output = Path(args[0]), Path(args[1])
    config = parse_flags(CorruptConfig(), args[2:], f"samovar corrupt {data} {output}")
    configs.validate_corrupt(config)
    from samovar.data.corrupt_folder import corrupt_folder

    try:
        count = corrupt_folder(data, output, config)
    except KeyboardInterrupt:
        print("samovar: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"corrupted copies of {count} images: {output}")


def parse_report(args: list[str]) -> tuple[list[Path], Path | None, Path | None, list[str]]:
    """The runs, page, folder of figures and formats a `report` command line asks for.

    Raises:
        ValueError: no run, an unknown flag or format."""
    output = take(args, "--output") or take(args, "-o")
    figures = take(args, "--figures")
    formats = []
    while (found := take(args, "--format")) is not None:
        formats += found.split(",")
    flags = ("--output", "-o", "--figures", "--format")
    for arg in args:
        if arg.startswith("-"):
            raise ValueError(f"unknown flag {arg}; {nearest(arg, flags)}")
    if not args:
        raise ValueError("report needs a run folder; see `samovar report --help`")
    if formats and figures is None:
        raise ValueError("--format is of figures; give --figures DIR with it")
    runs = [Path(arg) for arg in args]
    page = (
        None
        if figures and not output
        else runs[0] / "report.html"
        if len(runs) == 1
        else Path("report.html")
    )
    return (
        runs,
        Path(output) if output else page,
        Path(figures) if figures else None,
        formats or ["pdf", "png"],
    )


def report(args: list[str]) -> None:
    """Write a report or figures."""
    if args in (["-h"], ["--help"]):
        print(REPORT_HELP, end="")
        return
    runs, page, folder, formats = parse_report(args)
    from samovar import report

    if page is not None:
        report.write(runs, page)
        print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if folder is not None:
        print(f"figures: {folder} ({len(report.figures(runs, folder, formats))} files)")
