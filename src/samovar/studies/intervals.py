"""Standard errors and intervals of means over seeds.

SciPy is imported inside the functions: it takes a second, and command lines are parsed without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

LEVEL = 0.05
"""Level of a one-sided test on either side, so intervals hold with 1 - 2 x `LEVEL`."""

POWER = 0.8
"""Probability with which a test should see an effect that is there."""

MOST_SEEDS = 1000
"""Largest number of seeds that `seeds_needed` tries."""

UNBOUNDED = (-math.inf, math.inf)


def stderr(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for fewer than two values."""
    from scipy.stats import sem

    return float(sem(values)) if len(values) > 1 else None


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Return the t interval of the mean; unbounded for fewer than two values.

    Args:
        level: of a one-sided test on either side; `LEVEL` gives the 90 % interval, half of it the
            95 % interval.

    Source: Student, Biometrika 6 (1908)."""
    error = stderr(values)
    if error is None:
        return UNBOUNDED
    mean, reach = fmean(values), _quantile(len(values), level) * error
    return mean - reach, mean + reach


def p_above(values: Sequence[float], threshold: float) -> float:
    """Return the p-value of the one-sided t-test that the mean is above a threshold.

    That of the test that it is below is 1 minus it. NaN for fewer than two values, or equal ones.

    Source: Student, Biometrika 6 (1908)."""
    from scipy.stats import t

    error = stderr(values)
    if not error:
        return math.nan
    return float(t.sf((fmean(values) - threshold) / error, len(values) - 1))


def power(effect: float, spread: float, n: int) -> float:
    """Return how often the one-sided t-test at `LEVEL` on `n` values sees an effect.

    Args:
        effect: distance of the true mean from the threshold, 0 or more.
        spread: standard deviation over seeds, above 0.

    Source: the noncentral t distribution, Johnson and Welch, Biometrika 31 (1940)."""
    from scipy.stats import nct

    return float(nct.sf(_quantile(n), n - 1, effect / spread * math.sqrt(n)))


def smallest_effect(values: Sequence[float]) -> float:
    """Return the smallest effect that the test sees with a probability of `POWER`.

    Its spread is taken from the values. NaN for fewer than two values, or equal ones."""
    from scipy.optimize import brentq

    spread = (stderr(values) or 0.0) * math.sqrt(len(values))
    if not spread:
        return math.nan
    found = brentq(lambda ratio: power(ratio, 1.0, len(values)) - POWER, 1e-6, 200.0)
    return float(found) * spread


def seeds_needed(values: Sequence[float], threshold: float) -> int | None:
    """Return the smallest number of values that would decide with a probability of `POWER`.

    It takes the mean and the spread of the values for the true ones. None for fewer than two
    values, or equal ones, and where even `MOST_SEEDS` would not do."""
    spread = (stderr(values) or 0.0) * math.sqrt(len(values))
    if not spread:
        return None
    effect = abs(fmean(values) - threshold)
    low, high = 2, MOST_SEEDS
    if power(effect, spread, high) < POWER:
        return None
    # the power grows with the number of values
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, spread, middle) >= POWER else (middle + 1, high)
    return low


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Return which of several hypotheses are rejected, so that a false one is rare among all.

    With a probability of at least 1 - `level` no true hypothesis is rejected, however the tests
    depend on each other. NaN is never rejected.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979)."""
    rejected = [False] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    for done, (p, i) in enumerate(order):
        if p > level / (len(p_values) - done):
            break
        rejected[i] = True
    return rejected


def ratio_interval(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the 90 % interval of the ratio of the means of paired numbers (first / second).

    It holds the ratios r for which a t-test at `LEVEL` on either side cannot distinguish
    first - r x second from 0. It is unbounded where the mean of the second may be 0.

    Source: Fieller, J. R. Stat. Soc. B 16 (1954)."""
    import numpy as np

    n = len(pairs)
    if n < 2:
        return UNBOUNDED
    x, y = (fmean(column) for column in zip(*pairs, strict=True))
    # covariances of the two means, scaled so that the interval's ends solve a r^2 - 2 b r + c = 0
    (xx, xy), (_, yy) = (np.cov(pairs, rowvar=False) * _quantile(n) ** 2 / n).tolist()
    a, b, c = y * y - yy, x * y - xy, x * x - xx
    # the second mean is not clearly above 0, so large ratios cannot be excluded
    if a <= 0 or y <= 0:
        return UNBOUNDED
    root = math.sqrt(max(0.0, b * b - a * c))
    return (b - root) / a, (b + root) / a


def _quantile(n: int, level: float = LEVEL) -> float:
    """Return the t quantile of 1 - `level` for the mean of `n` values."""
    from scipy.stats import t

    return float(t.ppf(1 - level, n - 1))
