"""The command line of `samovar reproduce`. Nothing in this file needs torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samovar import config as configs
from samovar.config import Config, cores
from samovar.studies.reproduce.plan import ReproduceRequest
from samovar.studies.reproduce.scales import SCALES
from samovar.studies.reproduce.studies import STUDIES

HELP = f"""\
usage: samovar reproduce WHAT... --scale SCALE [--flags]

WHAT, one or more:
{chr(10).join(f"  {name:<12} {study.where}: {study.title}" for name, study in STUDIES.items())}
  {"all":<12} everything above that the scale has data for

SCALE:
{chr(10).join(f"  {name:<12} {scale.summary}" for name, scale in SCALES.items())}

  --seeds N            runs of each setting; without it 3, at imagenet 1
  --rows A,B,...       rows of a table, such as 'vit*,mixer*' of table1 or '*quarter*' of table4; without it all
  --jobs N             runs at a time, in processes that share the cores and take the GPUs in turn
  --output DIR         folder of runs and pages; without it runs/reproduce-SCALE
  --testset NAME:PATH  a published test set, at imagenet; may be given again
  --plan               print the runs, their cost here and the command of each, and stop

Flags of `samovar train` hold for all runs: --data.root, --data.source, --run.device, --epochs (which shortens warm-up
in proportion); those of `samovar measure` are given as --measure.images. Runs are shared between tables, and what is
done is not done again. Ends in a page that sets our numbers beside the paper's and says of each claim whether it held.
"""


def parse(
    args: list[str], parse_flags: Callable[..., Any], take: Callable[..., str | None]
) -> tuple[ReproduceRequest, bool]:
    """What a `reproduce` command line asks for, and whether only the plan.

    Args:
        args: emptied as they are read.
        parse_flags, take: the command line's own readers of flags.

    Raises:
        ValueError: an unknown study (all are listed), scale or flag, a number that is none."""
    scale = take(args, "--scale", f"one of {', '.join(SCALES)}")
    if scale not in SCALES:
        given = "--scale is missing" if scale is None else f"--scale {scale} is unknown"
        raise ValueError(f"{given}; give one of: {', '.join(SCALES)}")
    seeds, jobs = (count(take(args, flag, "a number"), flag) for flag in ("--seeds", "--jobs"))
    output = Path(take(args, "--output", "a folder") or f"runs/reproduce-{scale}")
    rows = tuple(filter(None, (take(args, "--rows", "rows, such as 'vit*'") or "").split(",")))
    testsets = []
    while testset := take(args, "--testset", "NAME:PATH"):
        testsets.append(testset)
    only_plan = "--plan" in args
    words = [arg for arg in args if arg != "--plan"]
    end = next((k for k, word in enumerate(words) if word.startswith("-")), len(words))
    names = _studies(words[:end], scale)
    title = f"samovar reproduce {' '.join(names)} --scale {scale}"
    changes, measured = changes_of(words[end:], Config(), parse_flags, title)
    seeds, jobs = seeds or SCALES[scale].seeds, jobs or _jobs(scale)
    return ReproduceRequest(
        names, scale, seeds, output, changes, measured, tuple(testsets), jobs, rows
    ), only_plan


def changes_of(
    words: Sequence[str],
    base: Config,
    parse_flags: Callable[..., Any],
    title: str,
    others: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What flags change of all runs, and of all measurements, by dotted name.

    Args:
        words: flags of `train`, and those of `measure` behind `--measure.`.
        base: the settings that flags change.
        title: the command line so far, for its `--help`.
        others: flags of the command that were taken off before.

    Raises:
        ValueError: one line on the first flag that is unknown or does not fit."""
    measure = [flag for flag in _pairs(words) if flag[0].startswith("--measure.")]
    train = [word for pair in _pairs(words) if pair not in measure for word in pair]
    asked = [
        word for pair in measure for word in (pair[0].replace("--measure.", "--", 1), *pair[1:])
    ]
    changes = _given(train, parse_flags(base, train, title, others))
    try:
        return changes, _given(asked, parse_flags(configs.MeasureConfig(), asked, title))
    except ValueError as error:
        raise ValueError(str(error).replace("--", "--measure.")) from None


def _pairs(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Flags with the values behind them."""
    found: list[tuple[str, ...]] = []
    for word in words:
        if word.startswith("--"):
            found.append((word,))
        elif found:
            found[-1] = (*found[-1], word)
    return found


def _given(words: Sequence[str], parsed: Any) -> dict[str, Any]:
    """The settings that flags name, by dotted name, though their values be the defaults."""
    names = [word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    flat = configs.flatten(parsed)
    return {
        name: flat[name]
        for given in names
        if (name := given if given in flat else given.replace("no_", "", 1))
    }


def _studies(words: Sequence[str], scale: str) -> tuple[str, ...]:
    if not words:
        raise ValueError(
            f"reproduce needs a table or figure; give some of: {', '.join(STUDIES)}, or all"
        )
    for word in words:
        if word not in (*STUDIES, "all"):
            near = difflib.get_close_matches(word, STUDIES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"cannot reproduce {word!r}; {hint}there are: {', '.join(STUDIES)}, and all"
            )
    able = [name for name, study in STUDIES.items() if study.rows(SCALES[scale])]
    return tuple(able) if "all" in words else tuple(dict.fromkeys(words))


def count(text: str | None, flag: str) -> int:
    """The whole number behind a flag; 0 where there is none.

    Raises:
        ValueError: no number, or less than 1."""
    if text is None:
        return 0
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"{flag} {text} is out of range; give a whole number, 1 or more")
    return int(text)


def _jobs(scale: str) -> int:
    """As many as cores where a run is for one core, else one."""
    return cores() if scale in ("digits", "cifar10k") else 1
