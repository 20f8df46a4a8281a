"""What `samovar tune` tries, in which order and at what cost; nothing in this file needs torch.

Successive halving: short runs of every setting, longer runs of the better ones, and so on (Jamieson
    and Talwalkar,
arXiv:1502.07943). Theirs go on with the same runs; here every rung trains anew, with a complete
schedule of its own length, warm-up shortened in proportion. In the middle of a schedule the
learning rate is high and SAM holds back, so accuracies there do not say where runs of different rho
will end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from samovar import config as configs
from samovar.config import Config, OptimConfig, num_steps, stages

Setting = dict[str, float]
"""A value of each axis that is searched, in the order of `AXES`."""

FIRST = 1 / 20
"""Length of the first rung, in full runs; it has to tell no more than what is far off."""

LONGER = 3
"""How many times as long a rung in the middle is as the one before."""

BUDGET = 0.4
"""Share of the full search that is spent; the last rung has what the others leave."""

MANY = 16
"""From so many settings on there is a rung in the middle."""

SHORTEST = 50
"""Steps below which a run says nothing."""


@dataclass(frozen=True)
class Axis:
    """Something that is searched."""

    setting: str
    """Dotted name; `--sam.rho` is its flag in other commands."""
    title: str
    allowed: str
    apply: Callable[[Config, float], Config]
    zero: bool = True
    """Whether 0 is allowed."""


AXES: dict[str, Axis] = {
    "rho": Axis(
        "sam.rho", "rho", "radii of 0 or more", lambda c, v: replace(c, sam=replace(c.sam, rho=v))
    ),
    "lr": Axis(
        "optim.lr",
        "lr",
        "learning rates above 0",
        lambda c, v: replace(c, optim=replace(c.optim, lr=v)),
        zero=False,
    ),
    "weight_decay": Axis(
        "optim.weight_decay",
        "decay",
        "decays of 0 or more",
        lambda c, v: replace(c, optim=replace(c.optim, weight_decay=v)),
    ),
}
"""By the name that is their flag in `samovar tune`."""


@dataclass(frozen=True)
class Search:
    """What is to be compared, and how thoroughly."""

    values: Mapping[str, tuple[float, ...]]
    """Of each axis, rising."""
    seeds: int = 1
    full: bool = False
    """Train every setting at full length."""

    @property
    def settings(self) -> list[Setting]:
        """All combinations of the values."""
        return [
            dict(zip(self.values, each, strict=True))
            for each in itertools.product(*self.values.values())
        ]


@dataclass(frozen=True)
class Rung:
    """Runs of one length."""

    settings: int
    """How many."""
    steps: int


@dataclass(frozen=True)
class Outcome:
    """How a setting did on a rung, over seeds."""

    setting: Setting
    rung: int
    """From 1."""
    steps: int
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]
    seconds: float
    finite: bool
    """False if any of its runs was not."""

    @property
    def accuracy(self) -> float:
        """Mean over seeds; NaN if a run was not finite."""
        return math.fsum(self.accuracies) / len(self.accuracies)

    @property
    def loss(self) -> float:
        """Mean over seeds."""
        return math.fsum(self.losses) / len(self.losses)

    @property
    def stderr(self) -> float | None:
        """Standard error over seeds of the mean accuracy; None of one seed."""
        return stderr(self.accuracies)

    @property
    def rank(self) -> tuple[bool, float, float]:
        """The best has the lowest: accuracy decides, then loss; what is not finite comes last."""
        return (False, -self.accuracy, self.loss) if self.finite else (True, 0.0, 0.0)


def stderr(values: Sequence[float]) -> float | None:
    """Standard error of a mean; None of one value."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


# --- what is asked for
# -----------------------------------------------------------------------------------------------


def parse_values(flag: str, text: str, axis: Axis) -> tuple[float, ...]:
    """The numbers of a list such as `0.02,0.05`, rising and each once.

    Raises:
        ValueError: names the flag, what was given, what is allowed."""
    try:
        values = {float(part) for part in text.split(",")}
    except ValueError:
        raise ValueError(
            f"{flag} {text} is not a list of numbers; give some with commas between them, such as 0.1,0.2"
        ) from None
    for value in values:
        if not (math.isfinite(value) and (value > 0 or (axis.zero and value == 0))):
            raise ValueError(f"{flag} {value:g} is out of range; give {axis.allowed}")
    return tuple(sorted(value + 0.0 for value in values))  # -0.0 is 0


def make(
    config: Config, values: Mapping[str, tuple[float, ...]], *, seeds: int, full: bool
) -> tuple[Config, Search]:
    """The search of some lists; the learning rates of the config's own grid, if it has one, are its
    list of them.

    Raises:
        ValueError: there is nothing to compare."""
    values = dict(values)
    if config.grid.lr:
        values.setdefault("lr", tuple(sorted(set(config.grid.lr))))
        config = replace(config, grid=replace(config.grid, lr=()))
    search = Search({name: values[name] for name in AXES if name in values}, seeds, full)
    if all(len(values) < 2 for values in search.values.values()):
        flags = ", ".join("--" + name.replace("_", "-") for name in AXES)
        raise ValueError(
            f"nothing to compare; give two or more values to one of {flags}, such as --rho 0.05,0.1"
        )
    return config, search


# --- what is trained
# -------------------------------------------------------------------------------------------------


def plan(search: Search, total: int, config: Config) -> tuple[Rung, ...]:
    """The rungs of a search whose full runs have `total` steps; each but the first trains the
    better half.

    Short runs favour a small rho, which learns faster: on digits, those of a twentieth rank 0.02
    before 0.05 before 0.1, those of full length the other way round, and both put 0.2 and 0.35
    last. So the first runs are as short as they can be, for the sake of long last ones."""
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
    if (
        sorted(set(lengths)) != lengths
    ):  # so short is a full run that there is no room for shorter ones
        sizes, lengths = [count], [BUDGET]
    return tuple(
        Rung(n, max(1, math.floor(total * length)))
        for n, length in zip(sizes, lengths, strict=True)
    )


def _price(search: Search, config: Config, count: int) -> float:
    """Gradients of one step of `count` settings at most: those that cost most may be those that
    stay."""
    return sum(
        sorted((passes(config, setting) for setting in search.settings), reverse=True)[:count]
    )


def cost(rungs: Sequence[Rung], search: Search, config: Config) -> float:
    """Gradients that the rungs take at most."""
    return search.seeds * sum(rung.steps * _price(search, config, rung.settings) for rung in rungs)


def apply(config: Config, setting: Setting) -> Config:
    """The config with the values of a setting."""
    for name, value in setting.items():
        config = AXES[name].apply(config, value)
    return config


def stage_lengths(config: Config, num_train: int) -> tuple[int, ...]:
    """Steps of each stage of a full run."""
    return tuple(num_steps(stage, num_train) for stage in stages(config))


def shortened(config: Config, steps: int, lengths: Sequence[int]) -> Config:
    """The config with complete schedules that take `steps` in place of the sum of `lengths`, a
    number a stage."""
    share = steps / sum(lengths)
    first = steps - sum(max(1, round(length * share)) for length in lengths[1:])
    config = replace(config, steps=max(1, first), optim=_warmed(config.optim, share))
    if len(lengths) == 1:
        return config
    head = replace(
        config.head,
        steps=max(1, round(lengths[1] * share)),
        optim=_warmed(config.head.optim, share),
    )
    return replace(config, head=head)


def _warmed(optim: OptimConfig, share: float) -> OptimConfig:
    return replace(optim, warmup_steps=math.floor(optim.warmup_steps * share))


def passes(config: Config, setting: Setting) -> float:
    """Gradients that a step takes of each image: two with SAM, one without."""
    return configs.passes(apply(config, setting))


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The best first."""
    return sorted(outcomes, key=lambda outcome: outcome.rank)


# --- in words
# --------------------------------------------------------------------------------------------------------


def label(setting: Setting) -> str:
    """`rho 0.1, lr 0.001`."""
    return ", ".join(f"{AXES[name].title} {value:g}" for name, value in setting.items())


def folder_name(setting: Setting) -> str:
    """`rho-0.1-lr-0.001`: different for different values, however close."""
    return "-".join(f"{AXES[name].title}-{value!r}" for name, value in setting.items())


def edges(setting: Setting, search: Search) -> list[str]:
    """A sentence on each value that is the first or last of its list, beyond which a better one may
    lie."""
    said = []
    for name, value in setting.items():
        values = search.values[name]
        if len(values) > 1 and value in (values[0], values[-1]) and value > 0:
            side, more = ("lowest", "lower") if value == values[0] else ("highest", "higher")
            flag = "--" + name.replace("_", "-")
            said.append(
                f"{AXES[name].title} {value:g} is the {side} of {flag}; a {more} one may be better still"
            )
    return said
