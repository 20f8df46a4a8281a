"""Decide whether two networks or recipes differ: paired and unpaired tests with intervals.

A difference is decided if its interval does not hold 0. Each interval inverts the test that its
`test` names, so interval and test never disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95
"""Probability with which an interval holds the true difference."""


@dataclass(frozen=True)
class Difference:
    """The second minus the first, with an interval."""

    value: float
    low: float
    high: float
    test: str
    n: int
    """Images, draws or seeds behind it."""
    least: float
    """The smallest difference that this test would call real with such data; others are noise."""
    p: float | None = None

    @property
    def decided(self) -> bool:
        """Return whether the interval does not hold 0."""
        return self.low > 0 or self.high < 0


def mcnemar(first: ArrayLike, second: ArrayLike, level: float = LEVEL) -> Difference:
    """Compare the shares of images that two networks classify rightly, image by image.

    Only images on which one is right and the other is wrong say which is better. Their number is
    taken as given, and the interval is that of Clopper and Pearson for the share of them that the
    second wins.

    Args:
        first, second: [n] bool, whether each image is classified rightly.
        level: of the interval.

    Raises:
        ValueError: no images, or another number of them.

    Source: McNemar (1947), exact form; Clopper and Pearson (1934)."""
    from scipy.stats import binomtest

    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(
            f"outcomes of shapes {list(a.shape)} and {list(b.shape)}; give [n] of the same images"
        )
    n = len(a)
    won, differing = int((b & ~a).sum()), int((a != b).sum())
    least = _least_mcnemar(differing, level) / n
    if not differing:
        # No image tells them apart: the share of such images is below a bound for no events in n.
        bound = 1 - ((1 - level) / 2) ** (1 / n)
        return Difference(0.0, -bound, bound, "McNemar’s exact test", n, least, 1.0)
    found = binomtest(won, differing)
    share = found.proportion_ci(level, method="exact")
    low, high = ((2 * float(end) - 1) * differing / n for end in (share.low, share.high))
    value = (2 * won - differing) / n
    return Difference(value, low, high, "McNemar’s exact test", n, least, float(found.pvalue))


def _least_mcnemar(differing: int, level: float) -> int:
    """Return the smallest difference in images that is significant with so many that differ."""
    from scipy.stats import binom

    # With five images or fewer that differ, no outcome is significant at 95 %.
    tried = differing
    while 2 * 0.5**tried >= 1 - level:
        tried += 1
    lost = int(binom.ppf((1 - level) / 2, tried, 0.5))
    while lost >= 0 and 2 * float(binom.cdf(lost, tried, 0.5)) >= 1 - level:
        lost -= 1
    return tried - 2 * max(lost, 0)


def shares(first: tuple[float, int], second: tuple[float, int], level: float = LEVEL) -> Difference:
    """Compare two shares of separate images; of the same images it is too careful.

    Args:
        first, second: a share and the number of images behind it.
        level: of the interval.

    Source: Newcombe, Statistics in Medicine 17 (1998), method 10."""
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + level / 2))
    (p, m), (q, n) = first, second
    (low_p, high_p), (low_q, high_q) = _wilson(p, m, z), _wilson(q, n, z)
    value = q - p
    least = z * math.sqrt(p * (1 - p) / m + q * (1 - q) / n)
    return Difference(
        value,
        value - math.hypot(q - low_q, high_p - p),
        value + math.hypot(high_q - q, p - low_p),
        "Newcombe’s interval for separate images",
        min(m, n),
        least,
    )


def _wilson(share: float, n: int, z: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of n images."""
    middle = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of n images.

    Source: Wilson (1927)."""
    return _wilson(share, n, 1.959964)


def over_images(first: ArrayLike, second: ArrayLike, level: float = LEVEL) -> Difference:
    """Compare the means of a number that each image has, image by image.

    Args:
        first, second: [n] numbers of the same images, n >= 2.
        level: of the interval."""
    gains = np.asarray(second, float) - np.asarray(first, float)
    return _student(gains, level, "paired t-test over images")


def over_seeds(
    first: Sequence[float], second: Sequence[float], level: float = LEVEL, *, paired: bool
) -> Difference:
    """Compare the means over seeds; the seeds of each recipe stand for all seeds.

    Args:
        first, second: a number for each seed, two or more.
        level: of the interval.
        paired: whether entries of one place have one seed in common."""
    from scipy.stats import t

    x, y = np.asarray(first, float), np.asarray(second, float)
    if paired:
        return _student(y - x, level, "paired t-test over seeds")
    # Welch: the two recipes need not spread alike.
    u, v = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    error = math.sqrt(u + v)
    freedom = (u + v) ** 2 / (u**2 / (len(x) - 1) + v**2 / (len(y) - 1)) if error else 1.0
    reach = float(t.ppf(0.5 + level / 2, freedom)) * error
    value = float(y.mean() - x.mean())
    n = min(len(x), len(y))
    return Difference(value, value - reach, value + reach, "Welch’s t-test over seeds", n, reach)


def _student(gains: np.ndarray, level: float, test: str) -> Difference:
    from scipy.stats import t

    n = len(gains)
    error = float(gains.std(ddof=1)) / math.sqrt(n)
    reach = float(t.ppf(0.5 + level / 2, n - 1)) * error
    value = float(gains.mean())
    return Difference(value, value - reach, value + reach, test, n, reach)


def normal(
    first: tuple[float, float], second: tuple[float, float], n: int, level: float = LEVEL
) -> Difference:
    """Compare two numbers by their standard errors.

    Args:
        first, second: a number and its standard error.
        n: draws behind each.
        level: of the interval."""
    from scipy.stats import norm

    (a, error_a), (b, error_b) = first, second
    reach = float(norm.ppf(0.5 + level / 2)) * math.hypot(error_a, error_b)
    return Difference(b - a, b - a - reach, b - a + reach, "normal interval over draws", n, reach)


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Return which of many tests are significant, all together at one level.

    Source: Holm, Scand. J. Statist. 6 (1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] * (len(p_values) - rank) >= 1 - level:
            break
        found[index] = True
    return found
