"""Settings that `samovar tune` tries, in which order and at what cost, by successive halving.

Short runs of every setting come first, then longer runs of the better ones, and so on (Jamieson and
Talwalkar, arXiv:1502.07943). Theirs continue the same runs; here every rung trains anew, with a
complete schedule of its own length and warm-up shortened in proportion. In the middle of a schedule
the learning rate is high and SAM holds back, so accuracies there do not predict the order in which
runs of different rho end.

Nothing in this file needs torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from samovar import config as configs
from samovar.config import Config, OptimConfig, num_steps, stages
from samovar.config.encoded import dashed
from samovar.studies.intervals import stderr
from samovar.studies.jobs import changed

Setting = dict[str, float]
"""A value of each axis that is searched, in the order of `AXES`."""

FIRST = 1 / 20
"""Length of the first rung in full runs; it only has to drop settings that are far off."""

LONGER = 3
"""Ratio of the length of a middle rung to the one before."""

BUDGET = 0.4
"""Share of the full search that is spent; the last rung gets what the others leave."""

MANY = 16
"""Number of settings from which on there is a middle rung."""

SHORTEST = 50
"""Steps below which a run shows nothing."""


@dataclass(frozen=True)
class Axis:
    """A setting that can be searched."""

    setting: str
    """Dotted name; `--sam.rho` is its flag in other commands."""
    title: str
    allowed: str
    """Allowed values, in words for errors."""
    zero: bool = True
    """True if 0 is allowed."""


AXES: dict[str, Axis] = {
    "rho": Axis("sam.rho", "rho", "radii of 0 or more"),
    "lr": Axis("optim.lr", "lr", "learning rates above 0", zero=False),
    "weight_decay": Axis("optim.weight_decay", "decay", "decays of 0 or more"),
}
"""Axes by the name of their flag in `samovar tune`."""


@dataclass(frozen=True)
class Search:
    """A search: the values to compare, seeds, and whether runs are shortened."""

    values: Mapping[str, tuple[float, ...]]
    """Values of each axis, rising."""
    seeds: int = 1
    full: bool = False
    """True if every setting trains at full length."""

    @property
    def settings(self) -> list[Setting]:
        """Return all combinations of the values."""
        return [
            dict(zip(self.values, each, strict=True))
            for each in itertools.product(*self.values.values())
        ]


@dataclass(frozen=True)
class Rung:
    """Runs of one length."""

    settings: int
    """Number of settings."""
    steps: int


@dataclass(frozen=True)
class TuneOutcome:
    """Results of a setting on a rung, over seeds."""

    setting: Setting
    rung: int
    """Number of the rung, from 1."""
    steps: int
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]
    seconds: float
    finite: bool
    """False if any run was not finite."""

    @property
    def accuracy(self) -> float:
        """Mean over seeds; NaN if a run was not finite."""
        return fmean(self.accuracies)

    @property
    def loss(self) -> float:
        """Mean over seeds."""
        return fmean(self.losses)

    @property
    def stderr(self) -> float | None:
        """Standard error over seeds of the mean accuracy; None for one seed."""
        return stderr(self.accuracies)

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Sort key, lowest for the best: accuracy, then loss; non-finite runs come last."""
        return (False, -self.accuracy, self.loss) if self.finite else (True, 0.0, 0.0)


# --- the request


def parse_values(flag: str, text: str, axis: Axis) -> tuple[float, ...]:
    """Parse a list of numbers such as `0.02,0.05`; they come back rising and each once.

    Raises:
        ValueError: the flag, the value given, the allowed values."""
    try:
        values = {float(part) for part in text.split(",")}
    except ValueError:
        raise ValueError(
            f"{flag} {text} is not a list of numbers; "
            "give some with commas between them, such as 0.1,0.2"
        ) from None
    for value in values:
        if not (math.isfinite(value) and (value > 0 or (axis.zero and value == 0))):
            raise ValueError(f"{flag} {value:g} is out of range; give {axis.allowed}")
    return tuple(sorted(value + 0.0 for value in values))  # -0.0 becomes 0


def make(
    config: Config, values: Mapping[str, tuple[float, ...]], *, seeds: int, full: bool
) -> tuple[Config, Search]:
    """Return the config and the search of some lists of values.

    The learning rates of the config's own grid, if it has one, become the list of rates.

    Raises:
        ValueError: there is nothing to compare."""
    values = dict(values)
    if config.grid.lr:
        values.setdefault("lr", tuple(sorted(set(config.grid.lr))))
        config = replace(config, grid=replace(config.grid, lr=()))
    # in the order of `AXES`, so that labels and folders have one order
    search = Search({name: values[name] for name in AXES if name in values}, seeds, full)
    if len(search.settings) < 2:
        flags = ", ".join("--" + dashed(name) for name in AXES)
        raise ValueError(
            f"nothing to compare; give two or more values to one of {flags}, such as --rho 0.05,0.1"
        )
    return config, search


# --- the runs


def plan(search: Search, total: int, config: Config) -> tuple[Rung, ...]:
    """Return the rungs of a search; each but the first trains the better half.

    Short runs favour a small rho, which learns faster: on digits, those of a twentieth rank 0.02
    before 0.05 before 0.1, those of full length the other way round, and both put 0.2 and 0.35
    last. So the first runs are as short as possible, for the sake of long last ones.

    Args:
        total: steps of a full run."""
    count = len(search.settings)
    if search.full:
        return (Rung(count, total),)
    sizes = [count]
    while sizes[-1] > 2 and len(sizes) < (2 if count < MANY else 3):
        sizes.append(math.ceil(sizes[-1] / 2))
    first = max(FIRST, SHORTEST / total)
    lengths = [first * LONGER**k for k in range(len(sizes) - 1)]
    prices = [_price(search, config, size) for size in sizes]
    spent = sum(price * length for price, length in zip(prices, lengths, strict=False))
    lengths.append(min(1.0, (BUDGET * prices[0] - spent) / prices[-1]))
    # lengths must rise; where full runs are so short that they do not, one rung spends the budget
    if sorted(set(lengths)) != lengths:
        sizes, lengths = [count], [BUDGET]
    return tuple(
        Rung(size, max(1, math.floor(total * length)))
        for size, length in zip(sizes, lengths, strict=True)
    )


def _price(search: Search, config: Config, count: int) -> float:
    """Return the most gradients that a step of `count` settings may take together."""
    # the settings that stay may be the dearest
    dearest = sorted((passes(config, setting) for setting in search.settings), reverse=True)
    return sum(dearest[:count])


def cost(rungs: Sequence[Rung], search: Search, config: Config) -> float:
    """Return the gradients that the rungs take at most."""
    return search.seeds * sum(rung.steps * _price(search, config, rung.settings) for rung in rungs)


def apply(config: Config, setting: Setting) -> Config:
    """Return the config with the values of a setting."""
    for name, value in setting.items():
        config = changed(config, {AXES[name].setting: value})
    return config


def stage_lengths(config: Config, num_train: int) -> tuple[int, ...]:
    """Return the steps of each stage of a full run."""
    return tuple(num_steps(stage, num_train) for stage in stages(config))


def shortened(config: Config, steps: int, lengths: Sequence[int]) -> Config:
    """Return the config with complete schedules that take `steps` in all.

    Args:
        lengths: steps of each stage of a full run."""
    share = steps / sum(lengths)
    # the first stage takes what rounding leaves, so that the steps add up
    first = steps - sum(max(1, round(length * share)) for length in lengths[1:])
    config = replace(config, steps=max(1, first), optim=_warmed(config.optim, share))
    if len(lengths) == 1:
        return config
    optim = _warmed(config.head.optim, share)
    head = replace(config.head, steps=max(1, round(lengths[1] * share)), optim=optim)
    return replace(config, head=head)


def _warmed(optim: OptimConfig, share: float) -> OptimConfig:
    return configs.shorter_schedule(optim, share)


def passes(config: Config, setting: Setting) -> float:
    """Return the gradients that a step takes of each image: two with SAM, one without."""
    return configs.passes(apply(config, setting))


def ranked(outcomes: Sequence[TuneOutcome]) -> list[TuneOutcome]:
    """Return the outcomes, the best first."""
    return sorted(outcomes, key=lambda outcome: outcome.rank)


# --- in words


def label(setting: Setting) -> str:
    """Return a setting as `rho 0.1, lr 0.001`."""
    return ", ".join(f"{AXES[name].title} {value:g}" for name, value in setting.items())


def folder_name(setting: Setting) -> str:
    """Return a setting as `rho-0.1-lr-0.001`; close values have different names."""
    return "-".join(f"{AXES[name].title}-{value!r}" for name, value in setting.items())


def edges(setting: Setting, search: Search) -> list[str]:
    """Return a sentence for each value at an end of its list, beyond which a better one may lie."""
    said = []
    for name, value in setting.items():
        values = search.values[name]
        if len(values) > 1 and value in (values[0], values[-1]) and value > 0:
            side, more = ("lowest", "lower") if value == values[0] else ("highest", "higher")
            said.append(
                f"{AXES[name].title} {value:g} is the {side} of --{dashed(name)}; "
                f"a {more} one may be better still"
            )
    return said
