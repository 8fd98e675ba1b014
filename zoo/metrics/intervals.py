"""Confidence intervals for what an evaluation reports."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A value and its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of independent values with Student's t interval.

    Args:
        values: Two values at least.
        level: Confidence level.

    Raises:
        ValueError: fewer than two values, which have no interval.

    >>> str(mean_interval([1.0, 2.0, 3.0]))
    '2 [-0.4841, 4.484]'
    """
    from scipy.stats import t

    count = len(values)
    if count < 2:
        raise ValueError(f"an interval needs two values at least, got {count}")
    mean = math.fsum(values) / count
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    reach = float(t.ppf(0.5 + level / 2, count - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def share_interval(hits: int, total: int, level: float = 0.95) -> Interval:
    """A share of independent trials with Wilson's interval (Wilson 1927), which stays inside [0, 1].

    Args:
        hits: Successes.
        total: Trials, one at least.
        level: Confidence level.

    Raises:
        ValueError: not 0 <= hits <= total, or no trial.

    >>> str(share_interval(9, 10))
    '0.9 [0.5958, 0.9821]'
    """
    from scipy.stats import norm

    if total < 1 or not 0 <= hits <= total:
        raise ValueError(f"need 0 <= hits <= total and total >= 1, got {hits} of {total}")
    z = float(norm.ppf(0.5 + level / 2))
    share = hits / total
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    reach = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(share, max(center - reach, 0.0), min(center + reach, 1.0))
