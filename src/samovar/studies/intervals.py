"""Standard errors and intervals of means over seeds.

SciPy is imported inside the functions: it takes a second, and command lines are parsed without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

LEVEL = 0.05
"""Level of a one-sided test on either side, so intervals hold with 1 - 2 x `LEVEL`."""

UNBOUNDED = (-math.inf, math.inf)


def stderr(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for fewer than two values."""
    from scipy.stats import sem

    return float(sem(values)) if len(values) > 1 else None


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 90 % t interval of the mean; unbounded for fewer than two values.

    Source: Student, Biometrika 6 (1908)."""
    error = stderr(values)
    if error is None:
        return UNBOUNDED
    mean, reach = fmean(values), _quantile(len(values)) * error
    return mean - reach, mean + reach


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


def _quantile(n: int) -> float:
    """Return the t quantile of 1 - `LEVEL` for the mean of `n` values."""
    from scipy.stats import t

    return float(t.ppf(1 - LEVEL, n - 1))
