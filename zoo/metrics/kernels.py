"""Distances between two sets of vectors by pairs, unbiased: energy distance, maximum mean discrepancy.

Both are zero between equal laws and positive between others; the unbiased estimates scatter around zero, so
they may be negative. Pairs of an item with itself are left out. Energy distance: Szekely and Rizzo 2013; MMD:
Gretton et al. 2012, equation 3. Neither needs features, a fit or a pretrained network; both cost N x M
distances.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoo.metrics.distances import check_sets


def energy_distance(x: Tensor, y: Tensor, chunk: int = 4096) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'|.

    Args:
        x: (N, D), N > 1.
        y: (M, D), M > 1.
        chunk: Rows whose distances are held at once.

    Returns:
        A float64 scalar, in units of the vectors' length.

    Raises:
        ValueError: the sets are not (N, D) and (M, D) with two rows at least.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> energy_distance(x, x + 10).item()  # 2 * 10 - 2 - 2
    16.0
    """
    check_sets(x, y)
    x, y = x.double(), y.double()
    cross, within_x, within_y = (_mean(a, b, lambda d: d, chunk) for a, b in ((x, y), (x, None), (y, None)))
    return 2 * cross - within_x - within_y


def mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float] | None = None, chunk: int = 4096) -> Tensor:
    """E k(x, x') + E k(y, y') - 2 E k(x, y): the squared MMD with a mean of Gaussian kernels.

    Args:
        x: (N, D), N > 1.
        y: (M, D), M > 1.
        bandwidths: Standard deviations of the kernels. None takes 1/4, 1/2, 1, 2 and 4 times the median
            distance within (the first 2,000 rows of) ``y``: use the reference set there, so that all compared
            sets meet one kernel.
        chunk: Rows whose distances are held at once.

    Returns:
        A float64 scalar of at most 2.

    Raises:
        ValueError: the sets are not (N, D) and (M, D) with two rows at least, or a bandwidth is not positive.

    >>> x = torch.tensor([[0.0], [0.0]])
    >>> round(mmd(x, x + 1, bandwidths=[1.0]).item(), 4)  # 2 - 2 exp(-1 / 2)
    0.7869
    """
    check_sets(x, y)
    x, y = x.double(), y.double()
    if bandwidths is None:
        median = torch.pdist(y[:2000]).median().item()
        bandwidths = [factor * median for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    if not bandwidths or min(bandwidths) <= 0:
        raise ValueError(
            f"bandwidths must be positive, got {list(bandwidths)} (the median distance of equal rows is 0)"
        )

    def kernel(distance: Tensor) -> Tensor:
        squares = distance.square()
        return torch.stack([torch.exp(-squares / (2 * s * s)) for s in bandwidths]).mean(0)

    return _mean(x, None, kernel, chunk) + _mean(y, None, kernel, chunk) - 2 * _mean(x, y, kernel, chunk)


def _mean(x: Tensor, y: Tensor | None, function: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
    """The mean of a function of the distances from ``x`` to ``y``, or within ``x`` where y is None."""
    other = x if y is None else y
    total = x.new_zeros(())
    for start in range(0, len(x), chunk):
        rows = x[start : start + chunk]
        # The difference form: the matrix form of cdist loses the digits of small distances.
        values = function(torch.cdist(rows, other, compute_mode="donot_use_mm_for_euclid_dist"))
        if y is None:
            values.diagonal(offset=start).zero_()
        total += values.sum()
    return total / (len(x) * (len(x) - 1) if y is None else len(x) * len(other))
