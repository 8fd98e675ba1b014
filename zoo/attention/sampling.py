"""Which rows to look at where looking at all is too much."""

import torch
from torch import Tensor

from zoo import rng


def stratified_rows(count: int, total: int, seed: int = 0, step: int = 0) -> Tensor:
    """Draws one row from each of ``count`` equal parts of ``total`` rows, the same on every process.

    Sums over the drawn rows that see a key, divided by their number, estimate the mean over all rows that see
    it, with a standard error of at most .5 / sqrt(number).

    Args:
        count: How many rows; all if there are no more.
        total: T.
        seed: Seed of the draw.
        step: Number of the draw.

    Returns:
        Rows (min(count, total),) int64, ascending.

    >>> stratified_rows(3, 3).tolist(), len(set(stratified_rows(4, 100, seed=1).tolist()))
    ([0, 1, 2], 4)
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if count >= total:
        return torch.arange(total)
    edges = torch.arange(count + 1) * total // count
    draws = rng.uniform(seed, step, torch.arange(count), (), "rows", torch.float64)
    return edges[:-1] + (draws * (edges[1:] - edges[:-1])).long()
