"""What `samovar show RUN` prints: how the run went, then its settings."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from samovar import config as configs
from samovar import recipes
from samovar.cli.list_runs import size_text, state
from samovar.config import Config
from samovar.recipes import replay
from samovar.runs.records import RunDir
from samovar.runs.summary import Summary, summarize

BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "01234567"
COLUMNS = 48
"""Most bars of a curve; of a longer one, every bar is the mean of its neighbours."""


def lines(folder: Path, *, whole: bool = False) -> Iterator[str]:
    """Yield the lines about a run.

    Args:
        whole: every setting, in place of those that differ from the recipe.

    Raises:
        ValueError: its settings cannot be read."""
    config = configs.load(folder / "config.json")
    yield str(folder)
    yield from _story(summarize(RunDir(folder)))
    known = config.recipe in recipes.RECIPES
    base = recipes.get(config.recipe).config() if known else Config(recipe=config.recipe)
    yield ""
    yield f"replay: {shlex.join(replay.command(config))}"
    yield ""
    if whole:
        yield from setting_lines(configs.flatten(config))
        return
    origin = f"the recipe {config.recipe}" if known else "the defaults"
    own = {name: value for name, (value, _) in configs.differences(config, base).items()}
    own.pop("recipe", None)
    yield f"settings that differ from {origin}{'' if own else ': none'} (--all prints all)"
    yield from setting_lines(own)


def setting_lines(values: dict[str, Any]) -> Iterator[str]:
    """Yield a line a setting, spelled as its flag."""
    for name, value in values.items():
        yield f"  --{name.replace('_', '-'):<28} {value}"


def _story(run: Summary) -> Iterator[str]:
    steps = f", step {run.step:,} of {run.total:,}" if run.total else ""
    yield f"status: {state(run)}{steps}, {size_text(run.size)}"
    if run.accuracy is not None:
        yield f"accuracy: {100 * run.accuracy:.2f} % at best, {100 * run.curve[-1]:.2f} % at last"
    if len(run.curve) > 1:
        low, high = min(run.curve), max(run.curve)
        yield f"curve: {sparkline(run.curve)}  {100 * low:.1f} to {100 * high:.1f} %"
    if run.lambda_max is not None:
        yield f"lambda_max: {run.lambda_max:.4g}"
    yield f"measured: {', '.join(run.measured) or f'nothing yet (samovar measure {run.path})'}"


def sparkline(values: Sequence[float]) -> str:
    """Return a line of bars, the lowest for the smallest value; a space where one is not finite."""
    count = min(len(values), COLUMNS)
    edges = [len(values) * index // count for index in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in pairwise(edges)]
    finite = [value for value in means if math.isfinite(value)]
    low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)
    bars = _bars()
    return "".join(
        bars[round((value - low) / span * 7) if span else 3] if math.isfinite(value) else " "
        for value in means
    )


def _bars() -> str:
    """Return the bars, as digits where standard output has no such characters."""
    try:
        BARS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return PLAIN_BARS
    return BARS
