"""`samovar reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samovar.cli.flags import (
    COUNT,
    DIR,
    SWITCH,
    Flag,
    Kind,
    flag_lines,
    lines,
    names,
    one_of,
    read,
)
from samovar.cli.settings import given_values
from samovar.config import Config, cores
from samovar.studies.reproduce.plan import ReproduceRequest
from samovar.studies.reproduce.scales import SCALES
from samovar.studies.reproduce.studies import STUDIES
from samovar.words import suggest

ONE_CORE = ("digits", "cifar10k")
"""Scales whose runs take one core each."""
FLAGS = (
    Flag("--scale", one_of("SCALE", SCALES), "data and networks, see above; required"),
    Flag("--seeds", COUNT, "runs of each setting", shown="3, at imagenet 1"),
    Flag(
        "--rows", names("'vit*'"), "rows of a table, such as 'vit*,mixer*' of table1 or "
        "'*quarter*' of table4", (), "all",
    ),
    Flag(
        "--jobs", COUNT, "runs at a time; they share the cores and take the GPUs in turn",
        shown=f"one a core at {' and '.join(ONE_CORE)}, else 1",
    ),
    Flag("--output", DIR, "folder of runs and pages", shown="runs/reproduce-SCALE"),
    Flag(
        "--testset", Kind("NAME:PATH", "NAME:PATH"),
        "a published test set, at imagenet; may be given again", collects=True,
    ),
    Flag("--plan", SWITCH, "print the runs, their cost here and the command of each, and stop"),
)  # fmt: skip

HELP = f"""\
usage: samovar reproduce WHAT... --scale SCALE [--flags]

Reproduce tables and figures of the paper, arXiv:2106.01548. Train, measure and write a page that
sets our numbers beside the paper's and says of each claim whether it held.

WHAT, one or more:
{
    lines(
        {name: f"{study.where}: {study.title}" for name, study in STUDIES.items()}
        | {"all": "everything above that the scale has data for"}
    )
}

SCALE:
{lines({name: scale.summary for name, scale in SCALES.items()})}

{flag_lines(FLAGS)}

Flags of `samovar train` apply to all runs: --data.root, --data.source, --run.device, --epochs
(which shortens the warm-up in proportion). Flags of `samovar measure` are given as
--measure.images. Tables share their runs; finished runs and measurements are not repeated.

examples:
  samovar reproduce table1 --scale digits
  samovar reproduce table4 --scale cifar10k --rows 'vit*quarter*' --seeds 5
  samovar reproduce all --scale imagenet --plan
"""


def parse(args: Sequence[str]) -> tuple[ReproduceRequest, bool]:
    """Return what a command line asks for, and whether it asks for the plan only.

    Raises:
        ValueError: an unknown study (all are listed), scale or flag, a value that does not fit."""
    line = read(args, FLAGS, "reproduce", settings=True)
    if not args:
        raise ValueError("reproduce needs a table or figure; see `samovar reproduce --help`")
    scale = line["--scale"]
    if scale is None:
        raise ValueError(f"--scale is missing; give one of: {', '.join(SCALES)}")
    studies = _studies(line.words, scale)
    title = f"reproduce {' '.join(studies)} --scale {scale}"
    changes, measure = given_values(Config(), line.settings, title, FLAGS)
    asked = ReproduceRequest(
        studies,
        scale,
        line["--seeds"] or SCALES[scale].seeds,
        line["--output"] or Path(f"runs/reproduce-{scale}"),
        changes,
        measure,
        line["--testset"],
        line["--jobs"] or (cores() if scale in ONE_CORE else 1),
        line["--rows"],
    )
    return asked, line["--plan"]


def _studies(words: Sequence[str], scale: str) -> tuple[str, ...]:
    """Return the names of studies that words stand for.

    Raises:
        ValueError: there is no word, or an unknown one."""
    if not words:
        raise ValueError(
            f"reproduce needs a table or figure; give some of: {', '.join(STUDIES)}, or all"
        )
    for word in words:
        if word not in (*STUDIES, "all"):
            known = f"there are: {', '.join(STUDIES)}, and all"
            hint = suggest(word, STUDIES, count=1, instead=known)
            hint = hint if hint == known else f"{hint} {known}"
            raise ValueError(f"cannot reproduce {word!r}; {hint}")
    able = [name for name, study in STUDIES.items() if study.rows(SCALES[scale])]
    return tuple(able) if "all" in words else tuple(dict.fromkeys(words))


def run(args: Sequence[str]) -> None:
    """Reproduce tables and figures of the paper."""
    asked, only_plan = parse(args)
    from samovar.studies.reproduce.command import reproduce

    reproduce(asked, ["samovar", "reproduce", *args], only_plan=only_plan)
