"""The weights of a mean of checkpoints that stands in for a decay.

With snapshots theta_0 ... theta_k of a run at a constant learning rate and g_i what the run moved by
between snapshots i - 1 and i (theta_i = theta_(i-1) - g_i), WSM (arXiv 2507.17634) merges

    sum over j of c_j theta_j = theta_0 - sum over i of w_i g_i,    w_i = c_i + c_(i+1) + ... + c_k,

so weights c of a mean are a decay with levels w, and any decay that never rises gives weights:
c_0 = 1 - w_1, c_j = w_j - w_(j+1), c_k = w_k. It is emulation: the gradients are those of the trunk that
was not decayed. Equal weights (LAWA, SWA) are a linear decay to zero; geometric ones an average as EMA
takes it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from zoo.schedules.segments import Merge
from zoo.schedules.shapes import Shape, check_shape, level


def merge_weights(levels: Sequence[float]) -> list[float]:
    """The weights of the mean that a decay amounts to.

    Args:
        levels: w_1 ... w_k, the decay's level between each snapshot and the next, as a multiple of the rate
            before it; from 1 at most, never rising, to 0 at least.

    Returns:
        c_0 ... c_k, one for each snapshot, at least 0, with sum 1.

    Raises:
        ValueError: no levels, or levels that rise or leave [0, 1].

    >>> merge_weights([0.75, 0.5, 0.25])
    [0.25, 0.25, 0.25, 0.25]
    """
    whole = [1.0, *levels, 0.0]
    if not levels or not all(math.isfinite(value) for value in levels):
        raise ValueError(f"levels must be finite numbers, one between each two snapshots, got {list(levels)}")
    for number, (before, after) in enumerate(pairwise(whole), start=1):
        if after > before:
            place = f"level {number} is {after} after {before}" if number <= len(levels) else f"{before} < 0"
            raise ValueError(
                f"levels must fall from at most 1 to at least 0, but {place}: a rising level would give a "
                "snapshot a negative weight; merge the snapshots from the last rise on"
            )
    return [before - after for before, after in pairwise(whole)]


def decay_of_weights(weights: Sequence[float]) -> list[float]:
    """The levels of the decay that a mean of snapshots amounts to; the inverse of `merge_weights`.

    Args:
        weights: c_0 ... c_k, with sum 1.

    Returns:
        w_1 ... w_k.

    Raises:
        ValueError: fewer than two weights, or a sum other than 1.

    >>> decay_of_weights([0.25, 0.25, 0.25, 0.25])
    [0.75, 0.5, 0.25]
    """
    check_weights(weights)
    if len(weights) < 2:
        raise ValueError(f"a decay needs the weights of at least 2 snapshots, got {len(weights)}")
    return [math.fsum(weights[number:]) for number in range(1, len(weights))]


def check_weights(weights: Sequence[float]) -> None:
    """Refuses weights that make no mean.

    Raises:
        ValueError: weights that are not finite, or whose sum is not 1 (to 1e-6).
    """
    total = math.fsum(weights)
    if not abs(total - 1) <= 1e-6:  # also where it is not a number
        advice = f": divide each by {total:.6g}" if math.isfinite(total) and total > 0 else ""
        raise ValueError(f"the weights of a merge must have the sum 1, got {total:.6g}{advice}")


def uniform_weights(count: int) -> list[float]:
    """Equal weights: LAWA, SWA, a uniform soup, and WSM with a linear decay to zero.

    Raises:
        ValueError: no snapshots.

    >>> uniform_weights(4)
    [0.25, 0.25, 0.25, 0.25]
    """
    if count < 1:
        raise ValueError(f"a merge needs at least 1 snapshot, got a count of {count}")
    return [1 / count] * count


def ema_weights(count: int, decay: float) -> list[float]:
    """Weights that shrink by a factor with each snapshot back from the last.

    Args:
        count: Snapshots.
        decay: The factor, above 0 and at most 1. An average over updates with decay b has b^m for
            snapshots m updates apart.

    Returns:
        c_0 ... c_k proportional to decay^(k - j), with sum 1.

    Raises:
        ValueError: no snapshots, or a decay out of range.

    >>> ema_weights(3, 0.5) == [1 / 7, 2 / 7, 4 / 7]
    True
    """
    if count < 1:
        raise ValueError(f"a merge needs at least 1 snapshot, got a count of {count}")
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be above 0 and at most 1 (which weighs all alike), got {decay}")
    powers = [decay**age for age in reversed(range(count))]
    return [power / math.fsum(powers) for power in powers]


def weights_of_shape(
    shape: Shape, snapshots: int, min_ratio: float = 0.0, parameter: float | None = None
) -> list[float]:
    """The weights that imitate a decay of a shape.

    Between snapshots i - 1 and i of k + 1 the decay stands at p = i / (k + 1): neither end has an interval
    of its own (`Segment` calls it ``inclusive: neither``), so that the linear decay to 0 gives equal weights.

    Args:
        shape: How the decay falls.
        snapshots: How many there are, two at least.
        min_ratio: The level that it ends at. Above 0 the last snapshot weighs more: that much of the rate
            is never taken back.
        parameter: The number that some shapes need.

    Returns:
        A weight for each snapshot, the earliest first.

    Raises:
        ValueError: fewer than two snapshots, a ``min_ratio`` beyond [0, 1], or a shape that cannot do this.

    >>> [round(weight, 3) for weight in weights_of_shape("1-sqrt", 4)]
    [0.5, 0.207, 0.159, 0.134]
    """
    if snapshots < 2:
        raise ValueError(f"a merge that imitates a decay needs at least 2 snapshots, got {snapshots}")
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"min_ratio must lie in [0, 1], got {min_ratio}")
    check_shape(shape, 1.0, min_ratio, parameter)
    return merge_weights(
        [level(shape, number / snapshots, 1.0, min_ratio, parameter) for number in range(1, snapshots)]
    )


def weights_of(merge: Merge) -> list[float]:
    """The weights of a schedule's merge, one for each of its snapshots.

    >>> [round(weight, 6) for weight in weights_of(Merge(start=900, end=1000, every=25))]
    [0.2, 0.2, 0.2, 0.2, 0.2]
    """
    return weights_of_shape(merge.shape, len(merge.steps), merge.min_ratio, merge.parameter)
